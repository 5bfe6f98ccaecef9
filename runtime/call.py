"""What a caller asks of images, checked as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from .decoding import GREEDY, Sampling
from .errors import InputError
from .grammar import ASKED_MODES, AskedMode, Mode
from .prediction import Prediction
from .taxonomy import Taxonomy


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One question, over any number of images.

    Raises:
        InputError: If it makes no sense.
    """

    taxonomy: Taxonomy
    """The candidates."""
    mode: AskedMode
    """The mode that was asked for."""
    coverage: float = 0.9
    """Coverage of the prediction sets, in (0, 1)."""
    sampling: Sampling = GREEDY
    """How reasonings are drawn."""
    max_set_size: int | None = None
    """Auto mode reasons where the prediction set of direct mode has more labels; None is 1."""

    def __post_init__(self) -> None:
        if self.mode not in ASKED_MODES:
            raise InputError(f"mode is {self.mode!r}, expected one of {', '.join(ASKED_MODES)}")
        if not 0.0 < self.coverage < 1.0:
            raise InputError(f"coverage is {self.coverage!r}, expected a number between 0 and 1, both excluded")
        if self.mode == "direct" and self.sampling.samples > 1:
            raise InputError(
                f"direct mode draws nothing, so {self.sampling.samples} samples make no sense; use mode 'reason'"
            )
        if self.max_set_size is not None and (self.mode != "auto" or self.max_set_size < 1):
            raise InputError(
                f"max_set_size is {self.max_set_size} in mode {self.mode!r}; it has to be at least 1, and goes with "
                "mode 'auto', which reasons where the prediction set is larger"
            )

    @property
    def longest_mode(self) -> Mode:
        """The mode that may take most memory."""
        return "direct" if self.mode == "direct" else "reason"

    def needs_reasoning(self, direct: Prediction) -> bool:
        """Returns whether the answer of direct mode is not enough."""
        limit = 1 if self.max_set_size is None else self.max_set_size
        return self.mode == "reason" or (self.mode == "auto" and len(direct.prediction_set()) > limit)
