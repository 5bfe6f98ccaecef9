"""Prediction sets with a promised coverage: adaptive prediction sets, plain (APS) or regularised (RAPS).

This module only applies thresholds that were fitted on held-out data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError, InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformal:
    """Thresholds of the prediction sets of one taxonomy, mode and precision.

    APS is Romano, Sesia and Candès 2020, RAPS is Angelopoulos, Bates, Malik and Jordan 2021; both not randomised.
    """

    method: Literal["aps", "raps"]
    """How a label's score is computed; see `conformal_scores`."""
    penalty: float = 0.0
    """RAPS: what each label after the free ones adds to the score; 0 for APS."""
    free: int = 1
    """RAPS: number of labels without a penalty, at least one."""
    coverages: tuple[float, ...]
    """Coverages that were fitted, in (0, 1), increasing."""
    thresholds: tuple[float, ...]
    """For each coverage, the largest score a label of the set may have, >= 0."""
    sizes: dict[str, float] = field(default_factory=dict)
    """Mean number of labels in the sets of each method tried, on held-out folds at equal coverage."""

    def __post_init__(self) -> None:
        numbers = (*self.coverages, *self.thresholds, self.penalty, *self.sizes.values())
        if not all(math.isfinite(number) for number in numbers):
            raise ArtifactError("conformal coverages and thresholds hold a number that is not finite")
        if not self.coverages or len(self.coverages) != len(self.thresholds):
            raise ArtifactError(
                f"conformal has {len(self.coverages)} coverages and {len(self.thresholds)} thresholds, "
                "expected as many of both and at least one"
            )
        if not all(0.0 < c < 1.0 for c in self.coverages) or list(self.coverages) != sorted(set(self.coverages)):
            raise ArtifactError(f"conformal coverages {self.coverages} are not increasing numbers in (0, 1)")
        if self.free < 1 or self.penalty < 0 or (self.method == "raps") != (self.penalty > 0):
            raise ArtifactError(f"conformal {self.method} has penalty {self.penalty} and {self.free} free labels")
        highest = 1.0 if self.method == "aps" else math.inf
        if not all(0.0 <= t <= highest for t in self.thresholds) or list(self.thresholds) != sorted(self.thresholds):
            raise ArtifactError(f"conformal thresholds {self.thresholds} do not rise from 0 to at most {highest:g}")

    def threshold(self, coverage: float) -> float:
        """Returns the threshold of the smallest fitted coverage >= ``coverage``; infinity above the largest."""
        for fitted, threshold in zip(self.coverages, self.thresholds, strict=True):
            if fitted >= coverage - 1e-12:
                return threshold
        return math.inf

    def scores(self, probabilities: Floats) -> Floats:
        """Returns the score of every label by this method; see `conformal_scores`."""
        return conformal_scores(probabilities, self.penalty, self.free)


def conformal_scores(probabilities: Floats, penalty: float = 0.0, free: int = 1) -> Floats:
    """Returns for each label ``(total probability of the labels before it) + penalty * max(0, rank - free)``.

    Labels are ranked from 1 by falling probability, ties by their order in the list, so the top label has the score 0
    and is in every set.

    Args:
        probabilities: (N, K) or (K,); the scores have the same shape.
        penalty: RAPS's lambda, >= 0; 0 is APS.
        free: RAPS's k_reg, the number of labels without a penalty.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    before = np.zeros_like(ordered)
    np.cumsum(ordered[..., :-1], axis=-1, out=before[..., 1:])
    ranks = np.arange(1, values.shape[-1] + 1)
    scores = np.empty_like(before)
    np.put_along_axis(scores, order, np.minimum(before, 1.0) + penalty * np.maximum(0, ranks - free), axis=-1)
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
    if conformal is None:
        inside = conformal_scores(values) < coverage
    else:
        inside = conformal.scores(values) <= conformal.threshold(coverage)
    return tuple(int(k) for k in np.argsort(-values, kind="stable") if inside[k])
