"""VECBench and VEC-CoT as published: conversations in JSON Lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emocaliber.runtime.errors import InputError, ResponseError
from emocaliber.runtime.grammar import Response, parse_response
from emocaliber.runtime.taxonomy import TAXONOMIES

from .base import ImportOptions
from .entries import Entry, Reading, copy_name
from .places import Places
from .splits import SPLIT_NAMES
from .tables import read_table, read_text
from .tasks import Task, candidates_in, named_task, task_of

_TRUTHS = ("ground_truth", "solution", "answer", "label")
_ANSWER = re.compile(r"<answer>([^<>]*)</answer>")


def read_vecbench(source: Path, options: ImportOptions) -> Reading:
    """Returns VECBench: its test lines, or its tables of ``image_path,label,task,split``.

    Raises:
        InputError: If a line is not as published, its label or its candidates do not belong to its task.
    """
    return _from_table(_file(source), options) if source.suffix.lower() == ".csv" else _read(source, options, "test")


def read_vec_cot(source: Path, options: ImportOptions) -> Reading:
    """Returns VEC-CoT, or other ms-swift lines: the reasoning is what the strict grammar finds in the response.

    A line whose response breaks the grammar keeps its answer, has no reasoning, and is counted.

    Raises:
        InputError: If a line is not as published, or has no answer.
    """
    return _read(source, options, "train")


def _file(source: Path) -> Path:
    if source.is_dir():
        inside = sorted(str(path.relative_to(source)) for path in source.rglob("*.jsonl"))
        hint = f"; there are {', '.join(inside[:8])}" if inside else ""
        raise InputError(f"SRC {source} is a folder, expected one file of lines{hint}")
    return source


def _read(source: Path, options: ImportOptions, split: str) -> Reading:
    path = _file(source)
    taxonomy = _asked(options)
    reading = Reading(files=(path,))
    places = Places(roots=(*options.images, *list(path.parents)[:3]))
    for number, record in _records(path):
        where = f"{path}, line {number}"
        turns = _turns(record, where)
        image = _image_of(record, where)
        prompt = "\n".join(text for role, text in turns if role == "user")
        reply = next((text for role, text in reversed(turns) if role == "assistant"), None)
        named = taxonomy or _task_name(record, where)
        task = task_of(named, _candidates(record, where) or candidates_in(prompt), image, where)
        reading.counts[f"{task.taxonomy}: candidates listed in another order"] += task.reordered
        answer, response = _answer_of(record, reply, task, where, reading.counts)
        entry = Entry(
            key=f"{path.stem}/{number}",
            image=places.find(image, where),
            name=copy_name(image),
            where=where,
            taxonomy=task.taxonomy,
            labels=task.labels if task.taxonomy == "custom" else None,
            answer=answer,
            reasoning=None if response is None else response.reasoning,
            confidence=None if response is None else response.confidence,
            split=_split(record.get("split"), split),
        )
        reading.entries.append(entry)
    return reading


def _from_table(path: Path, options: ImportOptions) -> Reading:
    taxonomy = _asked(options)
    reading = Reading(files=(path,))
    places = Places(roots=(*options.images, *list(path.parents)[:3]))
    for row in read_table(path, ("image_path", "label", "task", "split")):
        named = taxonomy or _task_name(row.cells, row.where)
        image = row.cells["image_path"]
        task = task_of(named, None, image, row.where)
        entry = Entry(
            key=f"{path.stem}/{row.where.rpartition(' ')[2]}",
            image=places.find(image, row.where),
            name=copy_name(image),
            where=row.where,
            taxonomy=task.taxonomy,
            answer=task.label(row.cells["label"], row.where),
            split=_split(row.cells["split"], "test"),
        )
        reading.entries.append(entry)
    return reading


def _asked(options: ImportOptions) -> str | None:
    """Returns the taxonomy the caller names for every line, or None."""
    if options.taxonomies is None:
        return None
    if len(options.taxonomies) != 1 or options.taxonomies[0] not in TAXONOMIES:
        raise InputError(f"--taxonomy is {', '.join(options.taxonomies)}, expected one of {', '.join(TAXONOMIES)}")
    return options.taxonomies[0]


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, record) of JSON Lines, or of one JSON list, where numbers count the records."""
    text = read_text(path)
    if path.suffix.lower() == ".json":
        records = _parse(text, str(path))
        if not isinstance(records, list):
            raise InputError(f"{path} holds no list of records")
        numbered = list(enumerate(records, 1))
    else:
        # Not splitlines: U+2028 and its like may stand inside a JSON string.
        numbered = [
            (number, _parse(line, f"{path}, line {number}"))
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
    for number, record in numbered:
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: expected an object, found {str(record)[:40]!r}")
        yield number, record


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({str(error)[:80]})") from error


def _turns(record: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Returns (role, text) of each turn of ``messages`` or ``conversations``; both chat dialects are understood."""
    turns = record.get("messages", record.get("conversations"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{where}: neither messages nor conversations is a list of turns")
    roles = {"human": "user", "gpt": "assistant"}
    found = []
    for turn in turns:
        role = str(turn.get("role", turn.get("from")))
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "\n".join(part for part in parts if isinstance(part, str))
        if not isinstance(content, str):
            raise InputError(f"{where}: a turn of {role} has no text")
        found.append((roles.get(role, role), content))
    return found


def _image_of(record: Mapping[str, Any], where: str) -> str:
    """Returns the one image path of a line: from ``images``, ``image``, or a part of the conversation.

    Raises:
        InputError: If there is none, or more than one.
    """
    found: list[object] = []
    listed = record.get("images", record.get("image"))
    if listed is not None:
        found = listed if isinstance(listed, list) else [listed]
    else:
        turns = record.get("messages", record.get("conversations"))
        contents = [turn.get("content") for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
        parts = [part for content in contents if isinstance(content, list) for part in content]
        for part in parts:
            if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
                found.append(part.get("image", part.get("image_url")))
    inner = [next((i[key] for key in ("path", "url") if i.get(key)), None) if isinstance(i, dict) else i for i in found]
    if len(inner) != 1 or not isinstance(inner[0], str):
        raise InputError(f"{where}: {len(inner)} image paths, expected one")
    return inner[0]


def _task_name(record: Mapping[str, Any], where: str) -> str | None:
    name = record.get("task")
    if name is None:
        return None
    taxonomy = named_task(str(name))
    if taxonomy is None:
        raise InputError(f"{where}: unknown task {name!r}; known: {', '.join(TAXONOMIES)}; or give --taxonomy")
    return taxonomy


def _candidates(record: Mapping[str, Any], where: str) -> list[str] | None:
    candidates = record.get("candidates")
    if candidates is not None and not isinstance(candidates, list):
        raise InputError(f"{where}: candidates are {candidates!r}, expected a list")
    return candidates


def _answer_of(
    record: Mapping[str, Any], reply: str | None, task: Task, where: str, counts: Counter[str]
) -> tuple[str, Response | None]:
    """Returns the label taken as right, and the response of the line if it follows the grammar.

    A stated truth counts more than the response; a response with another answer then teaches a mistake, so its
    reasoning is not used.

    Raises:
        InputError: If there is neither a truth nor an answer, or it is no candidate.
    """
    stated = next((record[key] for key in _TRUTHS if isinstance(record.get(key), str)), None)
    if stated is None and reply is not None:
        found = _ANSWER.findall(reply)
        stated = found[0] if len(found) == 1 else None
    if stated is None:
        raise InputError(f"{where}: no {', '.join(_TRUTHS)}, and no response with one <answer>")
    inner = _ANSWER.findall(stated)
    truth = task.label(inner[0] if inner else stated, where)
    if reply is None:
        return truth, None
    try:
        response = parse_response(_respelt(reply, task), task.labels, "reason", needs_confidence=False)
    except ResponseError:
        counts["responses that break the grammar: no reasoning"] += 1
        return truth, None
    if response.answer != truth:
        counts["responses with another answer than the truth: no reasoning"] += 1
        return truth, None
    return truth, response


def _respelt(reply: str, task: Task) -> str:
    """Returns the response with its answer spelt as the candidates are: the grammar knows no aliases."""
    match = _ANSWER.search(reply)
    if match is None:
        return reply
    try:
        label = task.label(match.group(1), "")
    except InputError:
        return reply
    return f"{reply[: match.start(1)]}{label}{reply[match.end(1) :]}"


def _split(named: object, default: str) -> str:
    if not isinstance(named, str) or not named.strip():
        return default
    return SPLIT_NAMES.get(named.strip().casefold(), named.strip())
