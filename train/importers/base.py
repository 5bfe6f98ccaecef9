"""What every importer takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from emocaliber.runtime.errors import ConfigError

Progress = Callable[[int, int], None]
"""``progress(done, total)``, called after each item."""

Raters = Literal["all", "us", "chinese"]

PUBLISHED_OPTIONS = frozenset({"seed", "splits", "copy", "strict", "keep_duplicates"})
"""Options that every importer of a published set understands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What a caller may ask of an importer; None leaves the choice to it."""

    seed: int = 0
    """For whatever is drawn by chance: scenes, splits."""
    size: int | None = None
    """Side of written pictures in pixels; only sets that draw their own have one."""
    splits: Mapping[str, float] | None = None
    """Name and share of each split; given, it also replaces splits that the set itself states."""
    taxonomies: tuple[str, ...] | None = None
    """Label sets to write lines for."""
    images: tuple[Path, ...] = ()
    """Folders that image paths of an annotation file may be relative to, tried before the usual ones."""
    copy: bool = False
    """Whether to copy the images beside the samples file, instead of naming them where they are."""
    strict: bool = False
    """Whether an image that is listed but absent is an error, instead of being counted and left out."""
    keep_duplicates: bool = False
    """Whether a picture may stay in several splits that the set itself states."""
    raters: Raters | None = None
    """Whose ratings count, where a set has several groups of raters."""

    def __post_init__(self) -> None:
        if self.splits is not None and (not self.splits or any(not share > 0 for share in self.splits.values())):
            raise ConfigError(f"splits are {dict(self.splits)}, expected at least one, each with a share above 0")

    def given(self) -> dict[str, object]:
        """Returns the options that differ from their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import wrote and what it met on the way."""

    samples: Path
    """The samples file."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was counted, in words: number."""
    notes: tuple[str, ...] = ()
    """Sentences a user should read."""
    files: tuple[Path, ...] = ()
    """Annotation files that were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """One set: how to read it, and what to call its source."""

    load: Callable[[str, Path, ImportOptions, Progress], Imported]
    """``load(source, folder, options, progress)`` writes the set; the samples file last."""
    source: str
    """What SRC means for this set."""
    help: str
    """One line about the set."""
    terms: str
    """One line about the terms under which the set may be used."""
    options: frozenset[str] = PUBLISHED_OPTIONS
    """Names of the fields of `ImportOptions` it understands."""

    def check(self, name: str, options: ImportOptions) -> None:
        """Refuses options that would be ignored.

        Raises:
            ConfigError: Naming each option this set does not understand.
        """
        ignored = sorted(set(options.given()) - self.options)
        if ignored:
            raise ConfigError(
                f"{name} takes no {', '.join(ignored)}; its options are {', '.join(sorted(self.options))}"
            )
