"""Collecting on several machines: Ray's workers, each with a teacher of its own, make the content of shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from emocaliber.runtime.ray_pool import Worker, made_by_workers
from emocaliber.runtime.records import from_mapping, to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.stage_recipes import CollectRecipe

from .collect import ShardMaker
from .traces import Teacher


def shards_by_workers(
    make: tuple[Callable[[], Teacher], CollectRecipe, str, int],
    shards: Mapping[int, list[Sample]],
    *,
    workers: int,
    threads: int,
) -> Iterator[tuple[int, bytes]]:
    """Yields the number and content of each shard as a worker has made it, in any order.

    Args:
        make: What each worker makes its `ShardMaker` of (teacher, table, name, seed); it is sent to them.
        shards: Number to images.
        workers: Most processes.
        threads: CPUs each takes.

    Raises:
        EmoCaliberError: As `made_by_workers` does.
    """

    def open_worker() -> Worker:
        open_teacher, table, name, seed = make
        maker = ShardMaker(open_teacher, table, name=name, seed=seed)
        return lambda text: maker.make([from_mapping(Sample, row, "sample") for row in json.loads(text)])

    tasks = {number: json.dumps(to_mapping(samples)) for number, samples in shards.items()}
    yield from made_by_workers(open_worker, tasks, workers=workers, threads=threads, option="--set collect.workers=")
