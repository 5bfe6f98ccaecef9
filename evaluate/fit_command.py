"""``emocaliber bundle fit-calibrator``: a bundle's calibrators from a user's own labelled images, without torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.bundle import EMBEDDED_BUNDLE, named_bundle
from emocaliber.runtime.calibration import Calibrator, softmax
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.files import sha256_of
from emocaliber.runtime.grammar import MODES, Mode
from emocaliber.runtime.model import EmotionModel, Scores
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import read_samples
from emocaliber.runtime.sealing import check_free, replace_calibration

from .bundle_fitting import CalibrationSet, calibration_sets, calibration_split, fit_on_scores, score_set
from .fitting import cross_fitted
from .intervals import bootstrap_mean, bootstrap_statistic, paired_difference
from .metrics import brier_losses, expected_calibration_error, kl_losses
from .records import Interval

Floats = NDArray[np.float64]

_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What one calibrator changed, on images that it was not fitted on."""

    before: dict[str, Interval]
    """``kl``, ``ece`` and ``brier`` of the bundle as it was."""
    after: dict[str, Interval]
    """The same, cross-fitted."""
    difference: dict[str, Interval]
    """After less before of ``kl`` and ``brier``, image by image; below zero is better."""


def run(arguments: argparse.Namespace) -> int:
    """Fits, writes the bundle, and says what was gained; returns the exit status 0.

    Raises:
        InputError: If the samples or the places cannot be used.
        EmoCaliberError: If the bundle or its engine does not load.
    """
    source, target = _places(arguments)
    chosen = calibration_split(read_samples(arguments.data), arguments.split)
    source_name = f"{arguments.data.resolve().parent.name}/{arguments.data.name}"
    fitted_on = source_name + (f", {chosen[0].split} split" if chosen[0].split else "")
    fitted: list[Calibrator] = []
    gains: list[Gain] = []
    with EmotionModel.load(source, precision=arguments.precision, engine=arguments.engine) as model:
        sets = calibration_sets(chosen, model.manifest, arguments.taxonomies)
        modes: Sequence[Mode] = MODES if arguments.mode == "both" else (arguments.mode,)
        for given in sets:
            for mode in modes:
                scores = score_set(model, given, mode)
                calibrator = fit_on_scores(model, given, scores, mode, fitted_on=fitted_on, seed=_SEED)
                fitted.append(calibrator)
                gains.append(gain(given, scores, model.calibrator(given.taxonomy, mode)))
        kept = [c for c in model.bundle.calibrators if _key(c) not in {_key(new) for new in fitted}]
        replace_calibration(
            model.bundle.folder,
            [*kept, *fitted],
            out=target,
            provenance={"refitted": {**model.manifest.provenance.get("refitted", {}), **_record(arguments, fitted)}},
        )
    _write(fitted, gains, target or source, as_json=arguments.json)
    return 0


def gain(given: CalibrationSet, scores: Scores, before: Calibrator | None) -> Gain:
    """Returns what the fit changes against the calibrator ``before``, or against raw probabilities where it is None.

    Args:
        given: The labelled images.
        scores: Their raw scores.
        before: What the bundle held for this taxonomy, mode and precision.
    """
    old = softmax(scores.label_scores)
    if before is not None:
        old = before.with_confidence(before.probabilities(scores.label_scores), scores.verbalized)
    new = cross_fitted(scores.label_scores, given.targets, scores.verbalized, _SEED)
    losses = [{"kl": kl_losses(given.targets, p), "brier": _brier(p, given.targets)} for p in (old, new)]
    figures = [
        {
            "kl": bootstrap_mean(loss["kl"]),
            "ece": _ece(probabilities, given.targets),
            "brier": bootstrap_mean(loss["brier"]),
        }
        for probabilities, loss in zip((old, new), losses, strict=True)
    ]
    difference = {name: paired_difference(losses[0][name], losses[1][name]) for name in ("kl", "brier")}
    return Gain(before=figures[0], after=figures[1], difference=difference)


def _top(probabilities: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Returns (N,) the confidence and the share of votes of the most probable label."""
    index, top = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    return probabilities[index, top], targets[index, top]


def _brier(probabilities: Floats, targets: Floats) -> Floats:
    return brier_losses(*_top(probabilities, targets))


def _ece(probabilities: Floats, targets: Floats) -> Interval:
    confidence, correct = _top(probabilities, targets)
    interval = bootstrap_statistic(
        lambda rows: expected_calibration_error(confidence[rows], correct[rows]), len(confidence), recentred=True
    )
    assert interval is not None
    return replace(interval, low=max(0.0, interval.low))


def _places(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Returns the bundle to read and where the new one goes; None replaces it.

    Raises:
        InputError: If the bundle is to be replaced and is no folder of the user's.
        ExportError: If something stands where the new bundle shall go.
    """
    source = Path(named_bundle(arguments.bundle) or EMBEDDED_BUNDLE)
    if arguments.out is not None:
        check_free(arguments.out)
        return source, arguments.out
    if source == EMBEDDED_BUNDLE or not source.is_dir():
        what = "the bundle of the package" if source == EMBEDDED_BUNDLE else f"{source}, which is no folder,"
        raise InputError(f"--replace cannot change {what}; give a new folder with --out")
    return source, None


def _key(calibrator: Calibrator) -> tuple[str, str, str]:
    return calibrator.taxonomy, calibrator.mode, calibrator.precision


def _record(arguments: argparse.Namespace, fitted: Sequence[Calibrator]) -> dict[str, Any]:
    """Returns what the provenance says of these calibrators."""
    return {
        f"{c.taxonomy}, {c.mode}, {c.precision}": {
            "samples": arguments.data.name,
            "samples_sha256": sha256_of(arguments.data),
            "images": c.n,
            "fitted_on": c.fitted_on,
            "emocaliber": version("emocaliber"),
        }
        for c in fitted
    }


def _write(fitted: Sequence[Calibrator], gains: Sequence[Gain], place: Path, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {**to_mapping(made), "drift": made.drift is not None, **to_mapping(change)}
            for made, change in zip(fitted, gains, strict=True)
        ]
        sys.stdout.write(json.dumps({"bundle": str(place), "calibrators": rows}, indent=1) + "\n")
        return
    for made, change in zip(fitted, gains, strict=True):
        sys.stdout.write("\n".join(_lines(made, change)) + "\n\n")
    sys.stdout.write(f"written to {place}\n")


def _lines(made: Calibrator, change: Gain) -> list[str]:
    kind = "none" if made.confidence is None else made.confidence.kind
    lines = [
        f"{made.taxonomy}, {made.mode} mode, {made.precision} on {made.engine}: {made.n} images of {made.fitted_on}",
        f"  scaling     {made.method} ({_listed(made.candidates)} nats)",
        f"  confidence  {kind} ({_listed(made.confidence_candidates)} nats)",
        f"  sets        {made.conformal.method} ({_listed(made.conformal.sizes)} labels at 90 %)",
        f"  {'':10}{'before':>26}{'after, cross-fitted':>26}{'difference':>26}",
    ]
    for name in ("kl", "ece", "brier"):
        cells = [change.before[name], change.after[name], change.difference.get(name)]
        lines.append(f"  {name:10}" + "".join(f"{_interval(cell):>26}" for cell in cells).rstrip())
    return lines


def _listed(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {score:.3f}" for name, score in scores.items())


def _interval(cell: Interval | None) -> str:
    return "" if cell is None else f"{cell.estimate:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
