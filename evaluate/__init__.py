"""Evaluation: metrics, intervals, calibrator fitting, scoring and reports, for predictions from any source."""

from __future__ import annotations

from .calibration_metrics import (
    BrierParts,
    brier_decomposition,
    brier_skill,
    classwise_calibration_error,
    debiased_calibration_error,
    half_open_calibration_error,
    smooth_calibration_error,
)
from .conformal_fitting import COVERAGES, fit_conformal
from .distances import (
    canberra_distance,
    chebyshev_distance,
    clark_distance,
    cosine_similarity,
    intersection_similarity,
)
from .drift_fitting import fit_drift
from .fitting import cross_fitted, fit_calibrator, minimum_samples
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
from .official import score_official
from .records import Comparison, CoverageRow, Example, Interval, ReliabilityBins, ReportData, StageResult
from .report import render_report
from .responses import ResponseLine, read_responses
from .scoring import score_strict, score_strict_responses
from .selective import aurc, auroc_within, excess_aurc, risk_coverage_curve
from .summary import expected_correctness, summarise

__all__ = [
    "BrierParts",
    "COVERAGES",
    "Comparison",
    "CoverageRow",
    "Example",
    "Interval",
    "ReliabilityBins",
    "ReportData",
    "ResponseLine",
    "StageResult",
    "accuracy",
    "aurc",
    "auroc",
    "auroc_within",
    "bayes_accuracy",
    "bootstrap_mean",
    "bootstrap_statistic",
    "brier_decomposition",
    "brier_losses",
    "brier_score",
    "brier_skill",
    "canberra_distance",
    "chebyshev_distance",
    "clark_distance",
    "classwise_calibration_error",
    "cosine_similarity",
    "cross_fitted",
    "debiased_calibration_error",
    "excess_aurc",
    "expected_calibration_error",
    "expected_correctness",
    "f1_scores",
    "fit_calibrator",
    "fit_conformal",
    "fit_drift",
    "half_open_calibration_error",
    "intersection_similarity",
    "js_divergence",
    "kl_divergence",
    "mean_set_size",
    "minimum_samples",
    "multiclass_brier",
    "negative_log_likelihood",
    "paired_difference",
    "read_responses",
    "reliability_curve",
    "render_report",
    "risk_coverage_curve",
    "score_official",
    "score_strict",
    "score_strict_responses",
    "set_coverage",
    "smooth_calibration_error",
    "summarise",
]
