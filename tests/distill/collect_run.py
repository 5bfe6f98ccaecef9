"""Collects traces of a tiny teacher in a process of its own: ``collect_run.py here|workers FOLDER``.

``FOLDER`` holds ``samples.jsonl``. ``here`` collects into ``FOLDER/here`` one image at a time, which a test kills.
``workers`` does so by a local Ray cluster of two workers, which leave their process numbers in ``FOLDER/workers.pids``;
then it provokes what can go wrong there, and leaves the messages in ``FOLDER/messages.json``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tiny_model import build_model, build_processor

from emocaliber.distill.collect import collect_traces
from emocaliber.distill.traces import Teacher
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.errors import ArtifactError, EmoCaliberError, InputError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample, read_samples
from emocaliber.runtime.scoring import Scored
from emocaliber.train.stage_recipes import CollectRecipe

TABLE = CollectRecipe(samples=2, label_orders=2, batch_size=2, shard_images=1)
"""Of every collection, so that they can be compared byte by byte."""


def open_teacher(pids: Path | None = None) -> Teacher:
    if pids is not None:
        pids.mkdir(exist_ok=True)
        (pids / str(os.getpid())).touch()
    processor = build_processor()
    template = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
    return TransformersModel(build_model(processor), processor, template, 6)


def open_nothing() -> Teacher:
    raise ArtifactError("there is no teacher here")


class Blind:
    """A teacher that can read no image."""

    def score(self, images: list[str], *_: object) -> Scored:
        raise InputError(f"cannot read image {images[0]}")


class Clumsy:
    """A teacher with a bug."""

    def score(self, *_: object) -> Scored:
        raise ZeroDivisionError("by nothing")


def collect_here(samples: list[Sample], folder: Path) -> None:
    collect_traces(open_teacher, samples, TABLE, folder / "here", teacher="tiny", seed=3)


def collect_by_workers(samples: list[Sample], folder: Path) -> list[str]:
    """Returns the messages of what failed."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def collect(name: str, opened: Callable[[], Teacher], workers: int = 2) -> None:
        table = dataclasses.replace(TABLE, workers=workers)
        collect_traces(opened, samples, table, folder / name, teacher="tiny", seed=3)

    collect("workers", partial(open_teacher, folder / "workers.pids"))
    messages = []
    for name, opened, workers in (
        ("many", Blind, 3),
        ("closed", open_nothing, 2),
        ("blind", Blind, 2),
        ("bug", Clumsy, 2),
    ):
        try:
            collect(name, opened, workers)
        except EmoCaliberError as error:
            messages.append(f"{type(error).__name__}: {error}")
    # What was there before stays.
    assert ray.is_initialized()
    ray.shutdown()
    return messages


def main(how: str, name: str) -> None:
    folder = Path(name)
    samples = read_samples(folder / "samples.jsonl")
    if how == "here":
        collect_here(samples, folder)
    else:
        (folder / "messages.json").write_text(json.dumps(collect_by_workers(samples, folder)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
