"""The constant that knows nothing but the task: what every figure is held against.

It answers each task with its most frequent label, states the accuracy of the model's answers as confidence in them,
gives the frequencies of the labels (the mean of the votes) as distribution, and as prediction set as many of the most
frequent labels as the coverage asks for. Where all samples of a task have votes, its set is of the most voted labels,
and the confidence that is held against votes is the mean agreement with them. All of it is taken from the very samples
it is judged on: a bar that only knowledge of the single image can pass.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .confidence_figures import (
    CONFIDENCE_FIGURES,
    VOTE_FIGURES,
    Figures,
    confidence_figures,
    constant_confidence,
    vote_figures,
)
from .distances import DISTANCES
from .metrics import f1_scores
from .rows import Row, vote_share

Floats = NDArray[np.float64]

_SETS = ("set_coverage", "set_coverage_votes", "set_size")


def constant_figures(rows: Sequence[Row], set_target: float | None) -> Figures:
    """Returns the figures of the constant of each task on these rows, at least one; undefined ones are None.

    Args:
        rows: One or more tasks.
        set_target: Coverage of its prediction sets; None for none.
    """
    members = [[row for row in rows if row.task == task] for task in dict.fromkeys(row.task for row in rows)]
    answered = [replace(row, answer=answer) for task in members for answer in [_commonest(task)] for row in task]
    macro, weighted = row_f1_scores(answered)
    return {
        "acc": float(np.mean([row.correct for row in answered])),
        "f1": weighted,
        "macro_f1": macro,
        **_confidence(rows),
        "ece_classwise": None if all(row.predicted is None for row in rows) else 0.0,
        "nll": _pooled([_surprise(task) for task in members]),
        **{name: _pooled([_distance(task, name) for task in members]) for name in DISTANCES},
        **(dict.fromkeys(_SETS) if set_target is None else _sets(members, set_target)),
    }


def row_f1_scores(rows: Sequence[Row]) -> tuple[float, float]:
    """Returns macro and weighted F1 of some rows; a missing answer is a miss of the right label only."""
    spelt = [row.right for row in rows] + [row.answer for row in rows if row.answer is not None]
    names = {label: position for position, label in enumerate(dict.fromkeys(spelt))}
    return f1_scores(
        [-1 if row.answer is None else names[row.answer] for row in rows], [names[row.right] for row in rows]
    )


def _confidence(rows: Sequence[Row]) -> Figures:
    stating = [row for row in rows if row.answer is not None and row.confidence is not None]
    if not stating:
        return dict.fromkeys((*CONFIDENCE_FIGURES, *VOTE_FIGURES))
    correct: Floats = np.array([row.correct for row in stating])
    tasks = [row.task for row in stating]
    figures = confidence_figures(constant_confidence(correct, tasks), correct, tasks)
    if any(row.votes is None for row in rows):
        return {**figures, **dict.fromkeys(VOTE_FIGURES)}
    agreement: Floats = np.array([row.agreement for row in stating], dtype=np.float64)
    return {**figures, **vote_figures(constant_confidence(agreement, tasks), agreement)}


def _commonest(rows: Sequence[Row]) -> str:
    return Counter(row.right for row in rows).most_common(1)[0][0]


def _surprise(rows: Sequence[Row]) -> tuple[float, int]:
    """Returns the entropy of the label frequencies, their mean negative log likelihood, and the number of rows."""
    kept = [row for row in rows if row.nll is not None]
    counts = Counter(row.right for row in kept).values()
    return sum(-count / len(kept) * math.log(count / len(kept)) for count in counts), len(kept)


def _distance(rows: Sequence[Row], name: str) -> tuple[float, int]:
    known = [row.known for row in rows if row.known is not None and row.distances is not None]
    if not known:
        return 0.0, 0
    truths = np.array(known, dtype=np.float64)
    return DISTANCES[name](truths, np.broadcast_to(truths.mean(axis=0), truths.shape)), len(known)


def _sets(tasks: Sequence[Sequence[Row]], target: float) -> Figures:
    """Returns `_SETS` of the set that each task's constant gives to all its rows."""
    covered, voted, sizes = [], [], []
    for rows in tasks:
        chosen = _set(rows, target)
        sizes += [len(chosen)] * len(rows)
        covered += [row.right in chosen for row in rows]
        voted += [share for row in rows if (share := vote_share(row.votes, row.labels, chosen)) is not None]
    return {
        "set_coverage": float(np.mean(covered)),
        "set_coverage_votes": float(np.mean(voted)) if len(voted) == len(covered) else None,
        "set_size": float(np.mean(sizes)),
    }


def _set(rows: Sequence[Row], target: float) -> list[str]:
    """Returns the fewest labels that reach the target in votes, where all rows have some, else as right labels."""
    everywhere = all(row.votes is not None for row in rows)
    weights: dict[str, float] = defaultdict(float)
    for row in rows:
        given = [(row.right, 1.0)] if row.votes is None or not everywhere else zip(row.labels, row.votes, strict=True)
        for label, weight in given:
            weights[label] += weight
    ranked = sorted(weights, key=lambda label: -weights[label])
    shares = np.cumsum([weights[label] for label in ranked]) / len(rows)
    return ranked[: int(np.searchsorted(shares, target - 1e-12)) + 1]


def _pooled(parts: Sequence[tuple[float, int]]) -> float | None:
    total = sum(n for _, n in parts)
    return sum(value * n for value, n in parts) / total if total else None
