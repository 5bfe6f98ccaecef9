"""Two runs on the same samples: paired differences with intervals and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from emocaliber.runtime.errors import InputError

from .calibration_metrics import smooth_calibration_error
from .intervals import bootstrap_statistic, paired_difference
from .metrics import auroc, brier_losses
from .records import Comparison, Interval
from .responses import ResponseLine
from .rows import Row

Floats = NDArray[np.float64]

_RESAMPLES = 200
_FLIPS = 5000
_TITLES = {"acc": "Accuracy", "brier": "Brier score", "ece_smooth": "Smooth ECE", "auroc": "AUROC"}
_HIGHER = {"acc", "auroc"}


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

    ``acc``, ``brier``, ``ece_smooth`` and ``auroc``, each with ``this``, ``other``, ``difference``, and ``low`` and
    ``high`` of its 95 % bootstrap interval, paired and stratified by task. ``acc`` has the ``p`` of McNemar's exact
    test (1947), ``brier`` that of a paired sign-flip permutation test (Fisher 1935; 5,000 flips, seeded). ``n`` counts
    pairs, ``n_confidence`` those with a confidence on both sides, of which the last three are.

    Args:
        pairs: This run's and the other's row for each sample, at least one.
    """
    tasks = [this.task for this, _ in pairs]
    mine, theirs = (np.array([pair[side].correct for pair in pairs]) for side in (0, 1))
    result: dict[str, Any] = {"n": len(pairs)}
    interval = paired_difference(theirs, mine, strata=tasks)
    result["acc"] = _entry(float(mine.mean()), float(theirs.mean()), interval, mcnemar(mine, theirs))
    sure = [pair for pair in pairs if all(row.confidence is not None for row in pair)]
    result["n_confidence"] = len(sure)
    if not sure:
        return {**result, **dict.fromkeys(("brier", "ece_smooth", "auroc"))}
    tasks = [this.task for this, _ in sure]
    this, other = _arrays(sure, 0), _arrays(sure, 1)
    gained, lost = brier_losses(*this), brier_losses(*other)
    interval = paired_difference(lost, gained, strata=tasks)
    result["brier"] = _entry(float(gained.mean()), float(lost.mean()), interval, sign_flip(gained - lost))
    metrics: dict[str, Callable[[Floats, Floats], float | None]] = {
        "ece_smooth": smooth_calibration_error,
        "auroc": auroc,
    }
    for name, metric in metrics.items():
        result[name] = _statistic(metric, this, other, tasks)
    return result


def comparisons(compared: dict[str, Any], other: str) -> tuple[Comparison, ...]:
    """Returns the entries of `compare_rows` as the report shows them.

    Args:
        compared: From `compare_rows`.
        other: What the other run is called.
    """
    made = []
    for name, title in _TITLES.items():
        entry = compared[name]
        if entry is None:
            continue
        chance = "" if entry["p"] is None else f" (p = {entry['p']:.2g})"
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


def _arrays(pairs: Sequence[tuple[Row, Row]], side: int) -> tuple[Floats, Floats]:
    rows = [pair[side] for pair in pairs]
    return np.array([row.confidence for row in rows], dtype=np.float64), np.array([row.correct for row in rows])


def _statistic(
    metric: Callable[[Floats, Floats], float | None],
    mine: tuple[Floats, Floats],
    theirs: tuple[Floats, Floats],
    tasks: Sequence[str],
) -> dict[str, float | None] | None:
    def difference(index: NDArray[np.int64]) -> float | None:
        this, other = (metric(confidence[index], correct[index]) for confidence, correct in (mine, theirs))
        return None if this is None or other is None else this - other

    interval = bootstrap_statistic(difference, len(tasks), resamples=_RESAMPLES, strata=tasks)
    this, other = metric(*mine), metric(*theirs)
    return None if interval is None or this is None or other is None else _entry(this, other, interval, None)


def _entry(this: float, other: float, interval: Interval, p: float | None) -> dict[str, float | None]:
    return {
        "this": this,
        "other": other,
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p": p,
    }
