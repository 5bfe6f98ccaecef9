"""Metrics of label distributions and of confidences: pure functions on numpy arrays.

Distribution metrics take ``probs`` (N, K), rows that sum to one, against ``labels`` (N,), positions of the right
labels, or against a true distribution (N, K). Confidence metrics take ``confidence`` (N,) in [0, 1] against ``correct``
(N,) in [0, 1]: 0 or 1 where the truth is one label, or the probability of being right where votes or a known posterior
give one. With fractional values each metric is its expectation over that chance, so hard labels are the special case.

Every function raises `InputError` for empty, unequal or not finite arrays.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.errors import InputError

from .records import ReliabilityBins

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Binning = Literal["width", "mass"]

_TINY = 1e-12
_SUM_TOLERANCE = 1e-3


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Returns the share of rows whose most probable label is the right one, in [0, 1]; ties go to the first label."""
    p = as_distributions(probs)
    return float(np.mean(p.argmax(axis=1) == as_labels(labels, p)))


def bayes_accuracy(posterior: ArrayLike) -> float:
    """Returns the accuracy of the best possible classifier, in [0, 1]: the mean of the largest true probability.

    Args:
        posterior: (N, K), the true distribution of every row.
    """
    return float(as_distributions(posterior).max(axis=1).mean())


def kl_divergence(p_true: ArrayLike, p_pred: ArrayLike) -> float:
    """Returns the mean of ``sum_k p_k ln(p_k / q_k)`` in nats (Kullback and Leibler 1951), >= 0 up to rounding.

    ``0 ln 0`` is 0; predicted probabilities are clipped at 1e-12 from below.

    Args:
        p_true: (N, K), p.
        p_pred: (N, K), q.
    """
    return float(kl_losses(p_true, p_pred).mean())


def kl_losses(p_true: ArrayLike, p_pred: ArrayLike) -> Floats:
    """Returns (N,) the divergences whose mean is `kl_divergence`, for paired comparisons."""
    p, q = as_pair(p_true, p_pred)
    return _kl_rows(p, np.maximum(q, _TINY))


def js_divergence(p_true: ArrayLike, p_pred: ArrayLike) -> float:
    """Returns the mean Jensen-Shannon divergence in nats, in [0, ln 2] (Lin 1991).

    ``(KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2``, arguments as for `kl_divergence`.
    """
    p, q = as_pair(p_true, p_pred)
    middle = (p + q) / 2
    return float((_kl_rows(p, middle) + _kl_rows(q, middle)).mean() / 2)


def negative_log_likelihood(probs: ArrayLike, labels: ArrayLike) -> float:
    """Returns the mean of ``-ln p(right label)`` in nats, >= 0; probabilities are clipped at 1e-12 from below.

    Args:
        probs: (N, K), predicted.
        labels: (N,) positions, or (N, K) a true distribution, which gives the cross-entropy to it.
    """
    p = as_distributions(probs)
    return float(-(as_targets(labels, p) * np.log(np.maximum(p, _TINY))).sum(axis=1).mean())


