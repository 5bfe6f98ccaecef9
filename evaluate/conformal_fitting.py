"""Fits the prediction sets that `emocaliber.runtime.conformal` applies: thresholds, and APS or RAPS."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.conformal import Conformal, conformal_scores
from emocaliber.runtime.errors import InputError

from .folds import FOLDS, clearly_better

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
"""Coverages for which thresholds are fitted."""

COMPARED_COVERAGE = 0.9
"""Coverage at which the sizes of APS's and RAPS's sets are compared."""

PENALTIES = (0.02, 0.1, 0.5)
"""RAPS penalties among which the held-out set size chooses."""

FREE_LABELS = (1, 2, 3)
"""Numbers of labels without a penalty among which the held-out set size chooses."""


def fit_conformal(
    probabilities: ArrayLike,
    targets: ArrayLike,
    coverages: tuple[float, ...] = COVERAGES,
    *,
    penalty: float = 0.0,
    free: int = 1,
) -> Conformal:
    """Returns thresholds for which prediction sets hold a label drawn from the target at least as often as asked.

    Split conformal prediction (Vovk et al. 2005) with the APS score (Romano et al. 2020), or with a penalty the RAPS
    score (Angelopoulos et al. 2021), without randomisation. Votes are weights: the threshold is the smallest score s
    with ``sum_i sum_y t_iy [score_iy <= s] >= (n + 1) coverage``, the finite-sample quantile; where n is too small for
    it, a threshold that admits every label.

    Args:
        probabilities: (N, K), calibrated, of samples the calibrator was not fitted on.
        targets: (N, K), rows that sum to one.
        coverages: Increasing, in (0, 1).
        penalty: RAPS's lambda; 0 is APS.
        free: RAPS's k_reg.

    Raises:
        InputError: If shapes differ or a number is not finite.
    """
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 2 or not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise InputError(f"conformal thresholds need finite (N, K) arrays, got {p.shape} and {t.shape}")
    flat = conformal_scores(p, penalty, free).ravel()
    order = np.argsort(flat, kind="stable")
    ordered, mass = flat[order], np.cumsum(t.ravel()[order])
    everything = 1.0 + penalty * max(0, p.shape[1] - free)
    thresholds = []
    for coverage in coverages:
        position = int(np.searchsorted(mass, (len(p) + 1) * coverage - 1e-9, side="left"))
        thresholds.append(float(ordered[position]) if position < len(ordered) else everything)
    return Conformal(
        method="raps" if penalty else "aps",
        penalty=penalty,
        free=free,
        coverages=tuple(coverages),
        thresholds=tuple(thresholds),
    )


def choose_conformal(probabilities: Floats, targets: Floats, fold: Ints) -> Conformal:
    """Returns APS or RAPS sets, whichever are smaller at equal coverage on held-out folds.

    Of the RAPS settings the one with the smallest sets stands against APS, and is taken only if it is `clearly_better`.

    Args:
        probabilities: (N, K), calibrated, of samples the calibrator was not fitted on.
        targets: (N, K), rows that sum to one.
        fold: (N,), of `assign_folds`.
    """
    aps = _held_out_sizes(probabilities, targets, fold, 0.0, 1)
    settings = [(penalty, free) for free in FREE_LABELS if free < probabilities.shape[1] for penalty in PENALTIES]
    tried = {setting: _held_out_sizes(probabilities, targets, fold, *setting) for setting in settings}
    best = min(tried, key=lambda setting: float(tried[setting].mean()))
    penalty, free = best if clearly_better(tried[best], aps) else (0.0, 1)
    fitted = fit_conformal(probabilities, targets, penalty=penalty, free=free)
    return Conformal(
        method=fitted.method,
        penalty=fitted.penalty,
        free=fitted.free,
        coverages=fitted.coverages,
        thresholds=fitted.thresholds,
        sizes={"aps": float(aps.mean()), "raps": float(tried[best].mean())},
    )


def _held_out_sizes(probabilities: Floats, targets: Floats, fold: Ints, penalty: float, free: int) -> Floats:
    """Returns (N,) the number of labels in each sample's set, with the threshold of the other folds."""
    sizes = np.empty(len(probabilities))
    for k in range(FOLDS):
        inside, outside = fold == k, fold != k
        coverages = (COMPARED_COVERAGE,)
        fitted = fit_conformal(probabilities[outside], targets[outside], coverages, penalty=penalty, free=free)
        sizes[inside] = (fitted.scores(probabilities[inside]) <= fitted.threshold(COMPARED_COVERAGE)).sum(axis=1)
    return sizes
