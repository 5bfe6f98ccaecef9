"""What quantisation does to probabilities that are held against labels: graphs and model on the same images."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from emocaliber.evaluate.bundle_fitting import CalibrationSet, score_set
from emocaliber.evaluate.intervals import bootstrap_mean, bootstrap_statistic, paired_difference
from emocaliber.evaluate.metrics import brier_losses, expected_calibration_error, kl_losses
from emocaliber.evaluate.records import Interval
from emocaliber.runtime.bundle import CALIBRATION_NAME, Bundle
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.engine import Engine
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.parity import Estimate, LabelledFigures, LabelledParity
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.taxonomy import Taxonomy
from emocaliber.runtime.tokenization import PromptTokenizer

from .probes import probe_of
from .reference import cached_label_scores

Floats = npt.NDArray[np.float64]


def labelled_sets(samples: Iterable[Sample], limit: int | None = None) -> list[CalibrationSet]:
    """Returns the samples that have votes or an answer by taxonomy, of each at most ``limit``, evenly spaced.

    Raises:
        InputError: If a taxonomy has fewer than two of them, or samples with different labels, or there is none at all.
    """
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.distribution() is not None:
            found.setdefault(sample.taxonomy, []).append(sample)
    sets = []
    for name, group in found.items():
        count = len(group) if limit is None else min(limit, len(group))
        kept = [group[place] for place in np.linspace(0, len(group) - 1, count).round().astype(int)]
        labels = {sample.resolve().labels for sample in kept}
        if len(kept) < 2 or len(labels) > 1:
            raise InputError(
                f"{len(kept)} labelled samples of {name} with {len(labels)} label sets; at least two samples with the "
                "same labels, in the same order, are needed"
            )
        targets = np.array([sample.distribution() for sample in kept], dtype=np.float64)
        images = tuple(sample.image for sample in kept)
        sets.append(CalibrationSet(taxonomy=Taxonomy(name=name, labels=labels.pop()), images=images, targets=targets))
    if not sets:
        raise InputError("no sample has votes or an answer; choose another --split, or give labelled samples")
    return sets


class LabelledComparison:
    """Holds the model's scores of the labelled images, computed once for all precisions and engines."""

    def __init__(self, model: Any, bundle: Bundle, sets: Sequence[CalibrationSet], source: str) -> None:
        """Runs the model, with a progress bar on standard error.

        Args:
            model: The transformers model, in evaluation mode.
            bundle: The bundle.
            sets: The images.
            source: What they are, in words.

        Raises:
            InputError: If an image cannot be read.
        """
        self._bundle = bundle
        self._sets = sets
        self._source = source
        self._scores = [_torch_scores(model, bundle, given) for given in sets]

    def compare(self, engine: Engine, precision: str) -> list[LabelledParity]:
        """Returns how one precision on one engine compares, for each set.

        Raises:
            InputError: If a score is not finite.
        """
        if not self._sets:
            return []
        model = EmotionModel(self._bundle, precision=precision, engine=engine)
        return [
            self._compared(model, given, scores, score_set(model, given, "direct").label_scores)
            for given, scores in zip(self._sets, self._scores, strict=True)
        ]

    def _compared(self, model: EmotionModel, given: CalibrationSet, torch: Floats, graphs: Floats) -> LabelledParity:
        calibrator = self._bundle.calibrator(given.taxonomy.name, "direct", model.precision)
        if calibrator is not None and calibrator.labels != given.taxonomy.labels:
            calibrator = None
        pair = []
        for scores in (torch, graphs):
            raw = softmax(scores) if calibrator is None else calibrator.probabilities(scores)
            pair.append(raw if calibrator is None else calibrator.with_confidence(raw, None))
        return LabelledParity(
            taxonomy=given.taxonomy.name,
            precision=model.precision,
            engine=model.engine,
            n=len(given.images),
            source=self._source,
            calibration=None if calibrator is None else self._bundle.manifest.files[CALIBRATION_NAME].sha256,
            torch=_figures(pair[0], given.targets),
            graphs=_figures(pair[1], given.targets),
            difference=_differences(pair[0], pair[1], given.targets),
            kl_drift=_estimate(bootstrap_mean(np.maximum(kl_losses(*pair), 0.0))),
        )


def _torch_scores(model: Any, bundle: Bundle, given: CalibrationSet) -> Floats:
    tokenizer = PromptTokenizer(bundle.path("tokenizer.json"))
    title = f"scoring {given.taxonomy.name} (torch)"
    scores = []
    for path in tqdm(given.images, desc=title, unit="image", file=sys.stderr, leave=False, disable=None):
        pixels = bundle.manifest.preprocessing.apply(decode_image(path))
        probe = probe_of(bundle, tokenizer, pixels, given.taxonomy.labels)
        scores.append(cached_label_scores(model, probe.tokens, probe.answers, probe.pixels))
    return np.array(scores)


def _top(probabilities: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Returns (N,) the probability of the most probable label, and its share of the votes."""
    rows, top = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    return probabilities[rows, top], targets[rows, top]


def _losses(probabilities: Floats, targets: Floats) -> dict[str, Floats]:
    """Returns the figures that are means over images, image by image."""
    return {
        "accuracy": (probabilities.argmax(axis=1) == targets.argmax(axis=1)).astype(np.float64),
        "kl": kl_losses(targets, probabilities),
        "brier": brier_losses(*_top(probabilities, targets)),
    }


def _figures(probabilities: Floats, targets: Floats) -> LabelledFigures:
    means = {name: float(values.mean()) for name, values in _losses(probabilities, targets).items()}
    return LabelledFigures(ece=expected_calibration_error(*_top(probabilities, targets)), **means)


def _differences(torch: Floats, graphs: Floats, targets: Floats) -> dict[str, Estimate]:
    before, after = _losses(torch, targets), _losses(graphs, targets)
    made = {name: paired_difference(before[name], after[name]) for name in before}
    tops = _top(torch, targets), _top(graphs, targets)

    def ece(rows: npt.NDArray[np.int64]) -> float:
        old, new = (expected_calibration_error(confidence[rows], correct[rows]) for confidence, correct in tops)
        return new - old

    error = bootstrap_statistic(ece, len(targets), recentred=True)
    assert error is not None  # defined on any images
    return {name: _estimate(interval) for name, interval in {**made, "ece": error}.items()}


def _estimate(interval: Interval) -> Estimate:
    return Estimate(estimate=interval.estimate, low=interval.low, high=interval.high)
