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

from .baseline import constant_figures, row_f1_scores
from .calibration_metrics import classwise_calibration_error
from .confidence_figures import CONFIDENCE_FIGURES, VOTE_FIGURES, Figures, confidence_figures, vote_figures
from .distances import DISTANCES
from .predictions import Outcome
from .responses import ResponseLine
from .row_figures import BOOTSTRAP, row_intervals
from .rows import Row, make_response_row, make_row
from .vecbench import GROUPS, group_of

Floats = NDArray[np.float64]


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
    """Returns `score_rows` of response lines with two counts more.

    ``errors`` of them say that the model failed, which is no answer; on ``truth_not_a_candidate`` nothing could be
    right.
    """
    rows = [make_response_row(line) for line in lines]
    return {
        **score_rows(rows),
        "errors": sum(line.response is None for line in lines),
        "truth_not_a_candidate": sum(row.right not in row.labels for row in rows),
    }


def score_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns ``{"scoring", "bootstrap", "tasks", "groups", "overall"}``, ready for JSON; undefined figures are None.

    ``acc`` and ``f1`` (weighted, as the field reports it; ``macro_f1`` beside it) are fractions of all ``n`` labelled
    samples, ``answered`` of them have an answer (``parse_rate``). ``groups`` are those of VECBench that have samples;
    they and ``overall`` pool the samples of their tasks, with ``acc_task_mean``, ``f1_task_mean`` and
    ``macro_f1_task_mean`` beside. ``baseline`` holds the figures of what is constant in each task, see
    `emocaliber.evaluate.baseline`. ``intervals`` holds that of each figure, made as ``bootstrap`` says.
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
        "bootstrap": BOOTSTRAP,
        "tasks": by_task,
        "groups": groups,
        "overall": _pooled(rows, list(by_task.values())),
    }


def _pooled(rows: Sequence[Row], tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means = {
        f"{name}_task_mean": float(np.mean([figures[name] for figures in tasks])) for name in ("acc", "f1", "macro_f1")
    }
    return {**aggregate(rows), **means}


def aggregate(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the figures of some rows, at least one; see `score_rows`."""
    macro, weighted = row_f1_scores(rows)
    answered = [row for row in rows if row.answer is not None]
    targets = {row.set_target for row in answered}
    target = targets.pop() if len(targets) == 1 else None
    voted = all(row.votes is not None for row in rows)
    figures: Figures = {
        "acc": float(np.mean([row.correct for row in rows])),
        "f1": weighted,
        "macro_f1": macro,
        "parse_rate": len(answered) / len(rows),
        "bayes_acc": _mean([row.bayes for row in answered]),
        **_confidence(answered, "confidence", ""),
        **_confidence(answered, "verbalized", "verbalized_"),
        **(_against_votes(answered) if voted else dict.fromkeys(VOTE_FIGURES)),
        "ece_classwise": _classwise(answered),
        "nll": _mean([row.nll for row in answered]),
        **{name: _mean([row.distances[name] for row in answered if row.distances]) for name in DISTANCES},
        "set_coverage": None if target is None else _mean([row.covered for row in answered]),
        "set_coverage_votes": None if target is None or not voted else _mean([row.covered_votes for row in answered]),
        "set_size": None if target is None else _mean([row.set_size for row in answered]),
    }
    return {
        "n": len(rows),
        "answered": len(answered),
        "n_confidence": sum(row.confidence is not None for row in answered),
        "set_target": target,
        **figures,
        "baseline": constant_figures(rows, target),
        "intervals": row_intervals(rows, figures),
    }


def _confidence(rows: Sequence[Row], name: str, prefix: str) -> Figures:
    """Returns the figures of one kind of confidence under prefixed names."""
    kept = [row for row in rows if getattr(row, name) is not None]
    if not kept:
        return dict.fromkeys(f"{prefix}{figure}" for figure in CONFIDENCE_FIGURES)
    confidence: Floats = np.array([getattr(row, name) for row in kept], dtype=np.float64)
    correct: Floats = np.array([row.correct for row in kept])
    figures = confidence_figures(confidence, correct, [row.task for row in kept])
    return {f"{prefix}{figure}": value for figure, value in figures.items()}


def _against_votes(rows: Sequence[Row]) -> Figures:
    """Returns the figures of confidences against the votes, which all rows have."""
    pairs = [(row.confidence, row.agreement) for row in rows if row.confidence is not None]
    if not pairs:
        return dict.fromkeys(VOTE_FIGURES)
    confidence, agreement = np.array(pairs, dtype=np.float64).T
    return vote_figures(confidence, agreement)


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
