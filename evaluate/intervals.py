"""Bootstrap percentile intervals (Efron 1979), seeded and vectorised."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.errors import InputError

from .records import Interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
"""Of every interval of an evaluation; drawn with seed 0, within tasks."""

_BLOCK = 1 << 22


def bootstrap_mean(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Interval:
    """Returns the mean of ``values`` (N,) with its bootstrap percentile interval.

    Args:
        values: (N,), one number a sample, such as its squared error or whether it is right.
        level: Share of resampled means the interval holds, in (0, 1).
        resamples: Number of resamples.
        seed: Of the resampling; equal seeds give equal intervals.
        clusters: (N,), a group id for each value where several come from one image: groups are drawn, not values.
        strata: (N,), such as the task of each value: each resample has as many of every stratum as the sample. Not
            together with clusters.

    Raises:
        InputError: If there are no values, one is not finite, or ``level`` or ``resamples`` is out of range.
    """
    numbers = _values(values)
    _check(level, resamples)
    sums: Floats = numbers
    sizes: Floats = np.ones_like(numbers)
    if clusters is not None and strata is not None:
        raise InputError("a bootstrap takes clusters or strata, not both")
    if clusters is not None:
        ids = np.asarray(clusters)
        if ids.shape != numbers.shape:
            raise InputError(f"clusters have shape {ids.shape}, values {numbers.shape}")
        _, group = np.unique(ids, return_inverse=True)
        sums = np.bincount(group, weights=numbers).astype(np.float64)
        sizes = np.bincount(group).astype(np.float64)
    drawn = [sums[index].sum(axis=1) / sizes[index].sum(axis=1) for index in _draws(len(sums), resamples, seed, strata)]
    return _interval(float(numbers.mean()), np.concatenate(drawn), level)


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    strata: ArrayLike | None = None,
) -> Interval:
    """Returns ``mean(after - before)`` with its interval, both measured on the same samples in the same order.

    For losses, an interval wholly below zero says that ``after`` is better. Arguments as for `bootstrap_mean`.

    Raises:
        InputError: Also if the two have different lengths.
    """
    first, second = _values(before), _values(after)
    if first.shape != second.shape:
        raise InputError(f"a paired difference needs the same samples: {first.size} before, {second.size} after")
    return bootstrap_mean(second - first, level=level, resamples=resamples, seed=seed, strata=strata)


def bootstrap_statistic(
    statistic: Callable[[Ints], float | None],
    n: int,
    *,
    level: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
    strata: ArrayLike | None = None,
    recentred: bool = False,
) -> Interval | None:
    """Returns any statistic with its bootstrap percentile interval; None where it is undefined on the whole sample.

    Resamples on which the statistic is undefined are left out.

    Args:
        statistic: Maps (n,) sample positions, with repeats, to the statistic of these samples, or None.
        n: Number of samples.
        level: Share of resampled statistics the interval holds, in (0, 1).
        resamples: Number of resamples.
        seed: Of the resampling.
        strata: (n,), as for `bootstrap_mean`.
        recentred: Whether to shift both ends by the bias of the resamples, the estimate less their mean: for what
            repeats inflate, such as a calibration error, whose plain interval may lie above its own estimate.

    Raises:
        InputError: If ``n``, ``level`` or ``resamples`` is out of range.
    """
    _check(level, resamples)
    if n < 1:
        raise InputError(f"a bootstrap needs at least one sample, got {n}")
    estimate = statistic(np.arange(n, dtype=np.int64))
    if estimate is None:
        return None
    values = [statistic(row) for block in _draws(n, resamples, seed, strata) for row in block]
    defined = [value for value in values if value is not None]
    return interval_of(estimate, np.asarray(defined, dtype=np.float64), level=level, recentred=recentred)


def resample_counts(n: int, *, resamples: int, seed: int = 0, strata: ArrayLike | None = None) -> Iterator[Floats]:
    """Yields blocks (B, n), ``resamples`` rows in all: how often each resample holds each of n samples.

    Args:
        n: Number of samples.
        resamples: Number of resamples.
        seed: Of the resampling.
        strata: (n,), as for `bootstrap_mean`.
    """
    for index in _draws(n, resamples, seed, strata):
        cells = (index + n * np.arange(len(index))[:, None]).ravel()
        yield np.bincount(cells, minlength=len(index) * n).reshape(len(index), n).astype(np.float64)


def interval_of(estimate: float, drawn: Floats, *, level: float = 0.95, recentred: bool = False) -> Interval:
    """Returns an estimate with the percentile interval of its resamples.

    Args:
        estimate: On the whole sample.
        drawn: (R,), on each resample; not a number, where it is undefined on one, is left out.
        level: Share of them inside.
        recentred: As for `bootstrap_statistic`.
    """
    defined = drawn[~np.isnan(drawn)]
    if not defined.size:
        defined = np.array([estimate])
    return _interval(estimate, defined + (estimate - defined.mean()) if recentred else defined, level)


def _draws(n: int, resamples: int, seed: int, strata: ArrayLike | None = None) -> Iterator[Ints]:
    """Yields blocks (B, n) of resampled positions, ``resamples`` rows in all, each block of bounded memory."""
    groups = [np.arange(n, dtype=np.int64)] if strata is None else _strata(strata, n)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, resamples, rows):
        shape = min(rows, resamples - start)
        drawn = [group[generator.integers(0, len(group), size=(shape, len(group)))] for group in groups]
        yield np.concatenate(drawn, axis=1)


def _strata(strata: ArrayLike, n: int) -> list[Ints]:
    names = np.asarray(strata)
    if names.shape != (n,):
        raise InputError(f"strata have shape {names.shape}, values ({n},)")
    _, group = np.unique(names, return_inverse=True)
    return [np.flatnonzero(group == k) for k in range(int(group.max()) + 1)]


def _interval(estimate: float, drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=estimate, low=float(low), high=float(high), level=level)


def _values(values: ArrayLike) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise InputError(f"a bootstrap needs finite numbers (N,), N >= 1, got shape {numbers.shape}")
    return numbers


def _check(level: float, resamples: int) -> None:
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level!r}, expected a number in (0, 1)")
    if resamples < 1:
        raise InputError(f"resamples is {resamples!r}, expected at least 1")
