"""Live curves of a stage: TensorBoard event files, and one drawing for those who have no TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from emocaliber.runtime.files import atomic_write

from .curves_drawing import curves_svg
from .stated import BINS, TALLY, Tally

LOGS = "logs"
DRAWING = "curves.svg"
REDRAW_S = 3.0
"""Least seconds between two drawings."""
REDRAW_SHARE = 0.01
"""Most of the time that may be spent on drawing, which takes longer the longer the run."""


class Curves(TrainerCallback):
    """Writes every figure that is logged to ``logs/`` for TensorBoard, and draws the main ones in ``curves.svg``."""

    def __init__(self, title: str, folder: Path) -> None:
        self._title = title
        self._folder = folder
        self._writer: Any = None
        self._due = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the event file; what an interrupted run logged after its last checkpoint is hidden."""
        if state.is_world_process_zero:
            # Half a second to import, and only now needed.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder / LOGS), purge_step=state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Writes the newest figures, and draws again if the drawing is old."""
        if self._writer is None:
            return
        for name, value in (logs or {}).items():
            if name == TALLY:
                _add_histogram(self._writer, value, state.global_step)
            elif isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, state.global_step)
        self._writer.flush()
        if time.monotonic() >= self._due:
            self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws the whole run and closes the event file."""
        if self._writer is not None:
            self._draw(state)
            self._writer.close()

    def _draw(self, state: Any) -> None:
        started = time.monotonic()
        atomic_write(self._folder / DRAWING, curves_svg(self._title, state.log_history, state.max_steps))
        now = time.monotonic()
        self._due = now + max(REDRAW_S, (now - started) / REDRAW_SHARE)


def _add_histogram(writer: Any, stated: Tally, step: int) -> None:
    """Adds the histogram of one step's stated confidences; the middle of a bin stands for its values."""
    middles = [(place + 0.5) / BINS for place in range(BINS)]
    counts = stated["count"]
    writer.add_histogram_raw(
        "stated confidences",
        min=0.0,
        max=1.0,
        num=sum(counts),
        sum=sum(stated["confidence"]),
        sum_squares=sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
        bucket_limits=[(place + 1) / BINS for place in range(BINS)],
        bucket_counts=counts,
        global_step=step,
    )
