"""``emocaliber batch``: predictions for a folder, a glob or a samples file, that survive an interruption."""

from __future__ import annotations

import argparse
import csv
import glob
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from emocaliber.runtime.cli import EXIT_ERROR, EXIT_OK
from emocaliber.runtime.drift import UNUSUAL, Drift, window_p_value
from emocaliber.runtime.errors import ArtifactError, InputError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.images import IMAGE_SUFFIXES
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.prediction import LINE_KEYS
from emocaliber.runtime.samples import read_samples
from emocaliber.runtime.taxonomy import Taxonomy

from .console import write_text
from .inference import (
    Question,
    Unreadable,
    add_prediction_arguments,
    candidates_of,
    json_line,
    load_model,
    predict_path,
    question_of,
)

OUTPUT_SUFFIXES = (".jsonl", ".csv")
_ERROR_COLUMNS = ("error_type", "error_message")


@dataclass(frozen=True, slots=True)
class Item:
    """One image to predict and what to ask about it."""

    image: str
    question: Question


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``batch``."""
    parser.add_argument(
        "input", metavar="INPUT", help="a folder (searched recursively), a glob, or a samples .jsonl file"
    )
    parser.add_argument("--out", required=True, metavar="FILE", type=_output, help="where to write: .jsonl or .csv")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run of the same command")
    add_prediction_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes one line an image to the output file; returns 1 if any image could not be read.

    Lines are collected in ``FILE.partial``, which becomes ``FILE`` when the last one is there.
    """
    out: Path = arguments.out
    partial = out.with_name(out.name + ".partial")
    if out.exists() and arguments.resume and not partial.exists():
        write_text(f"emocaliber: {out} is already complete; nothing to do", sys.stderr)
        return EXIT_OK
    _refuse_existing(out, partial, resume=arguments.resume)
    items = find_items(arguments.input, question_of(arguments))
    with load_model(arguments) as model:
        taxonomies = {question: candidates_of(model, question) for question in {item.question for item in items}}
        done = _read_done(partial, _settings(model, items, taxonomies)) if arguments.resume else []
        with _collected(partial) as stream:
            failed, drifts = _predict(model, items, done, stream)
        _warn_of_drift(model, drifts)
    _finish(partial, out)
    if failed:
        write_text(
            f"emocaliber: {failed} of {len(items)} images could not be read; see their lines in {out}", sys.stderr
        )
    return EXIT_ERROR if failed else EXIT_OK


def find_items(source: str, question: Question) -> list[Item]:
    """Returns what to predict, in a stable order.

    A samples file brings the candidates of each image along, unless the question names some.

    Args:
        source: A folder, a glob, a samples file, or one image.
        question: What the command line asks.

    Raises:
        InputError: If there is nothing to predict, or the samples file is broken.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(
            str(file) for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        if not found:
            raise InputError(f"folder {source} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        return [Item(image, question) for image in found]
    if path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson"):
        return [Item(sample.image, _asked(question, sample.taxonomy, sample.labels)) for sample in read_samples(path)]
    if path.is_file():
        return [Item(source, question)]
    # Not Path.glob: a pattern may be absolute.
    found = sorted(name for name in glob.glob(source, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not found:
        raise InputError(f"{source!r} is no folder or file, and matches none")
    return [Item(image, question) for image in found]


def _asked(question: Question, taxonomy: str, labels: tuple[str, ...] | None) -> Question:
    if question.taxonomy is not None or question.labels is not None:
        return question
    return question.about(None if labels is not None else taxonomy, labels)


def _refuse_existing(out: Path, partial: Path, *, resume: bool) -> None:
    if out.exists():
        raise InputError(f"{out} exists; delete it or choose another --out")
    if partial.exists() and not resume:
        raise InputError(f"{partial} holds an interrupted run; continue it with --resume, or delete it")


def _settings(
    model: EmotionModel, items: Sequence[Item], taxonomies: Mapping[Question, Taxonomy]
) -> dict[str, list[dict[str, object]]]:
    """Returns for every image what the lines of this run state; several for an image that is asked several times."""
    table: dict[str, list[dict[str, object]]] = {}
    for item in items:
        taxonomy = taxonomies[item.question]
        stated = {
            "taxonomy": taxonomy.name,
            "labels": list(taxonomy.labels),
            "mode": item.question.mode,
            "coverage": item.question.coverage,
            "bundle": [model.manifest.name, model.manifest.version, model.precision],
        }
        table.setdefault(item.image, []).append(stated)
    return table


def _read_done(partial: Path, settings: Mapping[str, list[dict[str, object]]]) -> list[dict[str, Any]]:
    """Returns the lines of an interrupted run, and cuts a torn last one off the file.

    Raises:
        ArtifactError: If the file is damaged, or comes from a run with other images, another bundle or other options.
    """
    if not partial.exists():
        return []
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = [
        _done_line(text, settings, f"{partial}, line {number}") for number, text in enumerate(whole.splitlines(), 1)
    ]
    if len(whole) < len(content):
        with partial.open("r+b") as stream:
            stream.truncate(len(whole))
    return lines


def _done_line(text: bytes, settings: Mapping[str, list[dict[str, object]]], where: str) -> dict[str, Any]:
    try:
        line = dict(json.loads(text))
        stated = settings.get(line["image"], [])
        if "error" in line and stated:
            return line
        found = {key: line.get(key) for key in ("taxonomy", "mode", "coverage")}
        found["labels"] = list(line.get("distribution", ()))
        found["bundle"] = [line.get("bundle", {}).get(key) for key in ("name", "version", "precision")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{where} is damaged ({error!r}); delete the file to start over") from error
    if not stated:
        raise ArtifactError(f"{where} is of no image of the input; delete the file to start over")
    if found not in stated:
        key = next(key for key in stated[0] if found[key] != stated[0][key])
        raise ArtifactError(
            f"{where} was made with {key} {found[key]!r}, not {stated[0][key]!r}; "
            "give the same options, or delete the file to start over"
        )
    return line


@contextmanager
def _collected(partial: Path) -> Iterator[TextIO]:
    """Yields the stream of collected lines; when the block fails, says how to go on, and leaves no empty file."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("a", encoding="ascii", newline="\n") as stream:
            yield stream
    except BaseException:
        kept = partial.exists() and partial.stat().st_size > 0
        if not kept:
            partial.unlink(missing_ok=True)
        else:
            write_text(f"emocaliber: stopped; what is done is kept in {partial}, go on with --resume", sys.stderr)
        raise


