"""What `EmotionModel.stream` yields: first answer, reasoning part by part, final prediction; and the time budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

from .decoding import Sampling
from .errors import InputError
from .grammar import REASONING_TAGS
from .prediction import Prediction
from .readout import Readout, Tiles
from .scoring import Draft, Scorer, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisional:
    """The answer of direct mode: the first event, where the model goes on to reason."""

    prediction: Prediction
    """In direct mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a reasoning, as soon as its closing tag is written."""

    sample: int
    """Number of the reasoning it belongs to, from 0; they are written one after another."""
    tag: str
    """Which part it is, one of ``element``, ``human``, ``context``, ``interaction``, ``analysis``."""
    text: str
    """What the model wrote, white space around it removed."""
    elapsed_ms: float
    """Time since `EmotionModel.stream` was called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """The prediction that stands: always the last event."""

    prediction: Prediction
    """`Prediction.out_of_time` says whether the time budget cut the reasoning short."""


StreamEvent = Provisional | Section | Final
"""An event of `EmotionModel.stream`: at most one `Provisional`, any number of `Section`, one `Final`, in this order."""

_SECTION = re.compile(rf"<({'|'.join(REASONING_TAGS)})>([^<>]*)</\1>")


class Clock:
    """Time since it was made, against a budget in milliseconds; None is no budget.

    Raises:
        InputError: If the budget is not a positive number.
    """

    def __init__(self, budget_ms: float | None) -> None:
        if budget_ms is not None and not 0.0 < budget_ms < math.inf:
            raise InputError(f"budget_ms is {budget_ms!r}, expected a positive number of milliseconds, or None")
        self._start = perf_counter()
        self._budget_ms = budget_ms

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the clock was made."""
        return 1e3 * (perf_counter() - self._start)

    @property
    def ran_out(self) -> bool:
        """Whether the budget is spent; never without one."""
        return self._budget_ms is not None and self.elapsed_ms >= self._budget_ms


def reason_in_time(
    scorer: Scorer, tiles: Tiles, seen: Seen, readout: Readout, sampling: Sampling, first: Prediction, clock: Clock
) -> Iterator[StreamEvent]:
    """Yields the sections of one image's reasonings as they close, then the final prediction.

    The clock is read before every decoder pass. When it has run out, what is half written is left, and the reasonings
    that are complete give the prediction; where none is, ``first`` stands. So the end comes late by at most one pass
    and, where reasonings are complete, one for the confidence stated after each.

    Args:
        scorer: Writes and scores.
        tiles: The one image.
        seen: The same.
        readout: Of reason mode.
        sampling: How reasonings are drawn.
        first: The image's prediction in direct mode.
        clock: With the time budget.

    Raises:
        BackendError: If the engine fails.
    """
    labels = readout.taxonomy.labels
    drafts = scorer.drafts(seen, labels, sampling)
    complete: list[Draft] = []
    shown = 0
    text_ms = 0.0
    while len(complete) < sampling.samples and not clock.ran_out:
        start = perf_counter()
        draft = next(drafts)
        text_ms += 1e3 * (perf_counter() - start)
        sections = _SECTION.findall(draft.text)
        for tag, text in sections[shown:]:
            yield Section(sample=draft.sample, tag=tag, text=text.strip(), elapsed_ms=clock.elapsed_ms)
        shown = len(sections)
        if draft.label_scores is not None:
            complete.append(draft)
            shown = 0
    out_of_time = len(complete) < sampling.samples
    if complete:
        scored = scorer.score_drafts(seen, labels, complete, text_ms=text_ms)
        [prediction] = readout.predictions(tiles, scored, text_ms=first.timing_ms["text"])
    else:
        timing = {step: ms + text_ms * (step in ("text", "total")) for step, ms in first.timing_ms.items()}
        prediction = replace(first, timing_ms={step: round(ms, 3) for step, ms in timing.items()})
    yield Final(prediction=replace(prediction, out_of_time=out_of_time))
