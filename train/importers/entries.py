"""Annotated images as read from a published set, before they are samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emocaliber.runtime.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line to write for one image."""

    key: str
    """Unique in the set and the same in every run; becomes the id."""
    image: Path
    """Where the image should be; whether it is there is checked when the set is written."""
    name: str
    """Relative path, with forward slashes, that a copy of the image gets."""
    where: str
    """File and line, for messages."""
    taxonomy: str
    """Name of the label set, ``custom`` with `labels`."""
    labels: tuple[str, ...] | None = None
    """Candidates, where the label set has no name."""
    answer: str | None = None
    """The label taken as right."""
    votes: dict[str, float] | None = None
    """Weight of each label among the annotators."""
    annotations: dict[str, str] | None = None
    """What the set notes about the image besides emotion."""
    reasoning: dict[str, str] | None = None
    """The five parts of the reasoning."""
    confidence: float | None = None
    """Confidence to verbalise, in (0, 1)."""
    split: str | None = None
    """The split the set itself puts the image in."""
    group: str | None = None
    """Images of one group never fall into different splits; None: the image stands alone."""


@dataclass(slots=True, kw_only=True)
class Reading:
    """A published set as read: its lines and what is to be told about it."""

    entries: list[Entry] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """What was counted on the way, in words."""
    notes: list[str] = field(default_factory=list)
    """Sentences a user should read."""
    files: tuple[Path, ...] = ()
    """Annotation files that were read."""


def most_voted(votes: Mapping[str, float], counts: Counter[str]) -> str:
    """Returns the label with the most votes, of equals the first; such ties are counted."""
    top = max(votes.values())
    best = [label for label, weight in votes.items() if weight == top]
    counts["votes tied at the top, the first label taken as answer"] += len(best) > 1
    return best[0]


def annotation_file(source: Path, names: Sequence[str]) -> Path:
    """Returns the annotation file that SRC is or holds.

    Raises:
        InputError: If SRC is neither such a file nor a folder that holds one of ``names``.
    """
    if source.is_file():
        return source
    found = next((source / name for name in names if (source / name).is_file()), None)
    if found is None:
        raise InputError(f"{source} is no file and holds no {' or '.join(names)}; SRC is the folder that does")
    return found


def first_existing(name: str, roots: Sequence[Path]) -> Path:
    """Returns ``name`` under the first root that has it, else under the first root."""
    return next((root / name for root in roots if (root / name).is_file()), roots[0] / name)


def copy_name(path: str) -> str:
    """Returns ``path`` as a relative path that stays inside whatever folder it is put into."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(part.replace(":", "_") for part in parts)
