"""Cross-validation as every fit of a calibrator uses it: the folds, and when a richer method is taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
"""Folds of the cross-validation."""


def assign_folds(n: int, seed: int) -> Ints:
    """Returns (N,) the fold of each sample, 0 to `FOLDS` - 1, in random order and of equal size to one."""
    fold = np.arange(n, dtype=np.int64) % FOLDS
    np.random.default_rng(seed).shuffle(fold)
    return fold


def clearly_better(losses: Floats, than: Floats) -> bool:
    """Returns whether the mean held-out loss is lower by more than one standard error of the paired difference.

    The one-standard-error rule (Breiman et al. 1984): of methods that cannot be told apart, the simpler one is kept.

    Args:
        losses: (N,), of the richer method.
        than: (N,), of the simpler one, on the same samples.
    """
    gain = than - losses
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))
