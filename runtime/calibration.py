"""Calibrators and conformal sets: how raw label scores become probabilities that can be believed.

This module only *applies* what was fitted elsewhere; the fitters share its formulas, so that both sides agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError, ConfigError, InputError
from .files import atomic_write
from .grammar import Mode
from .records import from_mapping, to_mapping
from .strict_json import parse_json

CALIBRATION_SCHEMA = 1
"""Schema version of ``calibration.json``."""

Method = Literal["temperature", "bias", "matrix"]
Floats = NDArray[np.float64]

_LOGIT_EDGE = 1e-6
_TOP_MARGIN = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceFusion:
    """How the confidence a model states and the probability of its top label become one number.

    ``logit(confidence) = intercept + top * logit(p_top) + verbalized * logit(c)``, fitted by logistic regression.
    """

    intercept: float
    """Constant term, in nats."""
    top: float
    """Weight of the top label's log-odds."""
    verbalized: float
    """Weight of the stated confidence's log-odds."""

    def __post_init__(self) -> None:
        _require_finite("confidence fusion", (self.intercept, self.top, self.verbalized))

    def apply(self, probabilities: Floats, verbalized: Floats) -> Floats:
        """Returns (..., K) probabilities: the top label has the fused confidence, the rest keep their proportions.

        The confidence is raised where it has to be for the top label to stay the most probable one.

        Args:
            probabilities: (..., K), rows sum to one.
            verbalized: (...), stated confidences in (0, 1).
        """
        rows = probabilities.reshape(-1, probabilities.shape[-1])
        index = np.arange(len(rows))
        top = rows.argmax(axis=1)
        stated = np.broadcast_to(verbalized, probabilities.shape[:-1]).reshape(-1)
        fused_logits = self.intercept + self.top * _logit(rows[index, top]) + self.verbalized * _logit(stated)
        confidence = 0.5 * (1.0 + np.tanh(0.5 * fused_logits))
        rest = rows.copy()
        rest[index, top] = 0.0
        totals = rest.sum(axis=1, keepdims=True)
        even = np.ones_like(rest) / (rest.shape[1] - 1)
        even[index, top] = 0.0
        rest = np.where(totals > 0, rest / np.where(totals > 0, totals, 1.0), even)
        runner_up = rest.max(axis=1)
        confidence = np.clip(confidence, runner_up / (1.0 + runner_up) + _TOP_MARGIN, 1.0)
        fused = rest * (1.0 - confidence)[:, None]
        fused[index, top] = confidence
        return fused.reshape(probabilities.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformal:
    """Thresholds of the prediction sets (adaptive prediction sets, Romano, Sesia and Candès 2020, not randomised)."""

    method: Literal["aps"]
    """How a label's score is computed; see `conformal_scores`."""
    coverages: tuple[float, ...]
    """Coverages that were fitted, in (0, 1), increasing."""
    thresholds: tuple[float, ...]
    """For each coverage, the largest score a label of the set may have, in [0, 1]; 1 admits every label."""

    def __post_init__(self) -> None:
        _require_finite("conformal coverages and thresholds", (*self.coverages, *self.thresholds))
        if not self.coverages or len(self.coverages) != len(self.thresholds):
            raise ArtifactError(
                f"conformal has {len(self.coverages)} coverages and {len(self.thresholds)} thresholds, "
                "expected as many of both and at least one"
            )
        if not all(0.0 < c < 1.0 for c in self.coverages) or list(self.coverages) != sorted(set(self.coverages)):
            raise ArtifactError(f"conformal coverages {self.coverages} are not increasing numbers in (0, 1)")
        if not all(0.0 <= t <= 1.0 for t in self.thresholds) or list(self.thresholds) != sorted(self.thresholds):
            raise ArtifactError(f"conformal thresholds {self.thresholds} do not rise from 0 to 1")

    def threshold(self, coverage: float) -> float:
        """Returns the threshold of the smallest fitted coverage >= ``coverage``; 1 (every label) above the largest."""
        for fitted, threshold in zip(self.coverages, self.thresholds, strict=True):
            if fitted >= coverage - 1e-12:
                return threshold
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator:
    """A fitted map from one taxonomy's raw scores to probabilities: ``p = softmax(W (s - mean s) / T + b)``.

    Temperature scaling is Guo et al. 2017; with `bias` it is vector scaling without the diagonal, with `weight` matrix
    scaling. Quantisation and mode change the scores, so a calibrator belongs to one taxonomy, mode and precision.
    """

    taxonomy: str
    """Name of the taxonomy it was fitted for."""
    mode: Mode
    """Prediction mode whose scores it takes."""
    precision: str
    """Bundle precision whose scores it takes, such as ``int8``."""
    engine: str
    """Engine that computed the scores it was fitted on."""
    labels: tuple[str, ...]
    """The candidates, in the order of the scores."""
    method: Method
    """Which parameters were fitted: (T), (T, b) or (T, W, b)."""
    temperature: float
    """T > 0."""
    bias: tuple[float, ...]
    """b, one number a label; zeros where unused."""
    weight: tuple[tuple[float, ...], ...] | None = None
    """W, (K, K); None is the identity."""
    confidence: ConfidenceFusion | None = None
    """How a verbalised confidence is taken in; None where it is not."""
    conformal: Conformal
    """Thresholds of the prediction sets."""
    n: int
    """Number of samples it was fitted on."""
    fitted_on: str
    """The samples it was fitted on, in words."""
    log_loss: float
    """Cross-validated log loss of the calibrated probabilities, in nats."""
    candidates: dict[str, float]
    """Cross-validated log loss of every method that was tried."""

    def __post_init__(self) -> None:
        count = len(self.labels)
        rows = () if self.weight is None else self.weight
        where = f"calibrator for {self.taxonomy} ({self.mode}, {self.precision})"
        entries = (entry for row in rows for entry in row)
        _require_finite(where, (self.temperature, self.log_loss, *self.bias, *entries, *self.candidates.values()))
        if count < 2 or len(set(self.labels)) != count:
            raise ArtifactError(f"{where}: {count} labels {self.labels}, expected at least two different ones")
        if self.temperature <= 0:
            raise ArtifactError(f"{where}: temperature is {self.temperature}, expected a number > 0")
        if self.n < 1:
            raise ArtifactError(f"{where}: fitted on {self.n} samples, expected at least one")
        if len(self.bias) != count:
            raise ArtifactError(f"{where}: {len(self.bias)} biases for {count} labels")
        if self.weight is not None and (len(rows) != count or any(len(row) != count for row in rows)):
            raise ArtifactError(f"{where}: weight is not {count} x {count}")
        if (self.method == "matrix") != (self.weight is not None):
            raise ArtifactError(f"{where}: method {self.method} with weight {'set' if rows else 'missing'}")
        if self.method == "temperature" and any(self.bias):
            raise ArtifactError(f"{where}: method temperature has a bias that is not zero")

    def probabilities(self, scores: Floats) -> Floats:
        """Returns (..., K) float64 probabilities for (..., K) raw label scores in nats.

        Raises:
            InputError: If the scores are of another number of labels.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.shape[-1:] != (len(self.labels),):
            raise InputError(f"scores have shape {values.shape}, the calibrator has {len(self.labels)} labels")
        return scaled_probabilities(values, self.temperature, self.bias, self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFile:
    """What ``calibration.json`` holds."""

    schema_version: int
    """`CALIBRATION_SCHEMA`."""
    calibrators: tuple[Calibrator, ...]
    """At most one for each taxonomy, mode and precision."""

    def __post_init__(self) -> None:
        if self.schema_version != CALIBRATION_SCHEMA:
            raise ArtifactError(
                f"calibration schema_version is {self.schema_version}, this version reads {CALIBRATION_SCHEMA}"
            )
        keys = [(c.taxonomy, c.mode, c.precision) for c in self.calibrators]
        double = sorted({key for key in keys if keys.count(key) > 1})
        if double:
            raise ArtifactError(f"more than one calibrator for {double}")


def scaled_probabilities(
    scores: Floats, temperature: float, bias: Sequence[float], weight: Sequence[Sequence[float]] | None = None
) -> Floats:
    """Returns ``softmax(W (s - mean s) / T + b)``, (..., K) float64, for scores s of that shape; W None is identity."""
    centred = scores - scores.mean(axis=-1, keepdims=True)
    if weight is not None:
        centred = centred @ np.asarray(weight, dtype=np.float64).T
    return softmax(centred / temperature + np.asarray(bias, dtype=np.float64))


def softmax(scores: Floats) -> Floats:
    """Returns (..., K) float64 probabilities proportional to ``exp(scores)`` along the last axis."""
    values = np.asarray(scores, dtype=np.float64)
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


def conformal_scores(probabilities: Floats) -> Floats:
    """Returns for each label, in [0, 1], the total probability of the labels that come before it: 0 for the top label.

    Labels are ordered by falling probability, ties by their order in the list. Shape as given, (N, K) or (K,).
    """
    values = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    before = np.zeros_like(ordered)
    np.cumsum(ordered[..., :-1], axis=-1, out=before[..., 1:])
    scores = np.empty_like(before)
    np.put_along_axis(scores, order, np.minimum(before, 1.0), axis=-1)
    return scores


def prediction_set(probabilities: Sequence[float], coverage: float, conformal: Conformal | None) -> tuple[int, ...]:
    """Returns the positions of the labels in the set, most probable first; never empty.

    Without fitted thresholds the set is the fewest labels whose probabilities sum to ``coverage``, which promises
    nothing about how often the truth is inside.

    Raises:
        InputError: If ``coverage`` is not in (0, 1).
    """
    if not 0.0 < coverage < 1.0:
        raise InputError(f"coverage is {coverage!r}, expected a number between 0 and 1, both excluded")
    values = np.asarray(probabilities, dtype=np.float64)
    scores = conformal_scores(values)
    inside = scores < coverage if conformal is None else scores <= conformal.threshold(coverage)
    return tuple(int(k) for k in np.argsort(-values, kind="stable") if inside[k])


def read_calibrators(path: Path) -> tuple[Calibrator, ...]:
    """Returns the calibrators of a ``calibration.json``.

    Raises:
        ArtifactError: If it cannot be read, is of another schema version, or holds anything unexpected or not finite.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text: {error}") from error
    try:
        return from_mapping(CalibrationFile, parse_json(text, path.name), path.name).calibrators
    except ConfigError as error:
        raise ArtifactError(str(error)) from error


def write_calibrators(calibrators: Iterable[Calibrator], path: Path) -> None:
    """Writes a ``calibration.json``, atomically.

    Raises:
        ArtifactError: If two calibrators are for the same taxonomy, mode and precision.
    """
    record = CalibrationFile(schema_version=CALIBRATION_SCHEMA, calibrators=tuple(calibrators))
    atomic_write(path, json.dumps(to_mapping(record), indent=1, allow_nan=False) + "\n")


def _logit(probabilities: Floats) -> Floats:
    clipped = np.clip(probabilities, _LOGIT_EDGE, 1.0 - _LOGIT_EDGE)
    result: Floats = np.log(clipped) - np.log1p(-clipped)
    return result


def _require_finite(where: str, numbers: Iterable[float]) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise ArtifactError(f"{where} holds a number that is not finite")
