"""Response lines: what a generating model wrote, with task, candidates and truth, as the published inference does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emocaliber.runtime.errors import InputError

RESPONSE_KEYS = ("task", "ground_truth", "candidates", "response")
"""Keys by which a line is known. Others that are read: ``id``, ``error``, what names the image, and ``original_data``,
which the published inference script wraps the line of an image that failed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLine:
    """One line of a prediction file that holds the model's text."""

    task: str
    """Name of the task, as the file spells it."""
    ground_truth: str
    """The right label, as the file spells it."""
    candidates: tuple[str, ...]
    """The labels the model had to choose from, in the order of the file."""
    response: str | None
    """What the model wrote; None on an error line."""
    image: str | None = None
    """Path of the image, where the line names one."""
    id: str | None = None
    """The line's own id, where it has one."""


def holds_responses(path: Path) -> bool:
    """Returns whether the first line of a file is a response line rather than one of our own prediction lines.

    Raises:
        InputError: If the file cannot be read.
    """
    first = next((line for line in _text(path).splitlines() if line.strip()), "")
    try:
        mapping = json.loads(first)
    except json.JSONDecodeError:
        return False
    return isinstance(mapping, dict) and ("ground_truth" in mapping or "original_data" in mapping)


def read_responses(path: Path) -> list[ResponseLine]:
    """Returns the lines of a JSON Lines file with `RESPONSE_KEYS`.

    Raises:
        InputError: If the file cannot be read or is empty, or a line is unusable; the line number is named. A broken
            line is never skipped: a file that was cut off would otherwise be scored as if it were whole.
    """
    # Not splitlines: a response may hold one of the rarer line separators unescaped.
    numbered = [(number, line) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    if not numbered:
        raise InputError(f"{path} holds no predictions")
    return [_parse(line, f"{path}, line {number}") for number, line in numbered]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read predictions {path}: {error}") from error


def _parse(line: str, where: str) -> ResponseLine:
    try:
        mapping = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(mapping, Mapping):
        raise InputError(f"{where}: not a response line: expected an object with {', '.join(RESPONSE_KEYS)}")
    failed = mapping.get("error") is not None
    if failed and isinstance(mapping.get("original_data"), Mapping):
        mapping = mapping["original_data"]
    missing = [key for key in RESPONSE_KEYS if key not in mapping and not (failed and key == "response")]
    if missing:
        raise InputError(f"{where}: not a response line: it has no {', '.join(missing)}")
    candidates = mapping["candidates"]
    if not isinstance(candidates, list) or not candidates or not all(isinstance(c, str) and c for c in candidates):
        raise InputError(f"{where}: candidates are {candidates!r}, expected a list of labels")
    texts = ("task", "ground_truth") if failed else ("task", "ground_truth", "response")
    for key in texts:
        if not isinstance(mapping[key], str):
            raise InputError(f"{where}: {key} is {mapping[key]!r}, expected a string")
    return ResponseLine(
        task=mapping["task"],
        ground_truth=mapping["ground_truth"],
        candidates=tuple(candidates),
        response=None if failed else mapping["response"],
        image=_image(mapping),
        id=None if mapping.get("id") is None else str(mapping["id"]),
    )


def _image(mapping: Mapping[str, Any]) -> str | None:
    """Returns the image of ``image``, the first of ``images``, or that of the conversation, as VECBench has it.

    Each may be a path or ms-swift's ``{"path": ...}``.
    """
    named = mapping.get("image") or mapping.get("images") or _pictures(mapping)
    first = named[0] if isinstance(named, list) and named else named
    if isinstance(first, Mapping):
        first = first.get("path")
    return first.removeprefix("file://") if isinstance(first, str) else None


def _pictures(mapping: Mapping[str, Any]) -> list[Any]:
    """Returns what the parts ``{"type": "image", "image": ...}`` of the turns name."""
    turns = mapping.get("conversations") or mapping.get("messages")
    contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image"] for part in parts if isinstance(part, Mapping) and "image" in part]