def _predict(
    model: EmotionModel, items: Sequence[Item], done: Sequence[dict[str, Any]], stream: TextIO
) -> tuple[int, dict[Question, list[Drift]]]:
    """Appends a line for every image that has none yet; returns the number of all error lines, and what drifted."""
    drifts: dict[Question, list[Drift]] = {}
    failed = sum("error" in line for line in done)
    waiting = Counter(line["image"] for line in done)
    # disable=None: no bar where standard error is a file.
    with tqdm(total=len(items), initial=len(done), unit="image", file=sys.stderr, disable=None) as progress:
        for item in items:
            if waiting[item.image] > 0:
                waiting[item.image] -= 1
                continue
            result = predict_path(model, item.image, item.question)
            stream.write(json_line(result) + "\n")
            stream.flush()
            if isinstance(result, Unreadable):
                failed += 1
            elif result.drift is not None:
                drifts.setdefault(item.question, []).append(result.drift)
            progress.update()
    return failed, drifts


def _warn_of_drift(model: EmotionModel, drifts: Mapping[Question, list[Drift]]) -> None:
    """Says on standard error where the images of this run, together, are not like the calibration images."""
    for question, placed in drifts.items():
        guard = model.drift_guard(taxonomy=question.taxonomy, labels=question.labels, mode=question.mode)
        p_value = window_p_value(placed, guard.reference)
        if p_value <= UNUSUAL:
            write_text(
                f"emocaliber: the {len(placed)} images do not look like those the probabilities were calibrated on "
                f"(p = {p_value:.2g})",
                sys.stderr,
            )


def _finish(partial: Path, out: Path) -> None:
    if out.suffix.lower() == ".jsonl":
        partial.replace(out)
        return
    rows = [json.loads(line) for line in partial.read_text(encoding="ascii").splitlines()]
    # A file name that is no text has lone surrogates, which UTF-8 cannot carry.
    atomic_write(out, _csv(rows).encode("utf-8", errors="backslashreplace"))
    partial.unlink()


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the lines as a table: nested values as JSON, nothing for null, errors in two columns of their own."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*LINE_KEYS, *_ERROR_COLUMNS))
    for row in rows:
        error = row.get("error", {})
        cells = [_cell(row.get(key)) for key in LINE_KEYS]
        writer.writerow((*cells, error.get("type", ""), error.get("message", "")))
    return text.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} is of no supported kind; name it {' or '.join(OUTPUT_SUFFIXES)}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    return path
