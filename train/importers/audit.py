"""Reading a whole samples file, every line and every image, before a training run does."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample


@dataclass(slots=True, kw_only=True)
class Group:
    """The samples of one taxonomy in one split."""

    samples: int = 0
    unlabelled: int = 0
    """Samples with neither votes nor an answer."""
    mass: dict[str, float] = field(default_factory=dict)
    """Each label's share of the votes (or of the answer), summed over samples."""


@dataclass(slots=True, kw_only=True)
class Audit:
    """What was found in a samples file."""

    samples: int = 0
    """Valid lines, their image readable or not."""
    images: int = 0
    """Distinct readable image files."""
    invalid: list[str] = field(default_factory=list)
    """A message for each line that is no valid sample (a label out of its taxonomy is one reason) or repeats an id."""
    unreadable: list[str] = field(default_factory=list)
    """A message for each image file that cannot be decoded."""
    leaks: list[str] = field(default_factory=list)
    """A message for each picture, compared by its pixels, that stands in more than one split."""
    repeats: int = 0
    """Image files with the pixels of another file of the same split: odd, but no fault."""
    groups: dict[tuple[str, str | None], Group] = field(default_factory=dict)
    """Keyed by (taxonomy, split)."""

    @property
    def faults(self) -> int:
        """Number of faults of all kinds."""
        return len(self.invalid) + len(self.unreadable) + len(self.leaks)


def audit_samples(path: Path, progress: Callable[[int, int], None] | None = None) -> Audit:
    """Returns what reading every line of ``path`` and every image it names brought to light.

    Args:
        path: The samples file.
        progress: Called with (lines done, lines) after each line.

    Raises:
        InputError: If the file cannot be read or holds no line at all.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read samples {path}: {error.strerror}") from error
    audit = Audit()
    seen: dict[str, int] = {}
    users: dict[Path, dict[str | None, int]] = defaultdict(dict)
    digests: dict[Path, str | None] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            sample = _parse(line, number, seen, audit)
            if sample is not None:
                _count(sample, audit)
                image = (path.parent / sample.image).resolve()
                users[image].setdefault(sample.split, number)
                if image not in digests:
                    digests[image] = _digest(image, number, audit)
        if progress is not None:
            progress(number, len(lines))
    if not audit.samples and not audit.invalid:
        raise InputError(f"{path} holds no samples")
    _compare(users, digests, audit)
    return audit


def _parse(line: bytes, number: int, seen: dict[str, int], audit: Audit) -> Sample | None:
    try:
        sample = from_mapping(Sample, json.loads(line.decode("utf-8")), f"line {number}")
    except ConfigError as error:
        audit.invalid.append(str(error))
        return None
    except (ValueError, RecursionError) as error:
        audit.invalid.append(f"line {number}: not JSON in UTF-8 ({error})")
        return None
    if sample.id in seen:
        audit.invalid.append(f"line {number}: id {sample.id!r} is that of line {seen[sample.id]}")
    seen.setdefault(sample.id, number)
    return sample


def _count(sample: Sample, audit: Audit) -> None:
    audit.samples += 1
    group = audit.groups.setdefault((sample.taxonomy, sample.split), Group())
    group.samples += 1
    shares = sample.distribution()
    if shares is None:
        group.unlabelled += 1
        return
    for label, share in zip(sample.resolve().labels, shares, strict=True):
        group.mass[label] = group.mass.get(label, 0.0) + share


def _digest(image: Path, number: int, audit: Audit) -> str | None:
    """Returns the hash of the decoded pixels: the same picture in another file format or name is still the same."""
    try:
        pixels = decode_image(image)
    except InputError as error:
        audit.unreadable.append(f"line {number}: {error}")
        return None
    audit.images += 1
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _compare(users: dict[Path, dict[str | None, int]], digests: dict[Path, str | None], audit: Audit) -> None:
    same: dict[str, list[Path]] = defaultdict(list)
    for image, digest in digests.items():
        if digest is not None:
            same[digest].append(image)
    for images in same.values():
        lines: dict[str | None, int] = {}
        for image in images:
            for split, number in users[image].items():
                audit.repeats += split in lines
                lines.setdefault(split, number)
        if len(lines) > 1:
            places = ", ".join(f"{split or 'no split'} (line {number})" for split, number in lines.items())
            audit.leaks.append(f"the same picture in {places}: {images[0]}")
