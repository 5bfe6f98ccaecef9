"""Strict scoring: figures of each task and of all samples together.

A sample without an answer counts as wrong in accuracy and F1: a model does not get better by refusing. Figures of
confidences and distributions are of the answered samples, whose number is given beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.samples import Sample

from .intervals import bootstrap_mean
from .metrics import (
    auroc,
    bayes_accuracy,
    brier_losses,
    brier_score,
    expected_calibration_error,
    f1_scores,
    js_divergence,
    kl_divergence,
    negative_log_likelihood,
)
from .predictions import Outcome

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One labelled sample, reduced to numbers; those of an unanswered sample are None."""

    task: str
    """Name of the taxonomy."""
    right: str
    """The label taken as right."""
    answer: str | None = None
    """The label predicted."""
    confidence: float | None = None
    """Confidence in the answer."""
    verbalized: float | None = None
    """Confidence the model stated."""
    nll: float | None = None
    """Negative log likelihood of the right label, nats."""
    kl: float | None = None
    """KL(true || predicted), nats, where votes or a posterior are known."""
    js: float | None = None
    """Jensen-Shannon divergence of the same two, nats."""
    bayes: float | None = None
    """Largest true probability, likewise."""
    covered: float | None = None
    """1 if the right label is in the prediction set, else 0."""
    set_size: float | None = None
    """Labels in the prediction set."""
    set_target: float | None = None
    """Coverage the set was asked for."""

    @property
    def correct(self) -> float:
        """1 if the answer is right, 0 if it is wrong or missing."""
        return float(self.answer == self.right)


def score_strict(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns ``{"scoring", "tasks", "groups", "overall"}``, ready for JSON; undefined figures are None.

    ``acc`` and ``f1`` (weighted, as the field reports it; ``macro_f1`` beside it) are fractions of all ``n`` labelled
    samples, ``answered`` of them have a prediction. ``overall`` pools the samples of all tasks. ``intervals`` holds
    95 % bootstrap intervals. ``groups`` is empty: groups are a matter of a benchmark, not of a samples file.

    Raises:
        InputError: If no sample has an answer, votes or a posterior to be held against.
    """
    rows = [row for outcome in outcomes if (row := make_row(outcome)) is not None]
    if not rows:
        raise InputError("no sample has an answer, votes or a posterior: there is nothing to evaluate against")
    tasks = list(dict.fromkeys(row.task for row in rows))
    return {
        "scoring": "strict",
        "tasks": {task: aggregate([row for row in rows if row.task == task]) for task in tasks},
        "groups": {},
        "overall": aggregate(rows),
        "unlabelled": len(outcomes) - len(rows),
    }


def right_label(sample: Sample) -> str | None:
    """Returns the label taken as right: the answer, else the one most voted for, else the most probable one, else None.

    Spelt as the taxonomy spells it; ties go to the earlier label.
    """
    labels = sample.resolve().labels
    if sample.answer is not None:
        return labels[sample.resolve().index(sample.answer)]
    weights = sample.distribution() or sample.true_posterior()
    return None if weights is None else labels[int(np.argmax(weights))]


def reference_distribution(sample: Sample) -> list[float] | None:
    """Returns the known posterior, else the votes as a distribution, else None; in the order of the taxonomy."""
    return sample.true_posterior() or (sample.distribution() if sample.votes is not None else None)


def make_row(outcome: Outcome) -> Row | None:
    """Returns the numbers of one sample, or None where it has no label to be held against."""
    sample, prediction = outcome.sample, outcome.prediction
    right = right_label(sample)
    if right is None:
        return None
    if prediction is None:
        return Row(task=sample.taxonomy, right=right)
    labels = sample.resolve().labels
    predicted = [[prediction.distribution[label] for label in labels]]
    known = reference_distribution(sample)
    chosen = prediction.prediction_set()
    return Row(
        task=sample.taxonomy,
        right=right,
        answer=prediction.label,
        confidence=prediction.confidence,
        verbalized=prediction.verbalized_confidence,
        nll=negative_log_likelihood(predicted, [labels.index(right)]),
        kl=None if known is None else kl_divergence([known], predicted),
        js=None if known is None else js_divergence([known], predicted),
        bayes=None if known is None else bayes_accuracy([known]),
        covered=float(right in chosen),
        set_size=float(len(chosen)),
        set_target=prediction.coverage,
    )


def aggregate(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the figures of some rows, at least one; see `score_strict`."""
    names = {label: position for position, label in enumerate(dict.fromkeys(_names(rows)))}
    right = [names[row.right] for row in rows]
    answers = [-1 if row.answer is None else names[row.answer] for row in rows]
    macro, weighted = f1_scores(answers, right)
    answered = [row for row in rows if row.answer is not None]
    hits = np.array([row.correct for row in rows])
    targets = {row.set_target for row in answered}
    same_target = len(targets) == 1
    intervals = {"acc": list(bootstrap_mean(hits).bounds)}
    result: dict[str, Any] = {
        "acc": float(hits.mean()),
        "f1": weighted,
        "macro_f1": macro,
        "n": len(rows),
        "answered": len(answered),
        "bayes_acc": _mean(answered, "bayes"),
        **_confidence_figures(answered, "confidence", "", intervals),
        **_confidence_figures(answered, "verbalized", "verbalized_", intervals),
        "nll": _mean(answered, "nll"),
        "kl": _mean(answered, "kl"),
        "js": _mean(answered, "js"),
        "set_target": targets.pop() if same_target else None,
        "set_coverage": _mean(answered, "covered") if same_target else None,
        "set_size": _mean(answered, "set_size") if same_target else None,
    }
    return {**result, "intervals": intervals}


def _confidence_figures(
    rows: Sequence[Row], name: str, prefix: str, intervals: dict[str, list[float]]
) -> dict[str, float | None]:
    """Returns ECE (closed and equal-mass bins), Brier and AUROC of one kind of confidence; adds its interval."""
    kept = [row for row in rows if getattr(row, name) is not None]
    if not kept:
        return dict.fromkeys((f"{prefix}ece", f"{prefix}ece_equal_mass", f"{prefix}brier", f"{prefix}auroc"))
    confidence: Floats = np.array([getattr(row, name) for row in kept], dtype=np.float64)
    correct: Floats = np.array([row.correct for row in kept])
    intervals[f"{prefix}brier"] = list(bootstrap_mean(brier_losses(confidence, correct)).bounds)
    return {
        f"{prefix}ece": expected_calibration_error(confidence, correct),
        f"{prefix}ece_equal_mass": expected_calibration_error(confidence, correct, binning="mass"),
        f"{prefix}brier": brier_score(confidence, correct),
        f"{prefix}auroc": auroc(confidence, correct),
    }


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return float(np.mean(values)) if values else None


def _names(rows: Sequence[Row]) -> list[str]:
    return [row.right for row in rows] + [row.answer for row in rows if row.answer is not None]
