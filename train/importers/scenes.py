"""The procedural scenes, through the same door as every other set."""

from __future__ import annotations

from pathlib import Path

from emocaliber.runtime.errors import InputError
from emocaliber.train.scenes import DEFAULT_SPLITS, write_scenes

from .base import Imported, ImportOptions, Progress


def import_scenes(source: str, folder: Path, options: ImportOptions, progress: Progress) -> Imported:
    """Returns what was written: ``source`` scenes in ``folder``.

    Raises:
        InputError: If ``source`` is not a whole number of at least 1, or a taxonomy has no posterior here.
        ConfigError: If an option makes no sense.
    """
    if not source.isascii() or not source.isdigit() or int(source) < 1:
        raise InputError(f"SRC of scenes is {source!r}, expected how many to draw, such as 4000")
    samples = write_scenes(
        folder,
        int(source),
        options.seed,
        splits=DEFAULT_SPLITS if options.splits is None else options.splits,
        size=96 if options.size is None else options.size,
        taxonomies=("emotion6-7",) if options.taxonomies is None else options.taxonomies,
        progress=progress,
    )
    return Imported(samples=samples, counts={"scenes": int(source)})
