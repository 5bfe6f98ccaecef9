"""What every importer takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emocaliber.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What a caller may ask of any importer; None leaves the choice to it."""

    seed: int = 0
    """For whatever is drawn by chance: scenes, splits."""
    size: int | None = None
    """Side of written pictures in pixels; only sets that draw their own have one."""
    splits: Mapping[str, float] | None = None
    """Name and share of each split."""
    taxonomies: tuple[str, ...] | None = None
    """Label sets to write lines for."""

    def __post_init__(self) -> None:
        if self.splits is not None and (not self.splits or any(not share > 0 for share in self.splits.values())):
            raise ConfigError(f"splits are {dict(self.splits)}, expected at least one, each with a share above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """One set: how to read it, and what to call its source."""

    load: Callable[[str, Path, ImportOptions, Callable[[int, int], None]], Path]
    """``load(source, folder, options, progress)`` writes the set and returns its samples file.

    ``progress(done, total)`` is to be called after each item. The samples file is to be written last.
    """
    source: str
    """What SRC means for this set."""
    help: str
    """One line about the set."""
