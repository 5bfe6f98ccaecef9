"""More ways to measure calibration than one ECE: other bins, without the bias of bins, without bins, and in parts.

All take ``confidence`` (N,) in [0, 1] and ``correct`` (N,) in [0, 1] as `emocaliber.evaluate.metrics` does, and raise
`InputError` for unusable arrays.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct, idct
from scipy.optimize import brentq

from .metrics import (
    as_confidences,
    as_distributions,
    as_targets,
    brier_score,
    expected_calibration_error,
    reliability_curve,
)

Floats = NDArray[np.float64]

_CELLS = 1024


def half_open_calibration_error(confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 10) -> float:
    """Returns the ECE over bins ``[low, high)``, in [0, 1], as the paper's scripts compute it.

    A confidence of exactly 1 falls into no bin, yet counts in the denominator, so a model that is always surely wrong
    has an error of 0. The edges are NumPy's ``linspace``, whose 0.3, 0.6 and 0.7 lie a rounding error above the decimal
    number: a stated 0.3 falls into the bin below. For comparison with published numbers only.

    Args:
        confidence: (N,), in [0, 1].
        correct: (N,), in [0, 1].
        n_bins: Number of bins.
    """
    c, q = as_confidences(confidence, correct)
    edges = np.linspace(0, 1, n_bins + 1)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (c >= low) & (c < high)
        if inside.any():
            error += abs(float(q[inside].mean()) - float(c[inside].mean())) * float(inside.mean())
    return error


def debiased_calibration_error(confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15) -> float:
    """Returns the debiased root mean square calibration error, in [0, 1] (Kumar et al. 2019; Bröcker 2012).

    ``sqrt(max(0, sum_b n_b / N ((o_b - c_b)^2 - s_b^2 / n_b)))`` over bins of equal count, o_b and c_b the mean
    correctness and confidence, ``s_b^2`` the unbiased sample variance of correctness: what chance alone adds to the
    square is taken off, so that more bins or fewer samples do not raise it. Bins of one sample, whose variance is
    unknown, add nothing.

    Args:
        confidence: (N,), in [0, 1].
        correct: (N,), 0 or 1.
        n_bins: Number of bins.
    """
    bins = reliability_curve(confidence, correct, n_bins=n_bins, binning="mass")
    several = bins.count > 1
    noise = bins.correct * (1 - bins.correct) / np.maximum(bins.count - 1, 1)
    terms = np.where(several, (bins.correct - bins.confidence) ** 2 - noise, 0.0)
    return float(np.sqrt(max(0.0, float((bins.count * terms).sum()) / float(bins.count.sum()))))


def smooth_calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Returns the smooth ECE, in [0, 1] (Błasiok and Nakkiran 2023).

    ``smECE_s = integral_0^1 |1/N sum_i (correct_i - c_i) K_s(t, c_i)| dt`` with K_s the Gaussian of standard deviation
    s reflected at 0 and 1, at the bandwidth s where ``smECE_s = s``: no bins to choose, and a small change of the
    confidences changes it little. Computed on 1,024 cells, where reflected smoothing is a product of cosine transforms.
    """
    c, q = as_confidences(confidence, correct)
    cells = np.minimum((c * _CELLS).astype(np.int64), _CELLS - 1)
    residuals = np.bincount(cells, weights=q - c, minlength=_CELLS) / len(c)
    spectrum = dct(residuals, norm="ortho")
    frequencies = np.pi * np.arange(_CELLS)

    def smoothed(width: float) -> float:
        return float(np.abs(idct(spectrum * np.exp(-((frequencies * width) ** 2) / 2), norm="ortho")).sum())

    # smoothed() falls with the width and is, but for rounding, at most 1: it equals the width once.
    return min(1.0, float(brentq(lambda width: smoothed(width) - width, 0.0, 1.1, xtol=1e-6)))


def classwise_calibration_error(probs: ArrayLike, labels: ArrayLike, *, n_bins: int = 15) -> float:
    """Returns the mean over labels of the ECE of each label's probability, in [0, 1] (Kull et al. 2019).

    Args:
        probs: (N, K), predicted distributions.
        labels: (N,) positions of the right labels, or (N, K) a true distribution.
        n_bins: Number of closed bins of equal width.
    """
    p = as_distributions(probs)
    targets = as_targets(labels, p)
    errors = [expected_calibration_error(p[:, k], targets[:, k], n_bins=n_bins) for k in range(p.shape[1])]
    return float(np.mean(errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class BrierParts:
    """The Brier score in parts: ``reliability - resolution + uncertainty + within`` is the score."""

    reliability: float
    """Squared gap between confidence and accuracy of the bins; 0 is calibrated."""
    resolution: float
    """How far the bins' accuracies spread around the mean; larger is better."""
    uncertainty: float
    """``a (1 - a)`` with a the accuracy: the score of always stating it."""
    within: float
    """What the spread of confidences inside a bin leaves; 0 where each bin holds one value."""


def brier_decomposition(confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 15) -> BrierParts:
    """Returns the parts of the Brier score over bins of equal count (Murphy 1973; `within`: Stephenson et al. 2008)."""
    _, q = as_confidences(confidence, correct)
    bins = reliability_curve(confidence, correct, n_bins=n_bins, binning="mass")
    share = bins.count / bins.count.sum()
    mean = float(q.mean())
    reliability = float((share * (bins.confidence - bins.correct) ** 2).sum())
    resolution = float((share * (bins.correct - mean) ** 2).sum())
    uncertainty = mean * (1 - mean)
    within = brier_score(confidence, correct) - (reliability - resolution + uncertainty)
    return BrierParts(reliability=reliability, resolution=resolution, uncertainty=uncertainty, within=within)


def brier_skill(score: float, reference: float) -> float | None:
    """Returns ``1 - score / reference``: 1 is perfect, 0 no better than the reference; None where that is perfect."""
    return None if reference <= 0 else 1 - score / reference
