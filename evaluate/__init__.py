"""Evaluation: metrics, intervals, calibrator fitting, scoring and reports, for predictions from any source."""

from __future__ import annotations

from .fitting import COVERAGES, fit_calibrator, fit_conformal
from .intervals import bootstrap_mean, bootstrap_statistic, paired_difference
from .metrics import (
    accuracy,
    auroc,
    bayes_accuracy,
    brier_losses,
    brier_score,
    expected_calibration_error,
    f1_scores,
    js_divergence,
    kl_divergence,
    mean_set_size,
    multiclass_brier,
    negative_log_likelihood,
    reliability_curve,
    set_coverage,
)
from .records import Comparison, CoverageRow, Example, Interval, ReliabilityBins, ReportData, StageResult
from .report import render_report
from .summary import expected_correctness, summarise

__all__ = [
    "COVERAGES",
    "Comparison",
    "CoverageRow",
    "Example",
    "Interval",
    "ReliabilityBins",
    "ReportData",
    "StageResult",
    "accuracy",
    "auroc",
    "bayes_accuracy",
    "bootstrap_mean",
    "bootstrap_statistic",
    "brier_losses",
    "brier_score",
    "expected_calibration_error",
    "expected_correctness",
    "f1_scores",
    "fit_calibrator",
    "fit_conformal",
    "js_divergence",
    "kl_divergence",
    "mean_set_size",
    "multiclass_brier",
    "negative_log_likelihood",
    "paired_difference",
    "reliability_curve",
    "render_report",
    "set_coverage",
    "summarise",
]
