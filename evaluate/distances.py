"""Distances and similarities of a predicted and a true label distribution (Geng 2016, label distribution learning).

Each takes ``p_true`` and ``p_pred`` (N, K), rows that sum to one, and returns the mean over rows; ``0 / 0`` is 0. KL
and Jensen-Shannon stand in `emocaliber.evaluate.metrics`. Every function raises `InputError` for unusable arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import as_pair, js_divergence, kl_divergence

Floats = NDArray[np.float64]


def chebyshev_distance(p_true: ArrayLike, p_pred: ArrayLike) -> float:
    """Returns the mean of ``max_k |p_k - q_k|``, in [0, 1]."""
    p, q = as_pair(p_true, p_pred)
    return float(np.abs(p - q).max(axis=1).mean())


def clark_distance(p_true: ArrayLike, p_pred: ArrayLike) -> float:
    """Returns the mean of ``sqrt(sum_k ((p_k - q_k) / (p_k + q_k))^2)``, in [0, sqrt K]."""
    return float(np.sqrt((_relative(p_true, p_pred) ** 2).sum(axis=1)).mean())


def canberra_distance(p_true: ArrayLike, p_pred: ArrayLike) -> float:
    """Returns the mean of ``sum_k |p_k - q_k| / (p_k + q_k)``, in [0, K]."""
    return float(_relative(p_true, p_pred).sum(axis=1).mean())


def cosine_similarity(p_true: ArrayLike, p_pred: ArrayLike) -> float:
    """Returns the mean cosine of the angle between both, in [0, 1]; 1 is equal."""
    p, q = as_pair(p_true, p_pred)
    lengths = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
    return float(((p * q).sum(axis=1) / lengths).mean())


def intersection_similarity(p_true: ArrayLike, p_pred: ArrayLike) -> float:
    """Returns the mean of ``sum_k min(p_k, q_k)``, in [0, 1]; 1 is equal."""
    p, q = as_pair(p_true, p_pred)
    return float(np.minimum(p, q).sum(axis=1).mean())


DISTANCES = {
    "kl": kl_divergence,
    "js": js_divergence,
    "chebyshev": chebyshev_distance,
    "clark": clark_distance,
    "canberra": canberra_distance,
    "cosine": cosine_similarity,
    "intersection": intersection_similarity,
}
"""Name in the figures to function, true distribution first; lower is better but for the last two."""


def _relative(p_true: ArrayLike, p_pred: ArrayLike) -> Floats:
    p, q = as_pair(p_true, p_pred)
    total = p + q
    relative: Floats = np.abs(p - q) / np.where(total > 0, total, 1.0)
    return relative
