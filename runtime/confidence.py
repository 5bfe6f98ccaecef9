"""Confidence maps: from the probability of the top label to how often it is right; the rest keep their proportions.

The label scaling of a calibrator fits the whole distribution; a map fits the one number that is acted upon.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError

Floats = NDArray[np.float64]

PROBABILITY_EDGE = 1e-6
"""Probabilities are clipped to this distance from 0 and 1 before their logarithm is taken."""

_TOP_MARGIN = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceFusion:
    """How the confidence a model states and the probability of its top label become one number.

    ``logit(confidence) = intercept + top * logit(p_top) + verbalized * logit(c)``, fitted by logistic regression.
    """

    kind: Literal["fusion"] = "fusion"
    """Which map this is."""
    intercept: float
    """Constant term, in nats."""
    top: float
    """Weight of the top label's log-odds."""
    verbalized: float
    """Weight of the stated confidence's log-odds."""

    def __post_init__(self) -> None:
        _require_finite("confidence fusion", (self.intercept, self.top, self.verbalized))

    def confidence(self, top: Floats, verbalized: Floats) -> Floats:
        """Returns (N,) confidences in [0, 1] for (N,) probabilities of the top label and (N,) stated confidences."""
        return sigmoid(self.intercept + self.top * logit(top) + self.verbalized * logit(verbalized))


@dataclass(frozen=True, slots=True, kw_only=True)
class BetaConfidence:
    """Beta calibration of the top label (Kull, Silva Filho and Flach 2017).

    ``logit(confidence) = intercept + success * ln p_top - failure * ln(1 - p_top)``: unlike one weight for the
    log-odds, it can bend the two ends apart.
    """

    kind: Literal["beta"] = "beta"
    """Which map this is."""
    intercept: float
    """Constant term, in nats."""
    success: float
    """Weight of ``ln p``, >= 0."""
    failure: float
    """Weight of ``-ln(1 - p)``, >= 0."""

    def __post_init__(self) -> None:
        _require_finite("beta calibration", (self.intercept, self.success, self.failure))
        if min(self.success, self.failure) < 0:
            raise ArtifactError(f"beta calibration has weights {self.success} and {self.failure}, expected both >= 0")

    def confidence(self, top: Floats) -> Floats:
        """Returns (N,) confidences in [0, 1] for (N,) probabilities of the top label."""
        p = np.clip(top, PROBABILITY_EDGE, 1.0 - PROBABILITY_EDGE)
        return sigmoid(self.intercept + self.success * np.log(p) - self.failure * np.log1p(-p))


@dataclass(frozen=True, slots=True, kw_only=True)
class IsotonicConfidence:
    """A rising, piecewise linear map of the top label's probability (Zadrozny and Elkan 2002)."""

    kind: Literal["isotonic"] = "isotonic"
    """Which map this is."""
    tops: tuple[float, ...]
    """Probabilities of the top label at the knots, in [0, 1], increasing; outside, the map is level."""
    confidences: tuple[float, ...]
    """Confidence at each knot, in [0, 1], never falling."""

    def __post_init__(self) -> None:
        _require_finite("isotonic calibration", (*self.tops, *self.confidences))
        if not self.tops or len(self.tops) != len(self.confidences):
            raise ArtifactError(f"isotonic calibration has {len(self.tops)} knots and {len(self.confidences)} values")
        if list(self.tops) != sorted(set(self.tops)) or list(self.confidences) != sorted(self.confidences):
            raise ArtifactError("isotonic calibration: knots must increase, and confidences must not fall")
        if not (self.tops[0] >= 0.0 and self.tops[-1] <= 1.0):
            raise ArtifactError("isotonic calibration: a knot lies outside [0, 1]")
        if not (self.confidences[0] >= 0.0 and self.confidences[-1] <= 1.0):
            raise ArtifactError("isotonic calibration: a confidence lies outside [0, 1]")

    def confidence(self, top: Floats) -> Floats:
        """Returns (N,) confidences in [0, 1] for (N,) probabilities of the top label."""
        values: Floats = np.interp(top, np.array(self.tops), np.array(self.confidences))
        return values


ConfidenceMap = ConfidenceFusion | BetaConfidence | IsotonicConfidence
"""What maps the probability of the top label to the confidence in it; `kind` tells which."""


def map_confidence(mapping: ConfidenceMap, probabilities: Floats, verbalized: Floats | None = None) -> Floats:
    """Returns (..., K) probabilities in which the top label has the mapped confidence.

    Args:
        mapping: The map.
        probabilities: (..., K), rows sum to one.
        verbalized: (...), stated confidences in (0, 1); a fusion needs them, the others take no notice.
    """
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    top = rows.max(axis=1)
    if isinstance(mapping, ConfidenceFusion):
        assert verbalized is not None
        stated = np.broadcast_to(verbalized, probabilities.shape[:-1]).reshape(-1)
        confidence = mapping.confidence(top, stated)
    else:
        confidence = mapping.confidence(top)
    return with_confidence(rows, confidence).reshape(probabilities.shape)


def with_confidence(probabilities: Floats, confidence: Floats) -> Floats:
    """Returns (N, K) probabilities: the top label has the given confidence, the rest keep their proportions.

    The confidence is raised where it has to be for the top label to stay the most probable one.

    Args:
        probabilities: (N, K), rows sum to one.
        confidence: (N,), in [0, 1].
    """
    index = np.arange(len(probabilities))
    top = probabilities.argmax(axis=1)
    rest = probabilities.copy()
    rest[index, top] = 0.0
    totals = rest.sum(axis=1, keepdims=True)
    even = np.ones_like(rest) / (rest.shape[1] - 1)
    even[index, top] = 0.0
    rest = np.where(totals > 0, rest / np.where(totals > 0, totals, 1.0), even)
    runner_up = rest.max(axis=1)
    confidence = np.clip(confidence, runner_up / (1.0 + runner_up) + _TOP_MARGIN, 1.0)
    mapped = rest * (1.0 - confidence)[:, None]
    mapped[index, top] = confidence
    return mapped


def logit(probabilities: Floats) -> Floats:
    """Returns ``ln p - ln(1 - p)``, of p clipped by `PROBABILITY_EDGE`; shape as given."""
    clipped = np.clip(probabilities, PROBABILITY_EDGE, 1.0 - PROBABILITY_EDGE)
    result: Floats = np.log(clipped) - np.log1p(-clipped)
    return result


def sigmoid(logits: Floats) -> Floats:
    """Returns ``1 / (1 + exp(-x))``, without overflow; shape as given."""
    result: Floats = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return result


def _require_finite(where: str, numbers: Iterable[float]) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise ArtifactError(f"{where} holds a number that is not finite")
