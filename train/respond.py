"""Responses of a model to samples: many, in a journal that survives a kill, and as lines that the evaluator reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from tqdm import tqdm

from emocaliber.evaluate.responders import Drawing, Responder
from emocaliber.evaluate.vecbench import canonical_task
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.journal import Journal
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample

from .conversations import request_of
from .launch import processes

CHUNK = 256
"""Images whose responses are drawn, and saved, together."""


def shared_responses(
    responder: Responder, samples: Sequence[Sample], template: PromptTemplate, mode: Mode, drawing: Drawing, path: Path
) -> list[list[str]]:
    """Returns what `journaled_responses` does, every process drawing for its share of the chunks.

    A chunk has the same seed whoever draws it, so that the number of processes does not matter. Each process keeps a
    journal of its own; continued with another number of processes, a draw starts anew.
    """
    place = processes()
    with place.split_between_processes(list(range(0, len(samples), CHUNK))) as starts:
        share = samples[starts[0] : starts[-1] + CHUNK] if starts else []
    if place.num_processes > 1:
        path = path.with_suffix(f".{place.process_index}-of-{place.num_processes}{path.suffix}")
    drawn: list[list[str]] = []
    if share:
        drawing = dataclasses.replace(drawing, seed=drawing.seed + starts[0] // CHUNK)
        drawn = journaled_responses(responder, share, template, mode, drawing, path)
    gathered: list[list[str]] = gather_object(drawn)
    return gathered


def journaled_responses(
    responder: Responder,
    samples: Sequence[Sample],
    template: PromptTemplate,
    mode: Mode,
    drawing: Drawing,
    path: Path,
) -> list[list[str]]:
    """Returns ``drawing.count`` responses for every sample, in order; those in the journal are not drawn again.

    Interrupted and continued, the result is that of an uninterrupted run: each chunk of images has its own seed.

    Args:
        responder: The model.
        samples: Images and candidates.
        template: Instructions.
        mode: Response mode.
        drawing: How responses are drawn; its seed is the first chunk's.
        path: The journal.

    Raises:
        InputError: If an image cannot be read.
        BackendError: If the model fails.
        ConfigError: If the journal is of other samples or settings.
    """
    settings = {
        "responder": responder.name,
        "mode": mode,
        "prompt": to_mapping(template),
        "drawing": to_mapping(drawing),
        "samples": len(samples),
        "samples_sha256": hashlib.sha256("\n".join(sample.id for sample in samples).encode()).hexdigest(),
    }
    journal = Journal(path, settings, chunk=CHUNK, total=len(samples))
    with tqdm(
        total=len(samples), initial=len(journal.items), desc="responses", unit="image", file=sys.stderr,
        disable=not processes().is_main_process,
    ) as bar:  # fmt: skip
        for start in range(len(journal.items), len(samples), CHUNK):
            chunk = samples[start : start + CHUNK]
            requests = [request_of(sample, template, mode) for sample in chunk]
            seeded = dataclasses.replace(drawing, seed=drawing.seed + start // CHUNK)
            journal.add(responder.respond(requests, seeded))
            bar.update(len(chunk))
    return list(journal.items)


def write_responses(samples: Sequence[Sample], responses: Sequence[Sequence[str]], path: Path) -> None:
    """Writes one line a sample as ``emocaliber evaluate --predictions`` reads them, in VECBench's layout.

    Args:
        samples: With answers.
        responses: At least one for each; the first is written.
        path: The file.

    Raises:
        InputError: If a sample has no answer.
    """
    lines = []
    for sample, (response, *_) in zip(samples, responses, strict=True):
        if sample.answer is None:
            raise InputError(f"sample {sample.id} has no answer, so its response cannot be judged")
        line: dict[str, Any] = {
            "id": sample.id,
            "image": sample.image,
            "task": canonical_task(sample.taxonomy),
            "ground_truth": sample.answer,
            "candidates": list(sample.resolve().labels),
            "response": response,
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    atomic_write(path, "\n".join(lines) + "\n")
