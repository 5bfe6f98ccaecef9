"""Dynamic batching: one thread owns the model and computes together what waits with the same question."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from emocaliber.runtime.errors import BackendError, EmoCaliberError
from emocaliber.runtime.images import ImageLimits, decode_image
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.streaming import Final, Provisional, Section

from .metrics import Metrics
from .questions import Question
from .settings import Settings

_LOG = logging.getLogger(__name__)

Emit = Callable[[Provisional | Section], None]
"""Takes what a stream says before its end; called from the worker's thread."""


class Full(Exception):  # noqa: N818 - not a fault: the service is busy
    """All places are taken."""


@dataclass(kw_only=True, eq=False)
class Job:
    """One image and what is asked of it."""

    image: bytes
    """The encoded file."""
    question: Question
    """What is asked."""
    deadline: float
    """When nobody waits any more, on the clock of `time.monotonic`."""
    emit: Emit | None = None
    """Takes the events of a stream; None computes it in a batch."""
    future: Future[Prediction] = field(default_factory=Future)
    """Gets the prediction or what went wrong."""
    submitted: float = field(default_factory=time.monotonic)
    """When it was handed in, on the same clock."""
    abandoned: bool = False
    """Whether nobody listens to the stream any more."""

    def abandon(self) -> None:
        """Says that nobody waits any more: the job is dropped, or, where it is a stream that runs, soon ended."""
        self.abandoned = True
        self.future.cancel()


class Batcher:
    """A bounded number of places, a queue, and the thread that works it off.

    A place is held from `admit` until the job is over, also where nobody waits for it any more: what is in memory is
    bounded by the number of places, whatever clients do.
    """

    def __init__(self, model: EmotionModel, settings: Settings, metrics: Metrics) -> None:
        self._model = model
        self._settings = settings
        self._limits = ImageLimits(max_pixels=settings.max_pixels, max_file_bytes=settings.max_body_bytes)
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._taken = 0
        self._closing = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="emocaliber-worker", daemon=True)
        metrics.watch("places_taken", "Requests uploaded, waiting or computed now.", lambda: self._taken)
        metrics.watch(
            "places", "Requests that may be uploaded, waiting or computed at once.", lambda: settings.capacity
        )
        metrics.watch("queue_length", "Images waiting to be computed.", lambda: len(self._waiting))

    def start(self) -> None:
        """Starts the worker."""
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether the worker works and takes new jobs."""
        return self._worker.is_alive() and not self._closing

    def close(self) -> None:
        """Takes no more, finishes what waits, and stops the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join()

    def admit(self) -> None:
        """Takes a place, which `submit` or `release` gives back.

        Raises:
            Full: If there is none.
        """
        with self._changed:
            if self._taken >= self._settings.capacity or self._closing:
                raise Full
            self._taken += 1

    def release(self) -> None:
        """Gives a place back that was taken and not used."""
        with self._changed:
            self._taken -= 1

    def submit(self, job: Job) -> None:
        """Queues a job, whose place is given back when its future is done; cancelling the future takes it out."""
        job.future.add_done_callback(lambda _: self._forget(job))
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def _forget(self, job: Job) -> None:
        with self._changed:
            self._taken -= 1
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Computes what is next and returns whether there may be more. What it held is freed when it returns."""
        jobs = self._next()
        if not jobs:
            return jobs is not None
        started = time.monotonic()
        try:
            if jobs[0].emit is None:
                self._answer(jobs)
            else:
                self._stream(jobs[0], jobs[0].emit)
        except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(_told(error))
        self._metrics.computed(len(jobs), time.monotonic() - started)
        return True

    def _next(self) -> list[Job] | None:
        """Returns the oldest job and those that go with it; nothing if all were cancelled, None at the end."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            oldest = self._waiting[0]
            together = [oldest]
            if oldest.emit is None:
                alike = [job for job in self._waiting if job.emit is None and job.question == oldest.question]
                together = alike[: self._settings.max_batch]
            for job in together:
                self._waiting.remove(job)
        return [job for job in together if job.future.set_running_or_notify_cancel()]

    def _answer(self, jobs: list[Job]) -> None:
        """Computes a batch. Images are decoded one at a time; one that cannot be read fails alone."""
        begun = time.monotonic()
        readable: list[tuple[Job, float]] = []

        def images() -> Iterator[npt.NDArray[np.uint8]]:
            for job in jobs:
                start = time.monotonic()
                try:
                    rgb = decode_image(job.image, limits=self._limits)
                except Exception as error:  # noqa: BLE001 - InputError, or too little memory for this one
                    job.future.set_exception(_told(error))
                    continue
                readable.append((job, time.monotonic() - start))
                yield rgb

        question = jobs[0].question
        predictions = self._model.predict_batch(images(), **question.arguments())
        for (job, decode_s), prediction in zip(readable, predictions, strict=True):
            self._deliver(job, prediction, decode_s, begun)

    def _stream(self, job: Job, emit: Emit) -> None:
        """Computes one image, handing on what the model says before its end, within the time that is left."""
        begun = time.monotonic()
        rgb = decode_image(job.image, limits=self._limits)
        decode_s = time.monotonic() - begun
        budget_ms = max(1.0, 1e3 * (job.deadline - time.monotonic()))
        for event in self._model.stream(rgb, **job.question.arguments(), budget_ms=budget_ms):
            if isinstance(event, Final):
                return self._deliver(job, event.prediction, decode_s, begun)
            if job.abandoned:
                raise BackendError("nobody listens to this stream any more")
            emit(event)
        raise BackendError("the model's stream ended without a prediction")

    def _deliver(self, job: Job, prediction: Prediction, decode_s: float, begun: float) -> None:
        self._metrics.predicted(prediction.mode, calibrated=prediction.calibrated)
        queue_ms, decode_ms = 1e3 * (begun - job.submitted), 1e3 * decode_s
        timing = prediction.timing_ms
        total_ms = timing["total"] + queue_ms + decode_ms
        timing = {**timing, "queue": queue_ms, "decode": decode_ms, "total": total_ms}
        rounded = {step: round(value, 3) for step, value in timing.items()}
        job.future.set_result(dataclasses.replace(prediction, timing_ms=rounded))


def _told(error: Exception) -> EmoCaliberError:
    """Returns what a client hears of an error; what is not ours goes to the log."""
    if isinstance(error, EmoCaliberError):
        return error
    _LOG.error("the model failed", exc_info=error)
    return BackendError(f"the model failed ({type(error).__name__}); the log of the service says how")
