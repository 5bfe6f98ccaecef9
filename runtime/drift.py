"""Drift: whether incoming images still look, to the vision encoder, like those the probabilities were calibrated on.

No label is needed. One image gets a p-value from its distance to the calibration images; a window of them is tested by
how far its mean lies from theirs, which tells images of another kind long before any single one is unusual.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError, InputError

Floats = NDArray[np.float64]

UNUSUAL = 0.01
"""Up to this p-value a single image is called unusual, and by default a window of them too."""

_NO_CHANCE = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Where one image lies among the calibration images."""

    p_value: float
    """Share of calibration images, and the image itself, that are as far from the others or further; in (0, 1]."""
    coordinates: tuple[float, ...]
    """Position along the principal directions, from the mean, in standard deviations of the calibration images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReference:
    """The calibration images as the vision encoder sees them: a normal with a few principal directions.

    The squared distance of a feature x is Mahalanobis's under a covariance that is shrunk to one variance outside these
    directions (probabilistic principal components, Tipping and Bishop 1999):
    ``d2 = sum_j (v_j . (x - mean))^2 / variance_j + |what the directions leave of x - mean|^2 / rest``.
    """

    mean: tuple[float, ...]
    """Mean feature, one number a dimension."""
    directions: tuple[tuple[float, ...], ...]
    """v_j, unit vectors, orthogonal, of the length of `mean`; an even number of them."""
    variances: tuple[float, ...]
    """Variance along each direction, > 0."""
    rest: float
    """Variance along every other direction, > 0."""
    images: int
    """Number of calibration images."""
    distances: tuple[float, ...]
    """Squared distances of calibration images, of some where there are many, from a reference made without them,
    increasing."""

    def __post_init__(self) -> None:
        numbers = itertools.chain(self.mean, *self.directions, self.variances, (self.rest,), self.distances)
        if not all(map(math.isfinite, numbers)):
            raise ArtifactError("drift reference holds a number that is not finite")
        count = len(self.directions)
        if not count or count % 2 or count != len(self.variances):
            raise ArtifactError(
                f"drift reference: {count} directions and {len(self.variances)} variances, expected an even number "
                "and as many of both"
            )
        if any(len(row) != len(self.mean) for row in self.directions):
            raise ArtifactError(f"drift reference: a direction has not the {len(self.mean)} dimensions of the mean")
        if min((*self.variances, self.rest)) <= 0:
            raise ArtifactError("drift reference: a variance is not positive")
        if not self.distances or list(self.distances) != sorted(self.distances) or self.images < len(self.distances):
            raise ArtifactError("drift reference: distances are missing, not in increasing order, or more than images")

    def of(self, features: NDArray[np.floating]) -> list[Drift]:
        """Returns where each of N images lies, from (N, D) features.

        The p-value is conformal, ``(1 + #{distances >= d}) / (1 + #distances)``: at most a in a share a of images like
        the calibration images (Bates, Candès, Lei, Romano and Sesia 2023).

        Raises:
            InputError: If the features have another number of dimensions.
        """
        known = np.array(self.distances)
        nearer = np.searchsorted(known, self.squared_distances(features), side="left")
        p_values = (1.0 + len(known) - nearer) / (1.0 + len(known))
        along = self._along(self._centred(features)) / np.sqrt(np.array(self.variances))
        return [
            Drift(p_value=float(p), coordinates=tuple(float(z) for z in row))
            for p, row in zip(p_values, along, strict=True)
        ]

    def squared_distances(self, features: NDArray[np.floating]) -> Floats:
        """Returns (N,) squared distances for (N, D) features.

        Raises:
            InputError: If the features have another number of dimensions.
        """
        centred = self._centred(features)
        along = self._along(centred)
        left = np.maximum(0.0, (centred**2).sum(axis=1) - (along**2).sum(axis=1))
        squared: Floats = (along**2 / np.array(self.variances)).sum(axis=1) + left / self.rest
        return squared

    def _centred(self, features: NDArray[np.floating]) -> Floats:
        values: Floats = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.mean):
            raise InputError(f"features have shape {values.shape}, the drift reference has {len(self.mean)} dimensions")
        centred: Floats = values - np.array(self.mean)
        return centred

    def _along(self, centred: Floats) -> Floats:
        along: Floats = centred @ np.array(self.directions).T
        return along


class DriftGuard:
    """Watches a stream of images: tells when the last ones, as a whole, do not look like the calibration images.

    Of full windows of images like the calibration images, a share `false_alarm_rate` raises an alarm. Overlapping
    windows are tested at each image, so a long stream meets more alarms than one window does.
    """

    def __init__(self, reference: DriftReference, *, window: int = 50, false_alarm_rate: float = UNUSUAL) -> None:
        """Starts with an empty window.

        Args:
            reference: Of the calibrator whose predictions are watched.
            window: Number of last images that are tested together.
            false_alarm_rate: In (0, 1).

        Raises:
            InputError: If an argument is out of range.
        """
        if window < 1 or not 0.0 < false_alarm_rate < 1.0:
            raise InputError(
                f"drift guard with window {window} and false alarm rate {false_alarm_rate}: expected a positive number "
                "of images and a rate between 0 and 1"
            )
        self.reference = reference
        self.window = window
        self.false_alarm_rate = false_alarm_rate
        self._recent: deque[Drift] = deque(maxlen=window)

    def update(self, drift: Drift) -> bool:
        """Takes in the next image's `Prediction.drift` and returns `alarm`.

        Raises:
            InputError: If it has another number of coordinates than the reference has directions.
        """
        if len(drift.coordinates) != len(self.reference.directions):
            raise InputError(
                f"this image has {len(drift.coordinates)} coordinates, the reference {len(self.reference.directions)} "
                "directions: it was predicted with another calibrator"
            )
        self._recent.append(drift)
        return self.alarm

    @property
    def p_value(self) -> float | None:
        """The p-value of the last `window` images together; None until there are as many."""
        return window_p_value(self._recent, self.reference) if len(self._recent) == self.window else None

    @property
    def alarm(self) -> bool:
        """Whether the last `window` images do not look like the calibration images."""
        p_value = self.p_value
        return p_value is not None and p_value <= self.false_alarm_rate


def window_p_value(images: Collection[Drift], reference: DriftReference) -> float:
    """Returns the p-value of n images together: how far their mean lies from that of the m calibration images.

    Two-sample test of the mean along the r principal directions (Hotelling 1931, at many degrees of freedom):
    ``|mean z|^2 / (1 / n + 1 / m)`` is chi-squared with r degrees of freedom for images like the calibration images.

    Args:
        images: At least one.
        reference: The one by which they were placed.

    Raises:
        InputError: If there are no images.
    """
    if not images:
        raise InputError("a window of no images cannot be tested for drift")
    return mean_p_value(np.array([drift.coordinates for drift in images]).mean(axis=0), len(images), reference)


def mean_p_value(mean: Floats, count: int, reference: DriftReference) -> float:
    """Returns `window_p_value` of ``count`` images from the (r,) mean of their coordinates."""
    statistic = float(mean @ mean) / (1.0 / count + 1.0 / reference.images)
    return chi_squared_tail(statistic, len(mean) // 2)


def chi_squared_tail(statistic: float, pairs: int) -> float:
    """Returns ``P(X >= statistic)`` for X chi-squared with ``2 * pairs`` degrees of freedom.

    Its closed form (Erlang): ``exp(-x) sum_{j < pairs} x^j / j!`` with ``x = statistic / 2``.
    """
    half = statistic / 2.0
    if half > _NO_CHANCE:
        return 0.0
    terms = np.cumprod(np.concatenate([[1.0], half / np.arange(1, pairs)]))
    return min(1.0, math.exp(-half) * float(terms.sum()))
