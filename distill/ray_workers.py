"""Collecting on several machines: Ray Data's pool of actors, each with a teacher of its own.

What an actor makes is the content of a shard, which the driver writes; so the machines need the same images and weights
under the same paths, but no common place for the traces.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pyarrow as pa

from emocaliber.runtime import errors
from emocaliber.runtime.errors import BackendError, DependencyError, EmoCaliberError
from emocaliber.runtime.records import from_mapping, to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.stage_recipes import CollectRecipe

from .collect import ShardMaker
from .traces import Teacher

Make = tuple[Callable[[], Teacher], CollectRecipe, str, int]
"""What a `ShardMaker` is made of: teacher, table, name, seed."""


class _Actor:
    """Makes shards in a worker's process.

    Our own errors come back as data: of an exception Ray passes on only the text, with its traceback.
    """

    def __init__(self, make: Make) -> None:
        open_teacher, table, name, seed = make
        self._maker: ShardMaker | EmoCaliberError
        try:
            self._maker = ShardMaker(open_teacher, table, name=name, seed=seed)
        except EmoCaliberError as error:
            self._maker = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Returns a shard's number with its content, or with kind and text of an error; takes its samples as JSON."""
        (number,), (text,) = batch["shard"].to_pylist(), batch["samples"].to_pylist()
        content, kind, message = b"", "", ""
        try:
            if isinstance(self._maker, EmoCaliberError):
                raise self._maker
            content = self._maker.make([from_mapping(Sample, row, "sample") for row in json.loads(text)])
        except EmoCaliberError as error:
            kind, message = type(error).__name__, str(error)
        return pa.table({"shard": [number], "content": [content], "kind": [kind], "message": [message]})


def made_by_workers(
    make: Make, shards: Mapping[int, list[Sample]], *, workers: int, threads: int
) -> Iterator[tuple[int, bytes]]:
    """Yields the number and content of each shard as a worker has made it, in any order.

    The cluster is the one that ``RAY_ADDRESS`` names or that ``ray start`` has started here; else one of this machine,
    which ends with the work. A worker takes a GPU where the cluster has any.

    Args:
        make: What each worker makes its `ShardMaker` of; it is sent to them.
        shards: Number to images.
        workers: Most actors.
        threads: CPUs an actor takes.

    Raises:
        DependencyError: If Ray is not installed.
        BackendError: If the cluster is too small for the workers, or Ray fails.
        EmoCaliberError: Whatever a worker's teacher raises.
    """
    # No reports of usage leave the machine unless a user asks for them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(
            f"collect.workers is {workers}, which needs Ray ({error}); run: pip install 'emocaliber[ray]', or say "
            f"--set collect.workers=1"
        ) from error
    workers = min(workers, len(shards))
    rows = [{"shard": number, "samples": json.dumps(to_mapping(samples))} for number, samples in shards.items()]
    # Ray prints what its workers complain of on standard output, where only results belong.
    with contextlib.redirect_stdout(sys.stderr), _cluster(ray):
        needs = _needs(ray.cluster_resources(), workers, threads)
        ray.data.DataContext.get_current().enable_progress_bars = False
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(make,),
            **needs,
        )
        try:
            for row in made.iter_rows():
                if row["kind"]:
                    raise cast("EmoCaliberError", getattr(errors, row["kind"])(row["message"]))
                yield row["shard"], row["content"]
        except ray.exceptions.RayError as error:
            raise BackendError(f"Ray failed: {_said(error)}") from error


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connects to a cluster, or starts one, for as long as the block lasts; one that is connected already stays.

    Raises:
        BackendError: If there is none to be had.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        # Bare where a node is too slow to start.
        address = os.environ.get("RAY_ADDRESS", "none is set")
        raise BackendError(f"Ray did not start or answer (RAY_ADDRESS: {address}): {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _needs(cluster: Mapping[str, float], workers: int, threads: int) -> dict[str, Any]:
    """Returns what Ray reserves for a worker.

    Raises:
        BackendError: If the cluster has not enough of it: Ray would wait for ever.
    """
    needs = {"CPU": threads} | ({"GPU": 1} if cluster.get("GPU", 0) else {})
    for what, each in needs.items():
        if workers * each > cluster.get(what, 0):
            fitting = int(cluster.get(what, 0) // each)
            raise BackendError(
                f"{workers} workers need {workers * each} {what}s, but the Ray cluster has {cluster.get(what, 0):g}; "
                f"say --set collect.workers={max(1, fitting)}, or add machines with 'ray start'"
            )
    return {f"num_{what.lower()}s": each for what, each in needs.items()}


def _said(error: BaseException) -> str:
    """Returns the line of Ray's message that names an error, one of a worker's code rather than one of Ray's."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    foreign = [line for line in named if not line.startswith("ray.")]
    return (foreign or named or lines)[-1]
