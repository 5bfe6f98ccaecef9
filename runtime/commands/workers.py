"""Predicting by Ray's workers, each with a model of its own: the same chunks, and so the same numbers, as here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.ray_pool import Worker, made_by_workers
from emocaliber.runtime.records import from_mapping, to_mapping

from .inputs import Item
from .pipeline import ChunkResult, predict_chunks

TASK_CHUNKS = 8
"""Chunks a worker takes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    chunks: tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskResult:
    chunks: tuple[ChunkResult, ...]


def predict_by_workers(
    load: Mapping[str, Any], chunks: Sequence[Sequence[Item]], *, workers: int, threads: int, readers: int | None
) -> Iterator[ChunkResult]:
    """Yields the result of each chunk, in order.

    Relative paths are those of this process's working folder, which must be there on every machine.

    Args:
        load: Arguments of `EmotionModel.load`, for each worker.
        chunks: The images.
        workers: Most processes.
        threads: CPUs each takes.
        readers: Threads that read and decode in each; None is as many as ``threads``.

    Raises:
        EmoCaliberError: As `made_by_workers` does.
    """
    folder = str(Path.cwd())

    def open_worker() -> Worker:
        try:
            os.chdir(folder)
        except OSError as error:
            raise InputError(f"a worker cannot enter the working folder {folder}: {error.strerror}") from error
        model = EmotionModel.load(**{**load, "threads": threads})

        def work(text: str) -> bytes:
            task = from_mapping(_Task, json.loads(text), "task")
            made = tuple(predict_chunks(model, task.chunks, readers=readers or threads))
            return json.dumps(to_mapping(_TaskResult(chunks=made))).encode("ascii")

        return work

    tasks = {
        number: json.dumps({"chunks": to_mapping([list(chunk) for chunk in chunks[start : start + TASK_CHUNKS]])})
        for number, start in enumerate(range(0, len(chunks), TASK_CHUNKS))
    }
    made = made_by_workers(
        open_worker, tasks, workers=workers, threads=threads, option="--ray ", gpus=load["engine"] != "cpu"
    )
    early: dict[int, bytes] = {}
    wanted = 0
    for number, content in made:
        early[number] = content
        while wanted in early:
            yield from from_mapping(_TaskResult, json.loads(early.pop(wanted)), "result").chunks
            wanted += 1
