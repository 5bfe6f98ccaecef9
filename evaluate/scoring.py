"""Strict scoring: figures of each task, of the groups of VECBench, and of all samples together.

A sample without an answer counts as wrong in accuracy and F1: a model does not get better by refusing, and a text that
breaks the grammar is no answer. Figures of confidences and distributions are of the samples that have one, whose number
is given beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.errors import InputError

from .calibration_metrics import classwise_calibration_error
from .confidence_figures import CONFIDENCE_FIGURES, confidence_figures, confidence_intervals, constant_confidence
from .distances import DISTANCES
from .intervals import bootstrap_mean
from .metrics import f1_scores
from .predictions import Outcome
from .responses import ResponseLine
from .rows import Row, make_response_row, make_row
from .vecbench import GROUPS, group_of

Floats = NDArray[np.float64]

_BASELINE = ("ece", "ece_paper", "brier", "auroc", "auroc_within", "aurc", "e_aurc")


def score_strict(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns `score_rows` of predictions matched with their samples, and ``unlabelled``, how many had no label.

    Raises:
        InputError: If no sample has an answer, votes or a posterior to be held against.
    """
    rows = [row for outcome in outcomes if (row := make_row(outcome)) is not None]
    if not rows:
        raise InputError("no sample has an answer, votes or a posterior: there is nothing to evaluate against")
    return {**score_rows(rows), "unlabelled": len(outcomes) - len(rows)}


def score_strict_responses(lines: Sequence[ResponseLine]) -> dict[str, Any]:
    """Returns `score_rows` of response lines, and ``truth_not_a_candidate``, on how many nothing could be right."""
    rows = [make_response_row(line) for line in lines]
    return {**score_rows(rows), "truth_not_a_candidate": sum(row.right not in row.labels for row in rows)}


def score_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns ``{"scoring", "tasks", "groups", "overall"}``, ready for JSON; undefined figures are None.

    ``acc`` and ``f1`` (weighted, as the field reports it; ``macro_f1`` beside it) are fractions of all ``n`` labelled
    samples, ``answered`` of them have an answer (``parse_rate``). ``groups`` are those of VECBench that have samples;
    they and ``overall`` pool the samples of their tasks, with ``acc_task_mean`` and ``f1_task_mean`` beside.
    ``baseline`` holds the figures of a constant confidence for each task, its accuracy. ``intervals`` holds 95 %
    bootstrap intervals, stratified by task.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    by_task = {task: aggregate([row for row in rows if row.task == task]) for task in tasks}
    groups = {}
    for group in GROUPS:
        members = [task for task in tasks if group_of(task) == group]
        if members:
            groups[group] = _pooled([row for row in rows if row.task in members], [by_task[task] for task in members])
    return {
        "scoring": "strict",
        "tasks": by_task,
        "groups": groups,
        "overall": _pooled(rows, list(by_task.values())),
    }


def _pooled(rows: Sequence[Row], tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means = {f"{name}_task_mean": float(np.mean([figures[name] for figures in tasks])) for name in ("acc", "f1")}
    return {**aggregate(rows), **means}


def aggregate(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the figures of some rows, at least one; see `score_rows`."""
    macro, weighted = row_f1_scores(rows)
    answered = [row for row in rows if row.answer is not None]
    stating = [row for row in answered if row.confidence is not None]
    hits = np.array([row.correct for row in rows])
    targets = {row.set_target for row in answered}
    same_target = len(targets) == 1 and None not in targets
    intervals = {"acc": list(bootstrap_mean(hits, strata=[row.task for row in rows]).bounds)}
    result: dict[str, Any] = {
        "acc": float(hits.mean()),
        "f1": weighted,
        "macro_f1": macro,
        "n": len(rows),
        "answered": len(answered),
        "parse_rate": len(answered) / len(rows),
        "n_confidence": len(stating),
        "bayes_acc": _mean([row.bayes for row in answered]),
        **_confidence(answered, "confidence", "", intervals),
        **_confidence(answered, "verbalized", "verbalized_", intervals),
        "ece_classwise": _classwise(answered),
        "nll": _mean([row.nll for row in answered]),
        **{name: _mean([row.distances[name] for row in answered if row.distances]) for name in DISTANCES},
        "set_target": targets.pop() if same_target else None,
        "set_coverage": _mean([row.covered for row in answered]) if same_target else None,
        "set_size": _mean([row.set_size for row in answered]) if same_target else None,
        "baseline": baseline_figures(stating),
    }
    return {**result, "intervals": intervals}


def row_f1_scores(rows: Sequence[Row]) -> tuple[float, float]:
    """Returns macro and weighted F1 of some rows; a missing answer is a miss of the right label only."""
    spelt = [row.right for row in rows] + [row.answer for row in rows if row.answer is not None]
    names = {label: position for position, label in enumerate(dict.fromkeys(spelt))}
    return f1_scores(
        [-1 if row.answer is None else names[row.answer] for row in rows], [names[row.right] for row in rows]
    )


def baseline_figures(rows: Sequence[Row]) -> dict[str, float | None]:
    """Returns the figures of these rows' answers with the accuracy of their task as confidence; None without rows."""
    if not rows:
        return dict.fromkeys(_BASELINE)
    correct: Floats = np.array([row.correct for row in rows])
    tasks = [row.task for row in rows]
    figures = confidence_figures(constant_confidence(correct, tasks), correct, tasks)
    return {name: figures[name] for name in _BASELINE}


def _confidence(
    rows: Sequence[Row], name: str, prefix: str, intervals: dict[str, list[float]]
) -> dict[str, float | None]:
    """Returns the figures of one kind of confidence under prefixed names; adds its intervals."""
    kept = [row for row in rows if getattr(row, name) is not None]
    if not kept:
        return dict.fromkeys(f"{prefix}{figure}" for figure in CONFIDENCE_FIGURES)
    confidence: Floats = np.array([getattr(row, name) for row in kept], dtype=np.float64)
    correct: Floats = np.array([row.correct for row in kept])
    tasks = [row.task for row in kept]
    bounds = confidence_intervals(confidence, correct, tasks, resamples=0 if prefix else 200)
    intervals.update({f"{prefix}{figure}": pair for figure, pair in bounds.items()})
    figures = confidence_figures(confidence, correct, tasks)
    return {f"{prefix}{figure}": value for figure, value in figures.items()}


def _classwise(rows: Sequence[Row]) -> float | None:
    """Returns the classwise ECE of rows with a distribution over the same labels, else None."""
    probs = [row.predicted for row in rows if row.predicted is not None]
    if not probs or len({row.labels for row in rows}) != 1:
        return None
    return classwise_calibration_error(
        probs, [row.labels.index(row.right) for row in rows if row.predicted is not None]
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
