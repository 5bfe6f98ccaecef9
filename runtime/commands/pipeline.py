"""Predicting many images: threads read and decode the next ones while the engine works on these.

Images are predicted in chunks whose borders depend on nothing but their positions, because the last bits of a score
move with what stands in the same pass: so a run that is continued, or shared out, gives the same numbers.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.drift import Drift
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.preprocessing import Preprocessing

from .inference import Question, Unreadable, json_line
from .inputs import Item

CHUNK = 32
"""Images that are predicted together; as many more are decoded meanwhile."""

MAX_READERS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Decoded:
    """An image in memory, no larger than the model needs it."""

    rgb: NDArray[np.uint8]
    decode_ms: float
    shrink_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """What came of the images of one chunk, in their order."""

    lines: tuple[str, ...]
    """JSON lines."""
    failed: int
    """How many of them are errors."""
    drifts: tuple[Drift | None, ...]
    """`Prediction.drift` of each; None for an image that could not be read."""


def default_readers() -> int:
    """Returns how many threads read and decode where the user names no number: one a core, at most `MAX_READERS`."""
    return min(os.cpu_count() or 1, MAX_READERS)


def predict_chunks(
    model: EmotionModel, chunks: Sequence[Sequence[Item]], *, readers: int
) -> Generator[ChunkResult, None, None]:
    """Yields the result of each chunk, in order; an image that cannot be read gives its error.

    At most two chunks are in memory, besides what each reader is decoding.

    Args:
        model: What predicts.
        chunks: At most `CHUNK` images each.
        readers: Threads that read and decode.

    Raises:
        EmoCaliberError: If the model or a question cannot be used.
    """
    preprocessing = model.manifest.preprocessing

    def read(item: Item) -> _Decoded | Unreadable:
        return _read(item, preprocessing)

    with closing(_ahead(read, chain.from_iterable(chunks), readers)) as images:
        for chunk in chunks:
            results = _predict_chunk(model, chunk, [next(images) for _ in chunk])
            yield ChunkResult(
                lines=tuple(map(json_line, results)),
                failed=sum(isinstance(result, Unreadable) for result in results),
                drifts=tuple(None if isinstance(result, Unreadable) else result.drift for result in results),
            )


def _ahead(
    read: Callable[[Item], _Decoded | Unreadable], items: Iterable[Item], readers: int
) -> Generator[_Decoded | Unreadable, None, None]:
    """Yields what ``read`` returns of each item, in order; threads are at work on the `CHUNK` next ones."""
    waiting_for = iter(items)
    with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
        begun: deque[Future[_Decoded | Unreadable]] = deque(
            pool.submit(read, item) for item in islice(waiting_for, CHUNK)
        )
        try:
            while begun:
                result = begun.popleft().result()
                begun.extend(pool.submit(read, item) for item in islice(waiting_for, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _read(item: Item, preprocessing: Preprocessing | PatchPreprocessing) -> _Decoded | Unreadable:
    started = time.perf_counter()
    try:
        rgb = decode_image(item.source())
        decoded = time.perf_counter()
        small = preprocessing.shrink(rgb)
    except InputError as error:
        named = error if item.member is None else InputError(f"image {item.image!r}: {error}")
        return Unreadable(image=item.image, error=named)
    return _Decoded(rgb=small, decode_ms=1e3 * (decoded - started), shrink_ms=1e3 * (time.perf_counter() - decoded))


def _predict_chunk(
    model: EmotionModel, chunk: Sequence[Item], images: Sequence[_Decoded | Unreadable]
) -> list[Prediction | Unreadable]:
    """Returns the results of a chunk: one pass for all images of the same question."""
    results: dict[int, Prediction | Unreadable] = {}
    readable: dict[int, _Decoded] = {}
    asked: dict[Question, list[int]] = {}
    for place, (item, image) in enumerate(zip(chunk, images, strict=True)):
        if isinstance(image, Unreadable):
            results[place] = image
        else:
            readable[place] = image
            asked.setdefault(item.question, []).append(place)
    for question, places in asked.items():
        predictions = model.predict_batch([readable[place].rgb for place in places], **question.arguments())
        for place, prediction in zip(places, predictions, strict=True):
            results[place] = _named(prediction, chunk[place].image, readable[place])
    return [results[place] for place in range(len(chunk))]


def _named(prediction: Prediction, image: str, decoded: _Decoded) -> Prediction:
    """Returns the prediction with the image's name and the time that reading it took."""
    timing = dict(prediction.timing_ms)
    timing["total"] += decoded.decode_ms + decoded.shrink_ms - timing["decode"]
    timing["decode"] = decoded.decode_ms
    timing["preprocess"] += decoded.shrink_ms
    return dataclasses.replace(
        prediction, image=image, timing_ms={step: round(value, 3) for step, value in timing.items()}
    )
