"""Smoothing over time: one steady distribution from the predictions of a video's or a camera's frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """The smoothed distribution at one moment."""

    distribution: dict[str, float]
    """Probability of every label, in the order of the frames; sums to one."""
    time_s: float
    """Time of the last frame, in seconds."""
    frames: int
    """Number of frames it is made of."""

    @property
    def label(self) -> str:
        """The most probable label; the earlier one where two are equal."""
        return max(self.distribution, key=self.distribution.__getitem__)

    @property
    def confidence(self) -> float:
        """The smoothed probability of `label`: the mean of calibrated ones, itself not calibrated."""
        return self.distribution[self.label]


class Smoother:
    """Averages distributions with weights that halve with every half-life.

    For frames p_1, p_2, … at times t_1 <= t_2 <= …, with half-life h:
    ``m_1 = p_1`` and ``m_i = w m_(i-1) + (1 - w) p_i``, where ``w = 2^(-(t_i - t_(i-1)) / h)``. It is the exponential
    moving average of an unevenly spaced series, each frame standing for the time since the one before (Eckner 2012,
    "Algorithms for Unevenly Spaced Time Series"): what was known h seconds ago counts half, at any frame rate, and
    frames that come in bursts do not count for more. Two frames of the same time count as the first alone.

    Not for several threads at once: one camera, one smoother.
    """

    def __init__(self, half_life_s: float) -> None:
        """Starts without a frame.

        Args:
            half_life_s: h, in seconds.

        Raises:
            InputError: If it is not a positive number.
        """
        if not 0.0 < half_life_s < math.inf:
            raise InputError(f"half_life_s is {half_life_s!r}, expected a positive number of seconds")
        self.half_life_s = half_life_s
        self._last: Smoothed | None = None

    def update(self, distribution: Mapping[str, float], time_s: float) -> Smoothed:
        """Takes in the next frame's `Prediction.distribution` and returns the smoothed one.

        Args:
            distribution: Probability of every label, summing to one.
            time_s: Time of the frame, in seconds from any fixed moment; not before that of the last frame.

        Raises:
            InputError: If the labels are others than before, the probabilities do not sum to one, or time runs back.
        """
        values = tuple(distribution.values())
        if not values or min(values) < 0.0 or not abs(math.fsum(values) - 1.0) < 1e-6:
            raise InputError(f"the frame at {time_s} s has probabilities {values}, which do not sum to one")
        if not math.isfinite(time_s):
            raise InputError(f"time_s is {time_s!r}, expected a number of seconds")
        if self._last is None:
            self._last = Smoothed(distribution=dict(distribution), time_s=time_s, frames=1)
            return self._last
        last = self._last
        if distribution.keys() != last.distribution.keys():
            raise InputError(
                f"the frame at {time_s} s has labels {', '.join(distribution)}, those before had "
                f"{', '.join(last.distribution)}; use one smoother for each label set"
            )
        if time_s < last.time_s:
            raise InputError(f"the frame at {time_s} s comes after that at {last.time_s} s; reset the smoother first")
        old = 2.0 ** (-(time_s - last.time_s) / self.half_life_s)
        mixed = {label: old * p + (1.0 - old) * distribution[label] for label, p in last.distribution.items()}
        self._last = Smoothed(distribution=mixed, time_s=time_s, frames=last.frames + 1)
        return self._last

    def reset(self) -> None:
        """Forgets all frames: at a cut, or when a camera starts again."""
        self._last = None
