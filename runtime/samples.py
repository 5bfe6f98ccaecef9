"""Samples: one image, what people felt, and optionally why; JSON Lines on disk.

``{"image", "taxonomy", "labels"?, "answer"?, "votes"?, "posterior"?, "annotations"?, "reasoning"?, "confidence"?,
"split"?, "id"?}``
Image paths are relative to the file that names them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError, InputError
from .files import atomic_write
from .records import from_mapping, to_mapping
from .taxonomy import Taxonomy, resolve_taxonomy


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of a samples file."""

    image: str
    """Path of the image, relative to the file it came from, or absolute."""
    taxonomy: str
    """Name of the label set; ``custom`` where `labels` is given."""
    labels: tuple[str, ...] | None = None
    """Candidates of a custom taxonomy."""
    answer: str | None = None
    """The label taken as right, as the taxonomy spells it."""
    votes: dict[str, float] | None = None
    """Number (or weight) of annotators that chose each label; labels nobody chose may be left out."""
    posterior: dict[str, float] | None = None
    """True probability of each label, known only for synthetic scenes."""
    annotations: dict[str, str] | None = None
    """What the set notes about the image besides emotion, in plain words, such as ``{"category": "animal"}``."""
    reasoning: dict[str, str] | None = None
    """The five parts of the reasoning."""
    confidence: float | None = None
    """Confidence to verbalise for `answer`, in (0, 1)."""
    split: str | None = None
    """``train``, ``calibration``, ``test`` or any other name."""
    id: str = ""
    """Unique within the file; the image path where none is given."""

    def __post_init__(self) -> None:
        candidates = self.resolve()
        if not self.id:
            object.__setattr__(self, "id", self.image)
        if self.answer is not None:
            object.__setattr__(self, "answer", candidates.labels[candidates.index(self.answer)])
        for name, table in (("votes", self.votes), ("posterior", self.posterior)):
            if table is None:
                continue
            for label, weight in table.items():
                candidates.index(label)
                if not math.isfinite(weight) or weight < 0:
                    raise InputError(f"{name} of {label!r} is {weight!r}, expected a finite number >= 0")
            if sum(table.values()) <= 0:
                raise InputError(f"{name} are all zero")
        for name, text in (self.annotations or {}).items():
            if not (name.strip() and text.strip() and (name + text).isprintable()) or set("<>") & set(name + text):
                raise InputError(f"annotation {name!r} is {text!r}, expected plain words on one line, without tags")
        if self.confidence is not None and not 0.0 < self.confidence < 1.0:
            raise InputError(f"confidence is {self.confidence!r}, expected a number in (0, 1)")

    def resolve(self) -> Taxonomy:
        """Returns the label set of this sample."""
        if self.labels is not None:
            return Taxonomy(name=self.taxonomy, labels=self.labels)
        return resolve_taxonomy(self.taxonomy)

    def distribution(self) -> list[float] | None:
        """Returns the votes as probabilities in candidate order, or the answer as one-hot, or None without either."""
        candidates = self.resolve()
        if self.votes is not None:
            return _normalised(self.votes, candidates)
        if self.answer is not None:
            return _normalised({self.answer: 1.0}, candidates)
        return None

    def true_posterior(self) -> list[float] | None:
        """Returns the known posterior in candidate order, or None for real images."""
        return None if self.posterior is None else _normalised(self.posterior, self.resolve())


def _normalised(table: dict[str, float], candidates: Taxonomy) -> list[float]:
    weights = [0.0] * len(candidates)
    for label, weight in table.items():
        weights[candidates.index(label)] += weight
    total = sum(weights)
    return [weight / total for weight in weights]


def read_samples(path: Path, split: str | None = None) -> list[Sample]:
    """Returns the samples of a JSON Lines file, image paths made absolute.

    Args:
        path: The file.
        split: Keep only samples of this split.

    Raises:
        InputError: If the file is missing or empty, or a line is not a valid sample; the line number is named.
    """
    return [sample for sample in iterate_samples(path) if split is None or sample.split == split]


def iterate_samples(path: Path) -> Iterator[Sample]:
    """Yields the samples of a JSON Lines file one by one; raises as `read_samples` does."""
    try:
        lines = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read samples {path}: {error.strerror}") from error
    found = False
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            found = True
            yield _parse_line(line, path, number)
    if not found:
        raise InputError(f"{path} holds no samples")


def _parse_line(line: bytes, path: Path, number: int) -> Sample:
    where = f"{path}, line {number}"
    try:
        sample = from_mapping(Sample, json.loads(line.decode("utf-8")), where)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte {error.start + 1}: {error.reason}); save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    except ConfigError as error:
        raise InputError(str(error)) from error
    except (RecursionError, OverflowError, ValueError) as error:
        raise InputError(f"{where}: nested too deep, or a number too large ({error})") from error
    absolute = sample.image if Path(sample.image).is_absolute() else str((path.parent / sample.image).resolve())
    return Sample(**{**{f: getattr(sample, f) for f in Sample.__slots__}, "image": absolute})


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """Writes samples as JSON Lines, atomically; fields that are None are left out."""
    lines = []
    for sample in samples:
        mapping = {key: value for key, value in to_mapping(sample).items() if value is not None}
        lines.append(json.dumps(mapping, ensure_ascii=False))
    atomic_write(path, "\n".join(lines) + "\n")
