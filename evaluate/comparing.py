"""Two runs on the same samples: paired differences with intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from emocaliber.runtime.errors import InputError

from .intervals import RESAMPLES, resample_counts
from .records import Comparison, Interval
from .responses import ResponseLine
from .row_figures import bounded, row_statistics
from .rows import Row
from .scalings import binary_log_losses

Floats = NDArray[np.float64]

_FLIPS = 5000
_EXCHANGES = 1000
_ANSWERS = ("acc", "f1", "macro_f1")
_CONFIDENCE = ("brier", "log_loss", "ece", "ece_paper", "ece_smooth", "auroc", "auroc_within", "e_aurc")
COMPARED = {
    "acc": "Accuracy",
    "f1": "Weighted F1",
    "macro_f1": "Macro F1",
    "brier": "Brier score",
    "log_loss": "Log loss of the confidence",
    "ece": "ECE",
    "ece_paper": "ECE, the paper's bins",
    "ece_smooth": "Smooth ECE",
    "auroc": "AUROC",
    "auroc_within": "AUROC within tasks",
    "e_aurc": "E-AURC",
    "nll": "Negative log likelihood",
    "kl": "KL divergence from the votes",
}
"""Figures of a comparison, in order, and what a reader calls them."""
_HIGHER = {"acc", "f1", "macro_f1", "auroc", "auroc_within"}
_LOSSES: dict[str, Callable[[Row], float]] = {
    "brier": lambda row: ((row.confidence or 0.0) - row.correct) ** 2,
    "log_loss": lambda row: float(binary_log_losses(np.array([row.confidence]), np.array([row.correct]))[0]),
    "nll": lambda row: row.nll or 0.0,
    "kl": lambda row: row.distances["kl"] if row.distances else 0.0,
}


def pair_responses(
    lines: Sequence[ResponseLine], others: Sequence[ResponseLine]
) -> list[tuple[ResponseLine, ResponseLine]]:
    """Returns the lines of two runs about the same image and task, in the order of the first.

    Lines belong together by id, else by image path, where every line of both files has one that is unique in its task;
    otherwise by position.

    Raises:
        InputError: If nothing belongs together, or two lines that do have another truth or other candidates.
    """
    first, second = _keyed(lines), _keyed(others)
    if first is None or second is None:
        if len(lines) != len(others):
            raise InputError(
                f"the runs have {len(lines)} and {len(others)} lines and no ids or images by which to pair them"
            )
        pairs = list(zip(lines, others, strict=True))
    else:
        pairs = [(line, second[key]) for key, line in first.items() if key in second]
    if not pairs:
        raise InputError("no line of one run is about an image of the other")
    for one, two in pairs:
        mine, theirs = ((x.task, x.ground_truth.lower(), sorted(x.candidates)) for x in (one, two))
        if mine != theirs:
            raise InputError(f"paired lines are about different questions: {mine} and {theirs}")
    return pairs


def _keyed(lines: Sequence[ResponseLine]) -> dict[tuple[str, str], ResponseLine] | None:
    for name in ("id", "image"):
        keys = [(line.task, getattr(line, name)) for line in lines]
        if all(key is not None for _, key in keys) and len(set(keys)) == len(keys):
            return dict(zip(keys, lines, strict=True))
    return None


def compare_rows(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """Returns the differences of this run from another, this minus other; undefined ones are None.

    Each of `COMPARED`, with ``this``, ``other``, ``difference``, ``low`` and ``high`` of its 95 % bootstrap interval,
    paired and stratified by task, and ``p``. That of ``acc`` is McNemar's exact test (1947). The others are paired
    permutation tests (Fisher 1935), seeded, in which each pair changes sides or not: means by 5,000 flips of the signs
    of their differences, the others by 1,000 exchanges. ``n`` counts pairs, ``n_confidence`` those with a confidence on
    both sides, of which the figures of confidence are.

    Args:
        pairs: This run's and the other's row for each sample, at least one.
    """
    sure = [pair for pair in pairs if all(row.confidence is not None and row.answer is not None for row in pair)]
    told = [pair for pair in pairs if all(row.nll is not None for row in pair)]
    voted = [pair for pair in pairs if all(row.distances is not None for row in pair)]
    parts = ((_ANSWERS, pairs), (_CONFIDENCE, sure), (("nll",), told), (("kl",), voted))
    result: dict[str, Any] = {"n": len(pairs), "n_confidence": len(sure)}
    for names, kept in parts:
        result.update(_compare(kept, names) if kept else dict.fromkeys(names))
    return result


def _compare(pairs: Sequence[tuple[Row, Row]], names: Sequence[str]) -> dict[str, dict[str, float] | None]:
    """Returns the entries of these figures: both runs are one table of 2 N rows, of which a resample counts N."""
    figures = row_statistics([pair[side] for side in (0, 1) for pair in pairs], names)
    n, tasks = len(pairs), [this.task for this, _ in pairs]

    def both(mine: Floats, theirs: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        return figures(np.concatenate([mine, theirs], axis=1)), figures(np.concatenate([theirs, mine], axis=1))

    whole, nothing = np.ones((1, n)), np.zeros((1, n))
    this, other = both(whole, nothing)
    drawn: dict[str, list[Floats]] = {name: [] for name in this}
    for counts in resample_counts(n, resamples=RESAMPLES, strata=tasks):
        mine, theirs = both(counts, np.zeros_like(counts))
        for name, values in drawn.items():
            values.append(mine[name] - theirs[name])
    chances = _chances(pairs, names, both, {name: float(this[name][0] - other[name][0]) for name in this})
    made: dict[str, dict[str, float] | None] = dict.fromkeys(names)
    for name, values in drawn.items():
        first, second = float(this[name][0]), float(other[name][0])
        if math.isnan(first) or math.isnan(second):
            continue
        low, high = bounded(name, first - second, np.concatenate(values), floor=-math.inf).bounds
        entry = {"this": first, "other": second, "difference": first - second, "low": low, "high": high}
        made[name] = {**entry, "p": chances[name]}
    return made


def _chances(
    pairs: Sequence[tuple[Row, Row]],
    names: Sequence[str],
    both: Callable[[Floats, Floats], tuple[dict[str, Floats], dict[str, Floats]]],
    observed: dict[str, float],
) -> dict[str, float]:
    """Returns the two-sided p of each figure."""
    chances = {}
    if "acc" in names:
        chances["acc"] = mcnemar(*(np.array([pair[side].correct for pair in pairs]) for side in (0, 1)))
    for name, loss in _LOSSES.items():
        if name in names:
            chances[name] = sign_flip(np.array([loss(this) - loss(other) for this, other in pairs]))
    left = [name for name in observed if name not in chances]
    if not left:
        return chances
    reached = dict.fromkeys(left, 0)
    generator, block = np.random.default_rng(0), max(1, (1 << 21) // len(pairs))
    for start in range(0, _EXCHANGES, block):
        shape = (min(block, _EXCHANGES - start), len(pairs))
        mine = generator.integers(0, 2, size=shape).astype(np.float64)
        first, second = both(mine, 1 - mine)
        for name in left:
            reached[name] += int((np.abs(first[name] - second[name]) >= abs(observed[name]) - 1e-12).sum())
    return {**chances, **{name: (count + 1) / (_EXCHANGES + 1) for name, count in reached.items()}}


def comparisons(compared: dict[str, Any], other: str) -> tuple[Comparison, ...]:
    """Returns the entries of `compare_rows` as the report shows them.

    Args:
        compared: From `compare_rows`.
        other: What the other run is called.
    """
    made = []
    for name, title in COMPARED.items():
        entry = compared[name]
        if entry is None:
            continue
        chance = f" (p = {entry['p']:.2g})"
        interval = Interval(estimate=entry["difference"], low=entry["low"], high=entry["high"], level=0.95)
        made.append(
            Comparison(
                title=f"{title}, this run minus {other}{chance}",
                interval=interval,
                lower_is_better=name not in _HIGHER,
            )
        )
    return tuple(made)


def mcnemar(mine: Floats, theirs: Floats) -> float:
    """Returns the two-sided p of McNemar's exact test: of the samples only one run gets right, half would be each's."""
    won, lost = int(((mine == 1) & (theirs == 0)).sum()), int(((mine == 0) & (theirs == 1)).sum())
    return 1.0 if won + lost == 0 else float(binomtest(won, won + lost, 0.5).pvalue)


def sign_flip(differences: Floats, *, flips: int = _FLIPS, seed: int = 0) -> float:
    """Returns the two-sided p of the mean of paired differences (N,) under random signs, the observed one included."""
    generator = np.random.default_rng(seed)
    observed = abs(float(differences.sum()))
    block = max(1, (1 << 22) // len(differences))
    reached, left = 0, flips
    while left:
        size = min(block, left)
        signs = generator.integers(0, 2, size=(size, len(differences)), dtype=np.int8) * 2 - 1
        reached += int((np.abs(signs @ differences) >= observed - 1e-12).sum())
        left -= size
    return (reached + 1) / (flips + 1)
