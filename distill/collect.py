"""Collecting teacher traces: a folder of Parquet shards that a killed run goes on with, made here or by Ray's workers.

``collection.json`` beside the shards holds what they depend on; shards of another teacher, seed, list of images or way
of asking are refused, not mixed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.journal import refuse_other
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.stage_recipes import CollectRecipe

from .traces import SCHEMA, Teacher, fault_kind, make_traces

RECORD = "collection.json"

_FREE = ("images", "batch_size", "workers")
"""Of `CollectRecipe`, what may change between runs: the images are recorded themselves, the others move scores by no
more than rounding does."""


class ShardMaker:
    """A teacher that makes whole shards, here or in a process of its own."""

    def __init__(self, open_teacher: Callable[[], Teacher], table: CollectRecipe, *, name: str, seed: int) -> None:
        """Opens the teacher.

        Args:
            open_teacher: Returns the teacher.
            table: What is asked.
            name: Identity of the teacher, for the record.
            seed: Of the choices and draws.
        """
        self._teacher = open_teacher()
        self._table, self._name, self._seed = table, name, seed

    def make(self, samples: Sequence[Sample], progress: Callable[[float], None] = lambda _: None) -> bytes:
        """Returns the Parquet file of some images' traces; calls ``progress`` with the share that is done."""
        rows = make_traces(self._teacher, samples, self._table, name=self._name, seed=self._seed, progress=progress)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
        content: bytes = sink.getvalue().to_pybytes()
        return content


def collect_traces(
    open_teacher: Callable[[], Teacher],
    samples: Sequence[Sample],
    table: CollectRecipe,
    folder: Path,
    *,
    teacher: str,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Path:
    """Returns ``folder`` with the traces of all samples in both modes; shards that are complete are kept.

    In reason mode the reasoning is sampled; in direct mode nothing is. The answer is the most probable label, and the
    confidence is the one the teacher states for it. Says on standard error how many traces parsed, and why others did
    not.

    Args:
        open_teacher: Returns the teacher; called only where a shard is missing, and by each worker.
        samples: Images.
        table: What is asked, how it is drawn, and by how many workers.
        folder: Where the shards go.
        teacher: Identity of the teacher, for the record.
        seed: Of the choices and draws.
        settings: Whatever else the traces depend on, as plain values.
        threads: CPU threads of a worker; None takes one.

    Raises:
        ConfigError: If the folder holds traces that were collected with other settings.
        ArtifactError: If it holds traces without a record of their settings.
        DependencyError: If there are to be several workers, and Ray is not installed.
        BackendError: If the workers do not fit in the cluster, or fail.
    """
    shards = [list(samples[start : start + table.shard_images]) for start in range(0, len(samples), table.shard_images)]
    kept = {key: value for key, value in to_mapping(table).items() if key not in _FREE}
    depends = {"teacher": teacher, "seed": seed, "images": _digest(samples), **(settings or {})}
    _claim(folder, len(shards), {**depends, **{f"collect.{key}": value for key, value in kept.items()}})
    missing = {number: shard for number, shard in enumerate(shards) if not _path(folder, number).is_file()}
    waiting = sum(map(len, missing.values()))
    with tqdm(total=len(samples), initial=len(samples) - waiting, desc="collect", unit="image", file=sys.stderr) as bar:
        for number, content in _made(open_teacher, missing, table, teacher, seed, threads, bar):
            atomic_write(_path(folder, number), content)
    sys.stderr.write(_summary(folder, len(samples)))
    return folder


def _made(
    open_teacher: Callable[[], Teacher],
    missing: Mapping[int, list[Sample]],
    table: CollectRecipe,
    teacher: str,
    seed: int,
    threads: int | None,
    bar: Any,
) -> Iterator[tuple[int, bytes]]:
    """Yields the number and content of each missing shard as it is made."""
    if not missing:
        return
    if table.workers > 1:
        from .ray_workers import shards_by_workers

        make = (open_teacher, table, teacher, seed)
        for number, content in shards_by_workers(make, missing, workers=table.workers, threads=threads or 1):
            bar.update(len(missing[number]))
            yield number, content
        return
    maker = ShardMaker(open_teacher, table, name=teacher, seed=seed)
    for number, shard in missing.items():
        before = bar.n

        def show(share: float, before: int = before, images: int = len(shard)) -> None:
            bar.update(before + int(share * images) - bar.n)

        yield number, maker.make(shard, show)


def _claim(folder: Path, shards: int, settings: Mapping[str, Any]) -> None:
    """Writes down what the folder's traces depend on; refuses a folder of others."""
    path = folder / RECORD
    if path.is_file():
        refuse_other(path, _record(folder)["settings"], settings)
        return
    if any(folder.glob("traces-*.parquet")):
        raise ArtifactError(f"{folder} holds traces but no {RECORD}, which says how they were collected; remove them")
    atomic_write(path, json.dumps({"shards": shards, "settings": settings}, indent=1, ensure_ascii=False) + "\n")


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"shards": int(record["shards"]), "settings": dict(record["settings"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); remove {folder} and collect again") from error


def _digest(samples: Sequence[Sample]) -> str:
    """Returns how many images there are, and a hash of which, in which order, and what may be asked about them."""
    digest = hashlib.sha256()
    for sample in samples:
        line = [sample.id, sample.image, sample.taxonomy, sample.resolve().labels, sample.answer]
        digest.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return f"{len(samples)}, sha256 {digest.hexdigest()}"


def _path(folder: Path, number: int) -> Path:
    return folder / f"traces-{number:05d}.parquet"


def _summary(folder: Path, images: int) -> str:
    """Returns a line of how many traces parsed, and one for each kind of fault."""
    total, faults = 0, Counter[str]()
    for shard in sorted(folder.glob("traces-*.parquet")):
        for fault in _read(shard, ["fault"])["fault"].to_pylist():
            total += 1
            if fault:
                faults[fault_kind(fault)] += 1
    broken = faults.total()
    lines = [f"{total} traces of {images} images: {total - broken} parsed, {broken} are kept but not learnt from"]
    lines += [f"{count:>8}  {kind}" for kind, count in faults.most_common()]
    return "\n".join(lines) + "\n"


def read_traces(folder: Path) -> list[dict[str, Any]]:
    """Returns all traces of a folder, in order.

    Raises:
        ArtifactError: If there are none, or not all yet, or a shard cannot be read.
    """
    found = sorted(folder.glob("traces-*.parquet"))
    if not found and not (folder / RECORD).is_file():
        raise ArtifactError(f"{folder} holds no traces; run 'emocaliber distill collect' first")
    shards = _record(folder)["shards"]
    if len(found) < shards:
        raise ArtifactError(f"{folder} holds {len(found)} of {shards} shards; run 'emocaliber distill collect' to end")
    return [row for shard in found for row in _read(shard, SCHEMA.names).to_pylist()]


def _read(shard: Path, columns: Sequence[str]) -> Any:
    """Returns columns of a shard as an Arrow table."""
    try:
        return pq.read_table(shard, schema=SCHEMA, columns=list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"trace shard {shard} cannot be read ({error}); remove it and collect again") from error
