"""Fits the drift reference that `emocaliber.runtime.drift` applies."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.drift import DriftReference
from emocaliber.runtime.errors import InputError

from .folds import FOLDS, assign_folds

Floats = NDArray[np.float64]

DIRECTIONS = 16
"""Most principal directions that are kept, an even number; fewer where there are not 25 images for each."""

MAX_DISTANCES = 500
"""Most held-out distances that are kept: the smallest p-value is ``1 / 501``."""

_IMAGES_A_DIRECTION = 25
_FLOOR = 1e-6
_DIGITS = 7


def fit_drift(features: ArrayLike, seed: int = 0) -> DriftReference:
    """Returns the reference of these images: principal directions, and the distances of images held out.

    Each image's distance is from a reference made of the other folds, as that of a new image is.

    Args:
        features: (N, D), of the vision encoder, mean over its positions.
        seed: Of the folds and of the choice of distances.

    Raises:
        InputError: If a number is not finite, there are too few images, or all look the same.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2 * _IMAGES_A_DIRECTION or x.shape[1] < 3 or not np.isfinite(x).all():
        raise InputError(
            f"a drift reference needs finite features (N, D), N >= {2 * _IMAGES_A_DIRECTION}, D >= 3, got {x.shape}"
        )
    fold = assign_folds(len(x), seed)
    held_out = np.empty(len(x))
    for k in range(FOLDS):
        held_out[fold == k] = _reference(x[fold != k], len(x), (0.0,)).squared_distances(x[fold == k])
    kept = np.random.default_rng(seed).permutation(held_out)[:MAX_DISTANCES]
    return _reference(x, len(x), _rounded(np.sort(kept)))


def _reference(x: Floats, images: int, distances: tuple[float, ...]) -> DriftReference:
    """Returns as many principal directions as ``images`` allow, the rest of the variance spread evenly."""
    count = min(DIRECTIONS, x.shape[1] - 1, images // _IMAGES_A_DIRECTION) // 2 * 2
    mean = x.mean(axis=0)
    _, singular, directions = np.linalg.svd(x - mean, full_matrices=False)
    variances = singular**2 / (len(x) - 1)
    total = float(variances.sum())
    if total <= np.finfo(np.float64).eps * float(mean @ mean + 1.0):
        raise InputError("all calibration images look the same to the vision encoder; give different images")
    floor = _FLOOR * total / x.shape[1]
    rest = float(variances[count:].sum()) / (x.shape[1] - count)
    return DriftReference(
        mean=_rounded(mean),
        directions=tuple(_rounded(row) for row in directions[:count]),
        variances=_rounded(np.maximum(variances[:count], floor)),
        rest=_rounded(np.array([max(rest, floor)]))[0],
        images=images,
        distances=distances,
    )


def _rounded(values: NDArray[np.floating]) -> tuple[float, ...]:
    """Returns the numbers to seven digits, so that the file stays small."""
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
