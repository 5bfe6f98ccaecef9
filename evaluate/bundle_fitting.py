"""Calibrators of a bundle, fitted on labelled images by running its own graphs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.calibration import Calibrator
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import MODES, Mode
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.manifest import Manifest
from emocaliber.runtime.model import EmotionModel, Scores
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.sealing import replace_calibration
from emocaliber.runtime.taxonomy import TAXONOMIES, Taxonomy

from .fitting import fit_calibrator, minimum_samples
from .folds import FOLDS

Floats = NDArray[np.float64]

CHUNK = 32
"""Images that are scored between two steps of the progress bar."""

CALIBRATION_SPLIT = "calibration"

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationSet:
    """The labelled images of one taxonomy."""

    taxonomy: Taxonomy
    """The label set, under the name the calibrator will have."""
    images: tuple[str, ...]
    """N paths."""
    targets: Floats
    """(N, K), the votes as distributions, or one-hot answers."""


def calibration_split(samples: Sequence[Sample], split: str | None = None) -> list[Sample]:
    """Returns the samples of a split; None is ``calibration``, or everything where no sample names a split.

    Raises:
        InputError: If no sample is of that split; those found are listed.
    """
    names = Counter(sample.split for sample in samples)
    if split is None and set(names) <= {None}:
        return list(samples)
    wanted = CALIBRATION_SPLIT if split is None else split
    if wanted not in names:
        listed = ", ".join(f"{name or 'none'} ({count})" for name, count in names.items())
        raise InputError(f"no sample is of split {wanted!r}; the samples have: {listed}; choose one with --split")
    return [sample for sample in samples if sample.split == wanted]


def calibration_sets(
    samples: Iterable[Sample], manifest: Manifest, taxonomies: Sequence[str] = ()
) -> list[CalibrationSet]:
    """Returns the samples by taxonomy, after checking that calibrators of this bundle can be fitted on them.

    Args:
        samples: With absolute image paths.
        manifest: Of the bundle.
        taxonomies: Names of the label sets to fit; none are all that the samples have.

    Raises:
        InputError: If a taxonomy is missing, a label set differs from the bundle's of that name, a sample has
            no label, or there are too few images, in all or of one label; the numbers found are given.
    """
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.taxonomy, []).append(sample)
    missing = [name for name in taxonomies if name not in found]
    if missing:
        listed = ", ".join(f"{name} ({len(group)} images)" for name, group in found.items())
        raise InputError(f"the samples have no taxonomy {', '.join(missing)}; they have: {listed}")
    return [_checked_set(name, found[name], manifest) for name in dict.fromkeys(taxonomies or found)]


def score_set(model: EmotionModel, given: CalibrationSet, mode: Mode) -> Scores:
    """Returns the raw scores of the images, with a progress bar on standard error.

    Raises:
        InputError: If images cannot be read, of which up to five are named, or a score is not finite.
        BackendError: If the engine fails.
    """
    parts: list[Scores] = []
    faults: list[str] = []
    title = f"scoring {given.taxonomy.name} ({mode}, {model.precision})"
    with tqdm(
        total=len(given.images), desc=title, unit="image", file=sys.stderr, leave=False, disable=None
    ) as progress:
        for start in range(0, len(given.images), CHUNK):
            paths = given.images[start : start + CHUNK]
            pixels = []
            for path in paths:
                try:
                    pixels.append(decode_image(path))
                except InputError as error:
                    faults.append(str(error))
            if not faults:
                parts.append(model.score(pixels, labels=given.taxonomy.labels, mode=mode))
            progress.update(len(paths))
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise InputError(
            f"{len(faults)} of {len(given.images)} images cannot be read: {'; '.join(faults[:_SHOWN])}{more}. "
            "Repair them, or take their lines out of the samples"
        )
    scores = np.concatenate([part.label_scores for part in parts])
    broken = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(broken):
        raise InputError(
            f"{len(broken)} of {len(scores)} images have scores that are not finite, the first is "
            f"{given.images[int(broken[0])]}: the {model.precision} graphs cannot be calibrated; "
            "run 'emocaliber bundle verify', or choose another --precision"
        )
    stated = [part.verbalized for part in parts if part.verbalized is not None]
    return Scores(
        label_scores=scores,
        verbalized=np.concatenate(stated) if stated else None,
        texts=None,
        features=np.concatenate([part.features for part in parts]),
    )


def fit_on_scores(
    model: EmotionModel, given: CalibrationSet, scores: Scores, mode: Mode, *, fitted_on: str, seed: int = 0
) -> Calibrator:
    """Returns the calibrator of one taxonomy and mode at the model's precision, with the images' drift reference.

    Raises:
        InputError: As `fit_calibrator`.
    """
    return fit_calibrator(
        scores.label_scores,
        given.targets,
        labels=given.taxonomy.labels,
        taxonomy=given.taxonomy.name,
        mode=mode,
        precision=model.precision,
        engine=model.engine,
        fitted_on=fitted_on,
        verbalized=scores.verbalized,
        features=scores.features,
        seed=seed,
    )


def calibrate_bundle(bundle: Path, samples: Iterable[Sample], *, fitted_on: str, seed: int = 0) -> list[Calibrator]:
    """Returns the calibrators of a bundle, one per taxonomy, mode and precision, after writing them into it.

    Each is fitted on the scores of its own graphs: quantisation moves scores, and a calibrator fitted elsewhere would
    not know.

    Args:
        bundle: The bundle's folder.
        samples: The calibration images, with votes or answers; no training image may be among them.
        fitted_on: What the samples are, in words.
        seed: Of the cross-validation folds.

    Raises:
        InputError: If the samples cannot be used; see `calibration_sets` and `score_set`.
    """
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
    sets = calibration_sets(samples, manifest)
    calibrators = []
    for precision in manifest.precisions:
        with EmotionModel.load(bundle, precision=precision) as model:
            for given in sets:
                for mode in MODES:
                    scores = score_set(model, given, mode)
                    calibrators.append(fit_on_scores(model, given, scores, mode, fitted_on=fitted_on, seed=seed))
    replace_calibration(bundle, calibrators)
    return calibrators


def _checked_set(name: str, samples: list[Sample], manifest: Manifest) -> CalibrationSet:
    """Returns the samples of one taxonomy, if a calibrator can be fitted on them."""
    labels = samples[0].resolve().labels
    named = TAXONOMIES[name].labels if name in TAXONOMIES else manifest.taxonomies.get(name, labels)
    for sample in samples:
        other = sample.resolve().labels
        if other != named:
            raise InputError(
                f"sample {sample.id}: taxonomy {name} has the labels {', '.join(other)}, but elsewhere "
                f"{', '.join(named)}, in this order; give other labels another taxonomy name"
            )
    targets = [sample.distribution() for sample in samples]
    blank = [sample.id for sample, target in zip(samples, targets, strict=True) if target is None]
    if blank:
        raise InputError(
            f"{len(blank)} of {len(samples)} samples of {name} have neither votes nor an answer, the first is "
            f"{blank[0]}; label them or take them out"
        )
    known = np.array(targets, dtype=np.float64)
    least = minimum_samples(len(labels))
    counts = known.sum(axis=0)
    if len(samples) < least or counts.min() < FOLDS:
        found = ", ".join(f"{label} {count:g}" for label, count in zip(labels, counts.round(1), strict=True))
        raise InputError(
            f"a calibrator for the {len(labels)} labels of {name} needs at least {least} images, and {FOLDS} for each "
            f"label; found {len(samples)}: {found}. Label more images, or leave rare labels out of the set"
        )
    return CalibrationSet(
        taxonomy=Taxonomy(name=name, labels=labels), images=tuple(sample.image for sample in samples), targets=known
    )
