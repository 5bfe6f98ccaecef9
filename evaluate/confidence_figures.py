"""The figures of one kind of confidence, beside those of a constant: each task's accuracy as everybody's confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .calibration_metrics import (
    brier_decomposition,
    brier_skill,
    debiased_calibration_error,
    half_open_calibration_error,
    smooth_calibration_error,
)
from .intervals import bootstrap_mean, bootstrap_statistic
from .metrics import auroc, brier_losses, brier_score, expected_calibration_error
from .records import Interval
from .selective import aurc, auroc_within, excess_aurc

Floats = NDArray[np.float64]
Figures = dict[str, float | None]

CONFIDENCE_FIGURES = (
    "ece",
    "ece_paper",
    "ece_equal_mass",
    "ece_debiased",
    "ece_smooth",
    "brier",
    "brier_skill",
    "brier_reliability",
    "brier_resolution",
    "brier_uncertainty",
    "auroc",
    "auroc_within",
    "aurc",
    "e_aurc",
)
"""Names of the figures that `confidence_figures` gives."""


def confidence_figures(confidence: Floats, correct: Floats, tasks: Sequence[str]) -> Figures:
    """Returns `CONFIDENCE_FIGURES` of confidences (N,) against correctness (N,), N >= 1.

    ``brier_skill`` is against the constant of each task, so that telling easy tasks from hard ones is no skill.
    """
    names = np.asarray(tasks)
    parts = brier_decomposition(confidence, correct)
    brier = brier_score(confidence, correct)
    return {
        "ece": expected_calibration_error(confidence, correct),
        "ece_paper": half_open_calibration_error(confidence, correct),
        "ece_equal_mass": expected_calibration_error(confidence, correct, binning="mass"),
        "ece_debiased": debiased_calibration_error(confidence, correct),
        "ece_smooth": smooth_calibration_error(confidence, correct),
        "brier": brier,
        "brier_skill": brier_skill(brier, brier_score(constant_confidence(correct, names), correct)),
        "brier_reliability": parts.reliability,
        "brier_resolution": parts.resolution,
        "brier_uncertainty": parts.uncertainty,
        "auroc": auroc(confidence, correct),
        "auroc_within": auroc_within(confidence, correct, names),
        "aurc": aurc(confidence, correct),
        "e_aurc": excess_aurc(confidence, correct),
    }


def constant_confidence(correct: Floats, tasks: Sequence[str] | NDArray[np.str_]) -> Floats:
    """Returns (N,) the accuracy of each sample's task on these very samples: what knowing only the task is worth."""
    _, group = np.unique(np.asarray(tasks), return_inverse=True)
    rates = np.bincount(group, weights=correct) / np.bincount(group)
    constant: Floats = rates[group]
    return constant


def confidence_intervals(
    confidence: Floats, correct: Floats, tasks: Sequence[str], *, resamples: int = 200
) -> dict[str, list[float]]:
    """Returns 95 % bootstrap intervals, stratified by task, of ``brier``, ``auroc`` and ``ece_smooth`` where defined.

    That of ``ece_smooth`` is recentred, see `bootstrap_statistic`.

    Args:
        confidence: (N,).
        correct: (N,).
        tasks: N names.
        resamples: For the last two, which are left out with 0; the Brier score, a mean, has 2,000.
    """
    intervals = {"brier": list(bootstrap_mean(brier_losses(confidence, correct), strata=tasks).bounds)}
    metrics: dict[str, Callable[[Floats, Floats], float | None]] = {
        "auroc": auroc,
        "ece_smooth": smooth_calibration_error,
    }
    for name, metric in metrics.items() if resamples else ():
        interval = _interval(metric, confidence, correct, tasks, resamples)
        if interval is not None:
            intervals[name] = [min(max(end, 0.0), 1.0) for end in interval.bounds]
    return intervals


def _interval(
    metric: Callable[[Floats, Floats], float | None],
    confidence: Floats,
    correct: Floats,
    tasks: Sequence[str],
    resamples: int,
) -> Interval | None:
    return bootstrap_statistic(
        lambda index: metric(confidence[index], correct[index]),
        len(confidence),
        resamples=resamples,
        strata=tasks,
        recentred=metric is smooth_calibration_error,
    )
