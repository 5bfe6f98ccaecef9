"""Entries of a published set, written as our samples file; images stay where they are unless a copy is asked for."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.files import atomic_path
from emocaliber.runtime.samples import Sample, write_samples

from .base import Imported, ImportOptions, Progress
from .entries import Entry, Reading
from .splits import assign_splits, drop_leaks

Read = Callable[[Path, ImportOptions], Reading]
"""``read(source, options)`` returns a published set as it is; SRC is absolute."""


def published(name: str, read: Read) -> Callable[[str, Path, ImportOptions, Progress], Imported]:
    """Returns the loader of one published set: read, look for the images, split, write.

    Args:
        name: Name of the set; ids start with it.
        read: Its reader.
    """

    def load(source: str, folder: Path, options: ImportOptions, progress: Progress) -> Imported:
        root = Path(source).absolute()
        if not root.exists():
            raise InputError(f"SRC {source} does not exist; it is where the set {name} was unpacked")
        if options.copy and root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
            raise InputError(f"OUT {folder} lies inside SRC {source}; copies would be taken for images of the set")
        return write_entries(name, read(root, options), folder, options, progress)

    return load


def write_entries(name: str, reading: Reading, folder: Path, options: ImportOptions, progress: Progress) -> Imported:
    """Returns what was written to ``folder``: ``samples.jsonl``, and ``images/`` where a copy was asked for.

    Raises:
        InputError: If two entries contradict each other, an image is absent (strict) or every image is,
            or an entry makes no valid sample; file and line are named.
        OSError: If the folder cannot be written.
    """
    counts = Counter({"annotations": len(reading.entries)}) + reading.counts
    entries, missing = _present(_without_repeats(reading.entries, counts), strict=options.strict)
    if missing:
        counts["left out: image is listed but absent"] = len(missing)
    own = options.splits is None and any(entry.split is not None for entry in entries)
    entries = assign_splits(entries, options.splits, options.seed)
    if own and not options.keep_duplicates:
        entries = drop_leaks(entries, counts)
    samples = []
    root = folder.resolve()
    for done, entry in enumerate(entries, 1):
        samples.append(_sample(name, entry, _place(entry, root, copy=options.copy)))
        progress(done, len(entries))
    counts["samples"] = len(samples)
    counts.update(f"samples in {sample.split}" for sample in samples)
    path = folder / "samples.jsonl"
    write_samples(samples, path)
    notes = [*reading.notes, *(f"absent: {entry.image} ({entry.where})" for entry in missing[:3])]
    return Imported(samples=path, counts=dict(counts), notes=tuple(notes), files=reading.files)


def _without_repeats(entries: Sequence[Entry], counts: Counter[str]) -> list[Entry]:
    """Returns the entries without those that repeat another word for word; one that contradicts another is refused."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        known = seen.setdefault(entry.key, entry)
        if replace(known, where=entry.where) != entry:
            raise InputError(f"{entry.where}: {entry.key} is annotated otherwise in {known.where}")
    if len(seen) < len(entries):
        counts["left out: line repeats another"] += len(entries) - len(seen)
    return list(seen.values())


def _present(entries: Sequence[Entry], *, strict: bool) -> tuple[list[Entry], list[Entry]]:
    """Returns the entries whose image is there, and the others."""
    present: list[Entry] = []
    missing: list[Entry] = []
    for entry in entries:
        (present if entry.image.is_file() else missing).append(entry)
        if missing and strict:
            raise InputError(f"{entry.where}: image {entry.image} is missing; without --strict it is left out")
    if not entries:
        raise InputError("the set holds no annotated image")
    if not present:
        first = missing[0]
        raise InputError(
            f"none of {len(missing)} images is there; the first is {first.image} ({first.where}); "
            "check SRC, or say with --images where the images are"
        )
    return present, missing


def _place(entry: Entry, folder: Path, *, copy: bool) -> str:
    """Returns the image path to write: relative for images in ``folder``, else absolute; copies where asked."""
    if copy:
        target = folder / "images" / entry.name
        if not target.is_file() or target.stat().st_size != entry.image.stat().st_size:
            with atomic_path(target) as temporary:
                shutil.copyfile(entry.image, temporary)
        return f"images/{entry.name}"
    image = entry.image.resolve()
    return image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)


def _sample(name: str, entry: Entry, image: str) -> Sample:
    try:
        return Sample(
            image=image,
            taxonomy=entry.taxonomy,
            labels=entry.labels,
            answer=entry.answer,
            votes=entry.votes,
            annotations=entry.annotations,
            reasoning=entry.reasoning,
            confidence=entry.confidence,
            split=entry.split,
            id=f"{name}/{entry.key}",
        )
    except InputError as error:
        raise InputError(f"{entry.where}: {error}") from error
