"""The figures of one kind of confidence, beside those of a constant: each task's accuracy as everybody's confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .calibration_metrics import (
    brier_decomposition,
    brier_skill,
    debiased_calibration_error,
    half_open_calibration_error,
    smooth_calibration_error,
)
from .metrics import auroc, brier_score, expected_calibration_error
from .scalings import binary_log_losses
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
    "brier_within",
    "log_loss",
    "auroc",
    "auroc_within",
    "aurc",
    "e_aurc",
)
"""Names of the figures that `confidence_figures` gives."""

VOTE_FIGURES = ("ece_votes", "brier_votes")
"""Names of the figures that `vote_figures` gives."""


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
        "brier_within": parts.within,
        "log_loss": float(binary_log_losses(confidence, correct).mean()),
        "auroc": auroc(confidence, correct),
        "auroc_within": auroc_within(confidence, correct, names),
        "aurc": aurc(confidence, correct),
        "e_aurc": excess_aurc(confidence, correct),
    }


def vote_figures(confidence: Floats, agreement: Floats) -> Figures:
    """Returns `VOTE_FIGURES` of confidences (N,), N >= 1: ECE and Brier score expected over a drawn annotator.

    ``agreement`` (N,), in [0, 1], is the share of the votes for each answer, its chance of being right.
    """
    return {
        "ece_votes": expected_calibration_error(confidence, agreement),
        "brier_votes": brier_score(confidence, agreement),
    }


def constant_confidence(correct: Floats, tasks: Sequence[str] | NDArray[np.str_]) -> Floats:
    """Returns (N,) the accuracy of each sample's task on these very samples: what knowing only the task is worth."""
    _, group = np.unique(np.asarray(tasks), return_inverse=True)
    rates = np.bincount(group, weights=correct) / np.bincount(group)
    constant: Floats = rates[group]
    return constant
