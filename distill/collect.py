"""Teacher traces: what the teacher writes and how probable it finds every label, kept as Parquet shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.decoding import Sampling
from emocaliber.runtime.errors import ArtifactError, ResponseError
from emocaliber.runtime.files import atomic_path
from emocaliber.runtime.grammar import MODES, Mode, parse_response, render_response
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.scoring import Scored
from emocaliber.train.stage_recipes import CollectRecipe

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("taxonomy", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("mode", pa.string()),
        ("sample", pa.int32()),
        ("reasoning", pa.string()),
        ("answer", pa.string()),
        ("confidence", pa.float64()),
        ("label_scores", pa.list_(pa.float64())),
        ("parsed", pa.bool_()),
        ("fault", pa.string()),
        ("teacher", pa.string()),
        ("seed", pa.int64()),
        ("temperature", pa.float64()),
    ]
)
"""Columns of a trace: one row a teacher sample. ``label_scores`` are log-likelihoods in nats, in the order of
``labels``, given the reasoning; ``confidence`` is the expectation over the teacher's confidence tokens."""

SHARD_IMAGES = 256


def collect_traces(
    model: TransformersModel,
    samples: Sequence[Sample],
    table: CollectRecipe,
    folder: Path,
    *,
    teacher: str,
    seed: int,
) -> Path:
    """Returns ``folder`` with the traces of all samples in both modes; shards that are complete are kept.

    In reason mode the reasoning is sampled; in direct mode nothing is. The answer is the most probable label, and the
    confidence is the one the teacher states for it.

    Args:
        model: The teacher.
        samples: Images.
        table: How many samples and at which temperature.
        folder: Where the shards go.
        teacher: Identity of the teacher, for the record.
        seed: Of the draws.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), SHARD_IMAGES)
    for number, start in enumerate(tqdm(starts, desc="collect", unit="shard", file=sys.stderr)):
        path = folder / f"traces-{number:05d}.parquet"
        if path.is_file():
            continue
        shard = samples[start : start + SHARD_IMAGES]
        rows = [row for mode in MODES for row in _traces(model, shard, table, mode, teacher, seed + number)]
        with atomic_path(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
    return folder


def _traces(
    model: TransformersModel, samples: Sequence[Sample], table: CollectRecipe, mode: Mode, teacher: str, seed: int
) -> Iterator[dict[str, Any]]:
    draws = table.samples if mode == "reason" else 1
    temperature = table.temperature if mode == "reason" else None
    # One reasoning at a time: a confidence is stated for the answer of its own reasoning.
    samplings = [Sampling(temperature=temperature, seed=seed * draws + draw) for draw in range(draws)]
    for batch in _batches(samples, table.batch_size):
        images, labels = [sample.image for sample in batch], batch[0].resolve().labels
        scored = [model.score(images, labels, mode, sampling) for sampling in samplings]
        for i, sample in enumerate(batch):
            for draw, sampling in enumerate(samplings):
                yield _trace(sample, scored[draw], i, mode, sampling) | {"sample": draw, "teacher": teacher}


def _batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Yields the samples of each label set in batches, label sets in the order in which they first occur."""
    groups: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.resolve().labels, []).append(sample)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _trace(sample: Sample, scored: Scored, row: int, mode: Mode, sampling: Sampling) -> dict[str, Any]:
    assert scored.verbalized is not None
    labels = sample.resolve().labels
    scores = scored.label_scores[row, 0]
    answer = labels[int(scores.argmax())]
    reasoning = "" if scored.texts is None else scored.texts[row][0]
    confidence = float(scored.verbalized[row])
    fault = _fault(reasoning, answer, confidence, labels, mode)
    return {
        "id": sample.id,
        "image": sample.image,
        "taxonomy": sample.taxonomy,
        "labels": list(labels),
        "mode": mode,
        "reasoning": reasoning,
        "answer": answer,
        "confidence": confidence,
        "label_scores": [float(score) for score in scores],
        "parsed": not fault,
        "fault": fault,
        "seed": sampling.seed,
        "temperature": sampling.temperature,
    }


def _fault(reasoning: str, answer: str, confidence: float, labels: Sequence[str], mode: Mode) -> str:
    try:
        parse_response(reasoning + render_response(answer, confidence, None), labels, mode)
    except ResponseError as error:
        return str(error)
    return ""


def read_traces(folder: Path) -> list[dict[str, Any]]:
    """Returns all traces of a folder, in order.

    Raises:
        ArtifactError: If there are none, or a shard cannot be read.
    """
    shards = sorted(folder.glob("traces-*.parquet"))
    if not shards:
        raise ArtifactError(f"{folder} holds no traces; run 'emocaliber distill collect' first")
    rows: list[dict[str, Any]] = []
    for shard in shards:
        try:
            rows += pq.read_table(shard, schema=SCHEMA).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"trace shard {shard} cannot be read ({error}); remove it and collect again") from error
    return rows