def multiclass_brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Returns the mean of ``sum_k (p_k - y_k)^2``, in [0, 2], y one-hot (Brier 1950).

    Args:
        probs: (N, K), predicted.
        labels: (N,) positions, or (N, K) a true distribution, which gives the expectation over labels drawn from it.
    """
    p = as_distributions(probs)
    targets = as_targets(labels, p)
    return float(((p**2).sum(axis=1) - 2 * (p * targets).sum(axis=1) + 1.0).mean())


def f1_scores(predicted: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Returns the macro and the weighted F1, both in [0, 1].

    ``F1_k = 2 TP_k / (2 TP_k + FP_k + FN_k)``; macro is the mean over labels that occur among the right or the
    predicted ones, weighted is the mean weighted by how often each label is right (van Rijsbergen 1979).

    Args:
        predicted: (N,) positions; -1 where there is no answer, which counts as a miss of the right label only.
        labels: (N,) positions of the right labels.
    """
    answered, right = np.asarray(predicted, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    if answered.shape != right.shape or right.ndim != 1 or not right.size:
        raise InputError(f"predicted has shape {answered.shape}, labels {right.shape}; expected (N,) both, N >= 1")
    classes = np.union1d(right, answered[answered >= 0])
    hits = np.array([np.sum((right == k) & (answered == k)) for k in classes], dtype=np.float64)
    support = np.array([np.sum(right == k) for k in classes], dtype=np.float64)
    predictions = np.array([np.sum(answered == k) for k in classes], dtype=np.float64)
    scores = 2 * hits / (support + predictions)
    return float(scores.mean()), float((scores * support).sum() / support.sum())


def brier_score(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Returns the mean of ``(c - correct)^2``, in [0, 1] (Brier 1950).

    For a chance q of being right this is its expectation ``q (1 - c)^2 + (1 - q) c^2``.
    """
    return float(brier_losses(confidence, correct).mean())


def brier_losses(confidence: ArrayLike, correct: ArrayLike) -> Floats:
    """Returns (N,) the (expected) squared errors whose mean is `brier_score`, for paired comparisons."""
    c, q = as_confidences(confidence, correct)
    losses: Floats = q * (1 - c) ** 2 + (1 - q) * c**2
    return losses


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15, binning: Binning = "width"
) -> float:
    """Returns ``sum_b n_b / N |mean correct_b - mean confidence_b|``, in [0, 1] (Naeini et al. 2015; Guo et al. 2017).

    Bins are closed: the first holds both its ends, every other its upper end, so that 0 and 1 are counted.

    Args:
        confidence: (N,), in [0, 1].
        correct: (N,), in [0, 1].
        n_bins: Number of bins, not of edges.
        binning: ``width`` for bins of equal width, ``mass`` for bins of equal count; equal confidences are never split.
    """
    bins = reliability_curve(confidence, correct, n_bins=n_bins, binning=binning)
    return float((bins.count * np.abs(bins.correct - bins.confidence)).sum() / bins.count.sum())


def reliability_curve(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15, binning: Binning = "width"
) -> ReliabilityBins:
    """Returns the bins of a reliability diagram that hold at least one sample; arguments as for the ECE.

    Raises:
        InputError: Also if ``n_bins`` is below one.
    """
    c, q = as_confidences(confidence, correct)
    index, edges = bin_positions(c, n_bins=n_bins, binning=binning)
    upper = edges[1:]
    count = np.bincount(index, minlength=len(upper))
    used = count > 0
    return ReliabilityBins(
        lower=edges[:-1][used],
        upper=upper[used],
        count=count[used].astype(np.int64),
        confidence=np.bincount(index, weights=c, minlength=len(upper))[used] / count[used],
        correct=np.bincount(index, weights=q, minlength=len(upper))[used] / count[used],
    )


def bin_positions(confidence: Floats, *, n_bins: int = 15, binning: Binning = "width") -> tuple[Ints, Floats]:
    """Returns the position of the bin of each confidence (N,), and the edges (B + 1,); arguments as for the ECE.

    Raises:
        InputError: If ``n_bins`` is below one.
    """
    if n_bins < 1:
        raise InputError(f"n_bins is {n_bins}, expected at least 1")
    # i / n and not linspace: the edges a reader would write down, so that 0.6 falls into the bin that ends at 0.6.
    edges = np.arange(n_bins + 1, dtype=np.float64) / n_bins
    if binning == "mass":
        # Upper ends only are made unique: where many share the lowest confidence, they are a bin of their own.
        ends = np.unique(np.quantile(confidence, edges[1:], method="inverted_cdf"))
        edges = np.concatenate([[confidence.min()], ends])
    index = np.minimum(np.searchsorted(edges[1:], confidence, side="left"), len(edges) - 2)
    return index.astype(np.int64), edges


def half_open_positions(confidence: Floats, *, n_bins: int = 10) -> Ints:
    """Returns the bin ``[low, high)`` of each confidence (N,), edges by ``linspace``; -1 for 1.0, which is in none."""
    index = np.searchsorted(np.linspace(0, 1, n_bins + 1), confidence, side="right") - 1
    return np.where(index < n_bins, index, -1).astype(np.int64)


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float | None:
    """Returns the chance that a right answer has a higher confidence than a wrong one, ties half; None if undefined.

    Area under the ROC curve of confidence as a detector of correctness (Hanley and McNeil 1982). For fractional
    ``correct`` q: ``sum_{i != j} q_i (1 - q_j) [c_i > c_j] / sum_{i != j} q_i (1 - q_j)``, ties counted half. It is
    undefined where no pair of a right and a wrong answer exists.
    """
    c, q = as_confidences(confidence, correct)
    _, group = np.unique(c, return_inverse=True)
    right, wrong = np.bincount(group, weights=q), np.bincount(group, weights=1 - q)
    own = float((q * (1 - q)).sum())
    pairs = float(right.sum() * wrong.sum()) - own
    if pairs <= _TINY:
        return None
    below = np.concatenate([[0.0], np.cumsum(wrong)[:-1]])
    wins = float((right * (below + wrong / 2)).sum()) - own / 2
    return min(max(wins / pairs, 0.0), 1.0)


def set_coverage(sets: ArrayLike, labels: ArrayLike) -> float:
    """Returns how often the right label is in the prediction set, in [0, 1].

    Args:
        sets: (N, K) booleans, which labels are in the set.
        labels: (N,) positions, or (N, K) a true distribution, which gives the expectation over labels drawn from it.
    """
    members = _sets(sets)
    return float((members * as_targets(labels, members)).sum(axis=1).mean())


def mean_set_size(sets: ArrayLike) -> float:
    """Returns the mean number of labels in the prediction sets, in [0, K]; ``sets`` (N, K) booleans."""
    return float(_sets(sets).sum(axis=1).mean())


def as_distributions(probs: ArrayLike) -> Floats:
    """Returns (N, K) float64 rows that sum to one.

    Raises:
        InputError: If the array is not of that shape, is empty, not finite, negative, or rows miss one by over 0.001.
    """
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim != 2 or not p.shape[0] or p.shape[1] < 2:
        raise InputError(f"probabilities have shape {p.shape}, expected (N, K) with N >= 1 and K >= 2")
    if not np.isfinite(p).all() or (p < 0).any():
        raise InputError("probabilities hold a number that is negative or not finite")
    worst = float(np.abs(p.sum(axis=1) - 1.0).max())
    if worst > _SUM_TOLERANCE:
        raise InputError(f"probabilities of a row miss a sum of one by {worst:.3g}")
    return p


def as_labels(labels: ArrayLike, like: Floats) -> Ints:
    """Returns (N,) int64 label positions for the N rows and K columns of ``like``.

    Raises:
        InputError: If the number of labels is another, or a position is not in 0 to K - 1.
    """
    positions = np.asarray(labels)
    if positions.shape != like.shape[:1] or not np.issubdtype(positions.dtype, np.integer):
        raise InputError(f"labels are {positions.dtype} of shape {positions.shape}, expected {len(like)} positions")
    if (positions < 0).any() or (positions >= like.shape[1]).any():
        raise InputError(f"labels hold a position outside 0 to {like.shape[1] - 1}")
    return positions.astype(np.int64)


def as_targets(labels: ArrayLike, like: Floats) -> Floats:
    """Returns (N, K) true distributions: one-hot for (N,) label positions, (N, K) rows as they are.

    Raises:
        InputError: If the shape fits neither.
    """
    if np.ndim(labels) == 2:
        given = as_distributions(labels)
        if given.shape != like.shape:
            raise InputError(f"true distributions of shape {given.shape}, expected {like.shape}")
        return given
    positions = as_labels(labels, like)
    targets = np.zeros(like.shape, dtype=np.float64)
    targets[np.arange(len(targets)), positions] = 1.0
    return targets


def as_pair(p_true: ArrayLike, p_pred: ArrayLike) -> tuple[Floats, Floats]:
    """Returns both as (N, K) float64 rows that sum to one.

    Raises:
        InputError: If one is not of that form, or the shapes differ.
    """
    p, q = as_distributions(p_true), as_distributions(p_pred)
    if p.shape != q.shape:
        raise InputError(f"distributions of shapes {p.shape} and {q.shape} cannot be compared")
    return p, q


def _kl_rows(p: Floats, q: Floats) -> Floats:
    ratio = np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)
    rows: Floats = (p * np.log(ratio)).sum(axis=1)
    return rows


def as_confidences(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    """Returns both as (N,) float64 in [0, 1].

    Raises:
        InputError: If the shapes differ or are empty, or a number is outside [0, 1].
    """
    c, q = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if c.shape != q.shape or c.ndim != 1 or not c.size:
        raise InputError(f"confidence has shape {c.shape}, correct {q.shape}; expected (N,) both, N >= 1")
    for name, values in (("confidence", c), ("correct", q)):
        if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1 + 1e-9).all()):
            raise InputError(f"{name} holds a number outside [0, 1]")
    return np.minimum(c, 1.0), np.minimum(q, 1.0)


def _sets(sets: ArrayLike) -> Floats:
    members = np.asarray(sets)
    if members.ndim != 2 or members.dtype != np.bool_ or not len(members):
        raise InputError(f"prediction sets are {members.dtype} of shape {members.shape}, expected booleans (N, K)")
    return members.astype(np.float64)
