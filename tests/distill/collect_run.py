"""Collects traces of a tiny teacher in a process of its own: ``collect_run.py here|workers FOLDER``.

``FOLDER`` holds ``samples.jsonl``. ``here`` collects into ``FOLDER/here`` one image at a time, which a test kills.
``workers`` does so by a local Ray cluster of two workers, which leave their process numbers in ``FOLDER/workers.pids``;
then it provokes what can go wrong there, and prints the messages as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

from tiny_model import build_model, build_processor

from emocaliber.distill.collect import collect_traces
from emocaliber.distill.traces import Teacher
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.errors import BackendError, InputError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample, read_samples
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
    raise InputError("there is no teacher here")


def collect_here(samples: list[Sample], folder: Path) -> None:
    collect_traces(open_teacher, samples, TABLE, folder / "here", teacher="tiny", seed=3)


def collect_by_workers(samples: list[Sample], folder: Path) -> list[str]:
    """Returns the messages of what failed."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def collect(name: str, workers: int = 2, opened: partial[Teacher] | None = None) -> None:
        table = CollectRecipe(**{key: getattr(TABLE, key) for key in TABLE.__slots__} | {"workers": workers})
        opener = opened or partial(open_teacher, folder / "workers.pids")
        collect_traces(opener, samples, table, folder / name, teacher="tiny", seed=3)

    collect("workers")
    messages = []
    broken = [Sample(**{key: getattr(samples[0], key) for key in Sample.__slots__} | {"image": "gone.png"})]
    for work in (
        lambda: collect("many", workers=3),
        lambda: collect("closed", opened=partial(open_nothing)),
        lambda: collect_traces(
            open_teacher, broken * 2, CollectRecipe(workers=2, shard_images=1), folder / "gone", teacher="tiny", seed=3
        ),
    ):
        try:
            work()
        except BackendError as error:
            messages.append(str(error))
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
        sys.stdout.write(json.dumps(collect_by_workers(samples, folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
