"""The figures of many resamples at once, for intervals and tests.

A resample is a row of ``counts`` (R, N), how often it holds each of N samples, so that most figures are matrix products
and thousands of resamples take about a second. Each statistic maps counts to one number a resample (R,), not a number
where it is undefined; on a row of ones it is the metric of the same name. Bins of equal count stay those of the whole
sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

from .metrics import bin_positions, half_open_positions
from .scalings import binary_log_losses

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]

# A quarter of the cells of the metric: the kernel is far wider than either.
_CELLS = 256
_HALVINGS = 14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """How many right and wrong answers each resample has at each of U confidences."""

    confidence: Floats
    """(U,), rising."""
    right: Floats
    """(R, U)."""
    wrong: Floats
    """(R, U)."""

    size: Floats
    """(R, U), their sum."""
    total: Floats
    """(R,), answers of each resample."""


def tally(confidence: Floats, correct: Floats, counts: Floats) -> Tally:
    """Returns the counts (R, N) of N answers, their confidences and correctness in [0, 1], by confidence."""
    order = np.argsort(confidence, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(confidence[order]) > 0]))
    sorted_counts = counts[:, order]
    right = np.add.reduceat(sorted_counts * correct[order], starts, axis=1)
    size = np.add.reduceat(sorted_counts, starts, axis=1)
    return _tally(confidence[order][starts], right, size)


def _tally(confidence: Floats, right: Floats, size: Floats) -> Tally:
    return Tally(confidence=confidence, right=right, wrong=size - right, size=size, total=size.sum(axis=1))


def mean(values: Floats) -> Statistic:
    """Returns the mean of ``values`` (N,) as a statistic; not a number is left out."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    return lambda counts: _ratio(counts @ filled, counts @ known.astype(np.float64))


def f1(right: Ints, answered: Ints, *, macro: bool) -> Statistic:
    """Returns the macro or the weighted F1 as a statistic; arguments (N,) as for `emocaliber.evaluate.f1_scores`."""
    hits = np.where(right == answered, right, -1)
    width = int(max(right.max(), answered.max())) + 1

    def statistic(counts: Floats) -> Floats:
        found, support, claimed = (counts @ one_hot(labels, width) for labels in (hits, right, answered))
        scores = _ratio(2 * found, support + claimed, 0.0)
        if macro:
            return _ratio(scores.sum(axis=1), (support + claimed > 0).sum(axis=1))
        return _ratio((scores * support).sum(axis=1), support.sum(axis=1))

    return statistic


def classwise(probs: Floats, targets: Floats) -> Statistic:
    """Returns the classwise ECE as a statistic, over 15 bins; ``probs`` and ``targets`` (N, K)."""
    columns = [one_hot(bin_positions(p)[0], 15) * (t - p)[:, None] for p, t in zip(probs.T, targets.T, strict=True)]
    residuals = np.concatenate(columns, axis=1)
    return lambda counts: _ratio(np.abs(counts @ residuals).sum(axis=1), counts.sum(axis=1) * len(columns))


def skill(brier: Floats, correct: Floats, task: Ints) -> Statistic:
    """Returns the Brier skill against the constant of each task as a statistic.

    Args:
        brier: (N,), squared errors.
        correct: (N,), 0 or 1.
        task: (N,), numbers of the tasks.
    """
    members = one_hot(task, int(task.max()) + 1)
    hits = members * correct[:, None]

    def statistic(counts: Floats) -> Floats:
        size, right = counts @ members, counts @ hits
        constant = (right * (1 - _ratio(right, size, 0.0))).sum(axis=1)
        return 1 - _ratio(counts @ brier, constant)

    return statistic


def auroc_within(confidence: Floats, correct: Floats, task: Ints) -> Statistic:
    """Returns the AUROC over pairs of one task as a statistic; arguments (N,)."""
    places = [np.flatnonzero(task == k) for k in np.unique(task)]

    def statistic(counts: Floats) -> Floats:
        wins = pairs = np.zeros(len(counts))
        for inside in places:
            won, counted = _ordered_pairs(tally(confidence[inside], correct[inside], counts[:, inside]))
            wins, pairs = wins + won, pairs + counted
        return _ratio(wins, pairs)

    return statistic


def _ece(tallied: Tally) -> Floats:
    return _gap(tallied, bin_positions(tallied.confidence)[0])


def _half_open(tallied: Tally) -> Floats:
    index = half_open_positions(tallied.confidence)
    inside = index >= 0
    kept = _tally(tallied.confidence[inside], tallied.right[:, inside], tallied.size[:, inside])
    return _gap(kept, index[inside], tallied.total) if inside.any() else np.zeros(len(tallied.right))


def _smooth(tallied: Tally) -> Floats:
    cells = np.minimum((tallied.confidence * _CELLS).astype(np.int64), _CELLS - 1)
    total = tallied.total[:, None]
    residuals = np.zeros((len(total), _CELLS))
    residuals[:, np.unique(cells)] = _binned(tallied.right - tallied.size * tallied.confidence, cells) / total
    spectrum = dct(residuals, norm="ortho", axis=1)
    squared = (np.pi * np.arange(_CELLS)) ** 2 / 2
    low, high = np.zeros_like(total), np.full_like(total, 1.1)
    for _ in range(_HALVINGS):
        width = (low + high) / 2
        wide = np.abs(idct(spectrum * np.exp(-squared * width**2), norm="ortho", axis=1)).sum(axis=1, keepdims=True)
        low, high = np.where(wide > width, width, low), np.where(wide > width, high, width)
    return np.minimum((low + high) / 2, 1.0)[:, 0]


