"""Whether confidence sorts right from wrong: risk against coverage, and AUROC within tasks.

All take ``confidence`` (N,) in [0, 1] and ``correct`` (N,) in [0, 1], and raise `InputError` for unusable arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.errors import InputError

from .metrics import as_confidences

Floats = NDArray[np.float64]


def risk_coverage_curve(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    """Returns coverage (N,) = 1/N, 2/N, … 1 and the risk (N,): the error rate among the most confident share.

    Equal confidences are taken in random order, of which this is the expectation: a constant confidence gives a flat
    curve, whatever the order of the file.
    """
    c, q = as_confidences(confidence, correct)
    _, group = np.unique(-c, return_inverse=True)
    size = np.bincount(group)
    rate = np.bincount(group, weights=1 - q) / size
    taken = np.arange(1, len(c) + 1)
    risk: Floats = np.cumsum(np.repeat(rate, size)) / taken
    return taken / len(c), risk


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Returns the area under the risk-coverage curve, in [0, 1]: its mean over N coverages (Geifman et al. 2019)."""
    return float(risk_coverage_curve(confidence, correct)[1].mean())


def excess_aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Returns AURC less that of the best order of the same answers, in [0, 1] (E-AURC, Geifman et al. 2019).

    The best order puts all right answers first; its area is computed on these N samples, not by the paper's
    approximation ``r + (1 - r) ln(1 - r)`` for many.
    """
    _, q = as_confidences(confidence, correct)
    best = np.cumsum(np.sort(1 - q)) / np.arange(1, len(q) + 1)
    return aurc(confidence, correct) - float(best.mean())


def auroc_within(confidence: ArrayLike, correct: ArrayLike, tasks: ArrayLike) -> float | None:
    """Returns the AUROC over pairs of a right and a wrong answer *of the same task*, ties half; None without pairs.

    Across tasks, confidence that only tells easy tasks from hard ones already orders pairs; here that earns nothing.

    Args:
        confidence: (N,), in [0, 1].
        correct: (N,), 0 or 1.
        tasks: (N,), the task of each sample.
    """
    c, q = as_confidences(confidence, correct)
    names = np.asarray(tasks)
    if names.shape != c.shape:
        raise InputError(f"tasks have shape {names.shape}, confidence {c.shape}")
    wins = pairs = 0.0
    for task in np.unique(names):
        inside = names == task
        won, counted = _ordered_pairs(c[inside], q[inside])
        wins, pairs = wins + won, pairs + counted
    return wins / pairs if pairs > 0 else None


def _ordered_pairs(c: Floats, q: Floats) -> tuple[float, float]:
    """Returns how many pairs (right, wrong) are in order, ties half, and how many there are."""
    _, group = np.unique(c, return_inverse=True)
    right, wrong = np.bincount(group, weights=q), np.bincount(group, weights=1 - q)
    below = np.concatenate([[0.0], np.cumsum(wrong)[:-1]])
    return float((right * (below + wrong / 2)).sum()), float(right.sum() * wrong.sum())
