"""``emocaliber batch``: predictions for folders, globs, tars or samples files, that survive an interruption."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emocaliber.runtime.cli import EXIT_ERROR, EXIT_OK
from emocaliber.runtime.drift import UNUSUAL, Floats, mean_p_value
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.taxonomy import Taxonomy

from .collection import Collection, Plan
from .console import write_text
from .inference import (
    Question,
    add_prediction_arguments,
    candidates_of,
    load_arguments,
    load_model,
    positive,
    question_of,
)
from .inputs import Item, find_items
from .pipeline import CHUNK, ChunkResult, default_readers, predict_chunks
from .tables import SUFFIXES, check_suffix

_LOG_INTERVAL_S = 30.0
"""Between two states of the progress bar where standard error is no terminal."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``batch``."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        nargs="+",
        help="a folder (searched recursively), a glob, a .tar (read in place), a samples .jsonl file, or an image",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", type=_output, help=f"where to write: {' or '.join(SUFFIXES)}"
    )
    parser.add_argument(
        "--shard-size", type=positive, metavar="N", help="write files FILE-00000-of-00012 and so on, of N images each"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run of the same command")
    parser.add_argument(
        "--readers", type=positive, metavar="N", help="threads that read and decode images (default: one a core)"
    )
    parser.add_argument(
        "--ray", type=positive, metavar="N", help="share the images out among N processes of a Ray cluster"
    )
    add_prediction_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes one line an image to the output files; returns 1 if any image could not be read.

    Lines are collected in ``FILE.partial``; a file is written when the last of its lines is there.
    """
    started = time.monotonic()
    check_suffix(arguments.out)
    items = find_items(arguments.input, question_of(arguments))
    plan = Plan(out=arguments.out, images=len(items), shard_size=arguments.shard_size, chunk=CHUNK)
    if arguments.resume and plan.is_complete():
        write_text(f"emocaliber: {plan.out} is already complete; nothing to do", sys.stderr)
        return EXIT_OK
    if not plan.partial.exists():
        plan.refuse_existing()
    elif not arguments.resume:
        raise InputError(f"{plan.partial} holds an interrupted run; continue it with --resume, or delete it")
    with load_model(arguments) as model:
        questions = dict.fromkeys(item.question for item in items)
        taxonomies = {question: candidates_of(model, question) for question in questions}
        settings = _settings(arguments, model, items, taxonomies)
        collection = Collection(plan, [item.image for item in items], settings)
        before = collection.done
        with _kept(collection, plan):
            drifts = collect(arguments, model, items, plan, collection)
        _warn_of_drift(model, drifts)
    _summarise(plan, collection, len(items) - before, time.monotonic() - started)
    return EXIT_ERROR if collection.failed else EXIT_OK


def _settings(
    arguments: argparse.Namespace, model: EmotionModel, items: Sequence[Item], taxonomies: Mapping[Question, Taxonomy]
) -> dict[str, Any]:
    """Returns all that the lines of a run depend on."""
    numbers = {question: number for number, question in enumerate(taxonomies)}
    images = hashlib.sha256()
    for item in items:
        place = None if item.member is None else [item.member.offset, item.member.size_bytes]
        images.update(json.dumps([item.image, numbers[item.question], place]).encode() + b"\n")
    files = {name: record.sha256 for name, record in model.manifest.files.items()}
    bundle = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    asked = question_of(arguments).arguments()
    return {
        "images": f"{len(items)}, sha256 {images.hexdigest()}",
        "taxonomy": ", ".join(dict.fromkeys(taxonomy.name for taxonomy in taxonomies.values())),
        "labels": [list(taxonomy.labels) for taxonomy in taxonomies.values()],
        **{name: value for name, value in asked.items() if name not in ("taxonomy", "labels")},
        **{name: getattr(arguments, name) for name in ("engine", "shard_size")},
        "bundle": f"{model.manifest.name} {model.manifest.version}, sha256 {bundle}",
        "precision": model.precision,
        "out": arguments.out.suffix.lower(),
    }


@contextmanager
def _kept(collection: Collection, plan: Plan) -> Iterator[None]:
    """Closes the collection; when the block fails, says how to go on."""
    try:
        yield
    except BaseException:
        if collection.close():
            write_text(f"emocaliber: stopped; what is done is kept in {plan.partial}, go on with --resume", sys.stderr)
        raise
    collection.close()


def collect(
    arguments: argparse.Namespace, model: EmotionModel, items: Sequence[Item], plan: Plan, collection: Collection
) -> dict[Question, tuple[int, Floats]]:
    """Adds the results of all images that have none; returns number and summed coordinates of the drifts, by question.

    What an interrupted run saw of drift is not recorded.
    """
    spans = list(plan.chunks(collection.done))
    drifts: dict[Question, tuple[int, Floats]] = {}
    if not spans:
        return drifts
    interval_s = 0.1 if sys.stderr.isatty() else _LOG_INTERVAL_S
    with (
        tqdm(
            total=len(items), initial=collection.done, unit="image", file=sys.stderr, mininterval=interval_s
        ) as progress,
        closing(_predicted(arguments, model, [[items[i] for i in span] for span in spans])) as results,
    ):
        for span, result in zip(spans, results, strict=True):
            collection.add(result.lines, result.failed)
            for i, drift in zip(span, result.drifts, strict=True):
                if drift is not None:
                    count, total = drifts.get(items[i].question, (0, np.zeros(len(drift.coordinates))))
                    drifts[items[i].question] = (count + 1, total + np.array(drift.coordinates))
            progress.set_postfix(unreadable=collection.failed, refresh=False)
            progress.update(len(span))
    return drifts


def _predicted(
    arguments: argparse.Namespace, model: EmotionModel, chunks: Sequence[Sequence[Item]]
) -> Generator[ChunkResult, None, None]:
    if arguments.ray is None:
        yield from predict_chunks(model, chunks, readers=arguments.readers or default_readers())
        return
    from .workers import predict_by_workers

    yield from predict_by_workers(
        load_arguments(arguments),
        chunks,
        workers=arguments.ray,
        threads=arguments.threads or 1,
        readers=arguments.readers,
    )


def _warn_of_drift(model: EmotionModel, drifts: Mapping[Question, tuple[int, Floats]]) -> None:
    """Says on standard error where the images of this run, together, are not like the calibration images."""
    for question, (count, total) in drifts.items():
        guard = model.drift_guard(taxonomy=question.taxonomy, labels=question.labels, mode=question.mode)
        p_value = mean_p_value(total / count, count, guard.reference)
        if p_value <= UNUSUAL:
            write_text(
                f"emocaliber: the {count} images do not look like those the probabilities were calibrated on "
                f"(p = {p_value:.2g})",
                sys.stderr,
            )


def _summarise(plan: Plan, collection: Collection, predicted: int, seconds: float) -> None:
    names = f"{plan.out}" if plan.file_count == 1 else f"{plan.file_count} files, {plan.path(0)} and on"
    write_text(
        f"emocaliber: {plan.images} images in {names} ({predicted} now, in {seconds:.1f} s: "
        f"{predicted / seconds:.1f} images/s)",
        sys.stderr,
    )
    if collection.failed:
        write_text(
            f"emocaliber: {collection.failed} of {plan.images} images could not be read; their lines say why",
            sys.stderr,
        )


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} is of no supported kind; name it {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path
