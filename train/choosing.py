"""Which samples a stage works on when it does not take all of them, and in which order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from emocaliber.runtime.samples import Sample

from .conversations import passes


def choose_samples(samples: Sequence[Sample], count: int | None, balance: float, seed: int) -> list[Sample]:
    """Returns ``count`` of the samples, or all, in an order the seed fixes.

    Of a taxonomy with n samples a share in proportion to ``n ** balance`` is taken, or all n where that would be more.

    Args:
        samples: To choose from.
        count: How many; None or more than there are takes all.
        balance: 1 chooses without regard to the taxonomy, 0 as many of each.
        seed: Of the order.
    """
    order = list(samples)
    random.Random(seed).shuffle(order)  # noqa: S311 - reproducible choice, not secrecy
    return take_balanced(order, count, balance)


def take_balanced(order: Sequence[Sample], count: int | None, balance: float) -> list[Sample]:
    """Returns what `choose_samples` does, of samples that are in an order already: the first of each taxonomy."""
    if count is None or count >= len(order) or balance == 1.0:
        return list(order[:count])
    sizes: dict[str, int] = {}
    for sample in order:
        sizes[sample.taxonomy] = sizes.get(sample.taxonomy, 0) + 1
    quota = _quotas(sizes, count, balance)
    chosen = []
    for sample in order:
        if quota[sample.taxonomy] > 0:
            quota[sample.taxonomy] -= 1
            chosen.append(sample)
    return chosen


def prompt_samples(samples: Sequence[Sample], count: int, balance: float, seed: int) -> list[Sample]:
    """Returns ``count`` samples, in passes over those that `choose_samples` takes; see `passes`."""
    return passes(samples if balance == 1.0 else choose_samples(samples, count, balance, seed), count, seed)


def _quotas(sizes: dict[str, int], count: int, balance: float) -> dict[str, int]:
    """Returns how many of each taxonomy are taken, smallest first, so that what one cannot give the others do."""
    quota, left = {}, count
    weights = {name: size**balance for name, size in sizes.items()}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        quota[name] = min(sizes[name], round(left * weights[name] / sum(weights.values())))
        left -= quota[name]
        del weights[name]
    return quota