def _brier(tallied: Tally) -> Floats:
    c = tallied.confidence
    return (tallied.right @ (1 - c) ** 2 + tallied.wrong @ c**2) / tallied.total


def _log_loss(tallied: Tally) -> Floats:
    losses = [binary_log_losses(tallied.confidence, np.full_like(tallied.confidence, right)) for right in (1.0, 0.0)]
    return (tallied.right @ losses[0] + tallied.wrong @ losses[1]) / tallied.total


def _auroc(tallied: Tally) -> Floats:
    return _ratio(*_ordered_pairs(tallied))


def _ordered_pairs(tallied: Tally) -> tuple[Floats, Floats]:
    right, wrong = tallied.right, tallied.wrong
    below = np.cumsum(wrong, axis=1) - wrong / 2
    return (right * below).sum(axis=1), right.sum(axis=1) * wrong.sum(axis=1)


def _aurc(tallied: Tally) -> Floats:
    """Of S samples taken and E errors among them, s more with e errors add ``e + (E - S e/s) (H(S+s) - H(S))``.

    H is the harmonic number: the sum over k = 1 … s of the risks ``(E + k e/s) / (S + k)``.
    """
    size, errors = tallied.size[:, ::-1], tallied.wrong[:, ::-1]
    reached = np.cumsum(size, axis=1)
    taken, missed = reached - size, np.cumsum(errors, axis=1) - errors
    harmonic = _harmonic(tallied)
    steps = harmonic[reached.astype(np.int64)] - harmonic[taken.astype(np.int64)]
    areas: Floats = (errors + (missed - taken * _ratio(errors, size, 0.0)) * steps).sum(axis=1) / tallied.total
    return areas


def _excess(tallied: Tally) -> Floats:
    harmonic, total, errors = _harmonic(tallied), tallied.total, tallied.wrong.sum(axis=1)
    right = total - errors
    best = errors - right * (harmonic[total.astype(np.int64)] - harmonic[right.astype(np.int64)])
    excess: Floats = _aurc(tallied) - best / total
    return excess


def _harmonic(tallied: Tally) -> Floats:
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(tallied.total.max()) + 1))])


TALLIED: dict[str, Callable[[Tally], Floats]] = {
    "ece": _ece,
    "ece_paper": _half_open,
    "ece_smooth": _smooth,
    "brier": _brier,
    "log_loss": _log_loss,
    "auroc": _auroc,
    "aurc": _aurc,
    "e_aurc": _excess,
}
"""Name of a figure of confidences: it, of each resample of a tally that is not empty."""


def mass_figures(tallied: Tally, index: Ints) -> dict[str, Floats]:
    """Returns the figures over bins of equal count, whose position is ``index`` (U,) at each confidence."""
    size = _binned(tallied.size, index)
    right = _ratio(_binned(tallied.right, index), size, 0.0)
    stated = _ratio(_binned(tallied.size * tallied.confidence, index), size, 0.0)
    average, share = tallied.right.sum(axis=1) / tallied.total, size / tallied.total[:, None]
    noise = _ratio(right * (1 - right), size - 1, 0.0)
    squares = np.where(size > 1, (right - stated) ** 2 - noise, 0.0)
    parts = {
        "brier_reliability": (share * (stated - right) ** 2).sum(axis=1),
        "brier_resolution": (share * (right - average[:, None]) ** 2).sum(axis=1),
        "brier_uncertainty": average * (1 - average),
    }
    sum_of_parts = parts["brier_reliability"] - parts["brier_resolution"] + parts["brier_uncertainty"]
    return {
        "ece_equal_mass": (share * np.abs(right - stated)).sum(axis=1),
        "ece_debiased": np.sqrt(np.maximum((share * squares).sum(axis=1), 0.0)),
        **parts,
        "brier_within": _brier(tallied) - sum_of_parts,
    }


def number(names: Sequence[str]) -> Ints:
    """Returns (N,) equal names as equal numbers from 0."""
    return np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int64)


def one_hot(labels: Ints, width: int) -> Floats:
    """Returns (N, width) a one at the label of each row; none for -1."""
    ones: Floats = (labels[:, None] == np.arange(width)).astype(np.float64)
    return ones


def _gap(tallied: Tally, index: Ints, total: Floats | None = None) -> Floats:
    residuals = _binned(tallied.right - tallied.size * tallied.confidence, index)
    gaps: Floats = np.abs(residuals).sum(axis=1) / (tallied.total if total is None else total)
    return gaps


def _binned(values: Floats, index: Ints) -> Floats:
    """Returns (R, B) the sums of ``values`` (R, U) over each of the B positions in ``index`` (U,), which rises."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(index) > 0]))
    return np.add.reduceat(values, starts, axis=1)


def _ratio(part: Floats, whole: Floats | NDArray[np.int64], empty: float = np.nan) -> Floats:
    """Returns ``part / whole``, ``empty`` where the whole is not above zero."""
    filled: Floats = np.where(whole > 0, part / np.where(whole > 0, whole, 1), empty)
    return filled
