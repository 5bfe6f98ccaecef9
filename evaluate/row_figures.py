"""Every figure of some rows as a statistic of counts, with its bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .confidence_figures import CONFIDENCE_FIGURES
from .distances import DISTANCES
from .intervals import RESAMPLES, interval_of, resample_counts
from .metrics import bin_positions
from .records import Interval
from .resampling import TALLIED, Statistic, auroc_within, classwise, f1, mass_figures, mean, number, skill, tally
from .rows import Row

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BOOTSTRAP = {"level": 0.95, "resamples": RESAMPLES, "seed": 0, "drawn_within": "task"}
"""How every interval of the figures is made, as the figures say it."""

RECENTRED = {"ece", "ece_paper", "ece_equal_mass", "ece_debiased", "ece_smooth", "ece_classwise", "ece_votes"} | {
    "brier_reliability", "brier_resolution",
}  # fmt: skip
"""Figures that the repeats of a resample inflate; their intervals are shifted by that bias and end at 0."""


def row_statistics(rows: Sequence[Row], wanted: Collection[str]) -> Callable[[Floats], dict[str, Floats]]:
    """Returns what maps counts (R, N) of these rows, at least one, to (R,) each wanted figure, by name.

    Those of the confidence that was put into words have the prefix ``verbalized_``, those against the votes the suffix
    ``_votes``. Names without a statistic, and figures that no row has the numbers for, are passed over.
    """
    statistics = {name: make(rows) for name, make in _PLAIN.items() if name in wanted}
    stated, correct = [row.confidence for row in rows], [row.correct for row in rows]
    parts = [
        _confidence(rows, stated, correct, "{}", wanted),
        _confidence(rows, [row.verbalized for row in rows], correct, "verbalized_{}", wanted),
        _confidence(rows, stated, [row.agreement for row in rows], "{}_votes", wanted),
    ]

    def figures(counts: Floats) -> dict[str, Floats]:
        made = {name: statistic(counts) for name, statistic in statistics.items()}
        for part in parts:
            made.update(part(counts))
        return made

    return figures


def row_intervals(
    rows: Sequence[Row], figures: Mapping[str, float | None], *, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """Returns the 95 % bootstrap interval, drawn within tasks with seed 0, of each figure that is not None.

    Those of `RECENTRED` are shifted, see `emocaliber.evaluate.bootstrap_statistic`.

    Args:
        rows: What the figures are of.
        figures: Name to value; names that no statistic has are passed over.
        resamples: Number of resamples.
    """
    statistics = row_statistics(rows, [name for name, value in figures.items() if value is not None])
    blocks = [
        statistics(counts)
        for counts in resample_counts(len(rows), resamples=resamples, strata=[row.task for row in rows])
    ]
    intervals = {}
    for name in blocks[0]:
        estimate = figures[name]
        assert estimate is not None
        drawn = np.concatenate([block[name] for block in blocks])
        intervals[name] = list(bounded(name, estimate, drawn).bounds)
    return intervals


def bounded(name: str, estimate: float, drawn: Floats, floor: float = 0.0) -> Interval:
    """Returns the interval of a figure from its resamples (R,), recentred where they inflate it.

    Args:
        name: Of the figure.
        estimate: On the whole sample.
        drawn: (R,), on each resample.
        floor: What a recentred interval does not reach below.
    """
    inflated = name.removeprefix("verbalized_") in RECENTRED
    interval = interval_of(estimate, drawn, recentred=inflated)
    return replace(interval, low=max(interval.low, floor)) if inflated else interval


def _confidence(
    rows: Sequence[Row],
    stated: Sequence[float | None],
    correctness: Sequence[float | None],
    form: str,
    wanted: Collection[str],
) -> Callable[[Floats], dict[str, Floats]]:
    """Returns what `row_statistics` does of one kind of confidence and correctness, named as `form` says."""
    given = zip(rows, stated, correctness, strict=True)
    kept = np.array([None not in (row.answer, confidence, correct) for row, confidence, correct in given])
    names = {name for name in CONFIDENCE_FIGURES if form.format(name) in wanted}
    if not kept.any() or not names:
        return lambda counts: {}
    confidence, correct = _column(stated)[kept], _column(correctness)[kept]
    task = number([row.task for row in rows])[kept]
    whole: dict[str, Statistic] = {
        "brier_skill": skill((confidence - correct) ** 2, correct, task),
        "auroc_within": auroc_within(confidence, correct, task),
    }
    index, _ = bin_positions(confidence, binning="mass")
    index = index[np.unique(confidence, return_index=True)[1]]

    def figures(counts: Floats) -> dict[str, Floats]:
        inside = counts if kept.all() else counts[:, kept]
        filled = np.asarray(inside.any(axis=1))
        inside = inside if filled.all() else inside[filled]
        if not len(inside):
            return {form.format(name): np.full(len(counts), np.nan) for name in names}
        tallied = tally(confidence, correct, inside)
        made = {name: figure(tallied) for name, figure in TALLIED.items() if name in names}
        made.update({name: statistic(inside) for name, statistic in whole.items() if name in names})
        made.update({name: values for name, values in mass_figures(tallied, index).items() if name in names})
        return {form.format(name): _spread(values, filled) for name, values in made.items()}

    return figures


def _spread(values: Floats, filled: NDArray[np.bool_]) -> Floats:
    """Returns values (F,) at the places where ``filled`` (R,) holds, not a number elsewhere."""
    spread = np.full(len(filled), np.nan)
    spread[filled] = values
    return spread


def _labels(rows: Sequence[Row]) -> tuple[Ints, Ints]:
    names = number([row.right for row in rows] + [row.answer or "" for row in rows])
    answered = np.array([row.answer is not None for row in rows])
    return names[: len(rows)], np.where(answered, names[len(rows) :], -1)


def _classwise(rows: Sequence[Row]) -> Statistic:
    """Returns the statistic over rows with a distribution over the same labels."""
    kept = np.array([row.predicted is not None for row in rows])
    truths = np.array([[label == row.right for label in row.labels] for row in rows if row.predicted], dtype=np.float64)
    statistic = classwise(np.array([row.predicted for row in rows if row.predicted], dtype=np.float64), truths)
    return lambda counts: statistic(counts[:, kept])


def _distance(name: str) -> Callable[[Sequence[Row]], Statistic]:
    return lambda rows: mean(_column([None if row.distances is None else row.distances[name] for row in rows]))


_PLAIN: dict[str, Callable[[Sequence[Row]], Statistic]] = {
    "acc": lambda rows: mean(np.array([row.correct for row in rows])),
    "f1": lambda rows: f1(*_labels(rows), macro=False),
    "macro_f1": lambda rows: f1(*_labels(rows), macro=True),
    "parse_rate": lambda rows: mean(np.array([float(row.answer is not None) for row in rows])),
    "bayes_acc": lambda rows: mean(_column([row.bayes for row in rows])),
    "ece_classwise": _classwise,
    "nll": lambda rows: mean(_column([row.nll for row in rows])),
    **{name: _distance(name) for name in DISTANCES},
    "set_coverage": lambda rows: mean(_column([row.covered for row in rows])),
    "set_coverage_votes": lambda rows: mean(_column([row.covered_votes for row in rows])),
    "set_size": lambda rows: mean(_column([row.set_size for row in rows])),
}


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
