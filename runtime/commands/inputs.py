"""What ``batch`` and ``bundle drift`` read: folders, globs, tars, samples files and single images."""

from __future__ import annotations

import glob
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import DEFAULT_LIMITS, IMAGE_SUFFIXES, ImageSource
from emocaliber.runtime.samples import read_samples

from .inference import Question

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

_MAX_PADDING = 1 << 20
"""Bytes behind the last member that are looked at; tars are padded to a multiple of 10 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Where an image lies inside an uncompressed tar; it is read there and never extracted."""

    archive: str
    """Path of the tar."""
    offset: int
    """Position of the image's first byte in the tar."""
    size_bytes: int
    """Size of the image's file."""

    def read(self) -> bytes:
        """Returns the encoded image.

        Raises:
            InputError: If it is too large, or the tar cannot be read or has changed.
        """
        where = f"its {self.size_bytes} bytes at {self.offset} of {self.archive}"
        if self.size_bytes > DEFAULT_LIMITS.max_file_bytes:
            raise InputError(f"{where} are too many, at most {DEFAULT_LIMITS.max_file_bytes} are allowed")
        try:
            with Path(self.archive).open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read(self.size_bytes)
        except OSError as error:
            raise InputError(f"{where} cannot be read: {error.strerror}") from error
        if len(content) < self.size_bytes:
            raise InputError(f"{where} cannot be read: the tar ends before")
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image to predict and what to ask about it."""

    image: str
    """What its line is called: a path, or ``TAR/MEMBER``."""
    question: Question
    member: Member | None = None
    """Where it lies, for an image inside a tar."""

    def source(self) -> ImageSource:
        """Returns what `decode_image` takes.

        Raises:
            InputError: If it lies in a tar and cannot be read there.
        """
        return self.image if self.member is None else self.member.read()


def find_items(sources: Sequence[str], question: Question) -> list[Item]:
    """Returns what to predict, in a stable order: that of the sources, within a tar that of its members.

    A samples file brings the candidates of each image along, unless the question names some.

    Args:
        sources: Folders, globs, tars, samples files or images.
        question: What the command line asks.

    Raises:
        InputError: If a source holds nothing to predict, or a tar or samples file is broken.
    """
    return [item for source in sources for item in _items_of(source, question)]


def _items_of(source: str, question: Question) -> list[Item]:
    path = Path(source)
    if path.is_dir():
        found = sorted(
            str(file) for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        if not found:
            raise InputError(f"folder {source} holds no images ({', '.join(IMAGE_SUFFIXES)}); name tars as a glob")
        return [Item(image=image, question=question) for image in found]
    if path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson"):
        return [
            Item(image=sample.image, question=_asked(question, sample.taxonomy, sample.labels))
            for sample in read_samples(path)
        ]
    if path.is_file():
        return _items_of_file(source, question)
    # Not Path.glob: a pattern may be absolute.
    found = sorted(name for name in glob.glob(source, recursive=True) if Path(name).is_file())  # noqa: PTH207
    if not found:
        raise InputError(f"{source!r} is no folder or file, and matches none")
    return [item for name in found for item in _items_of_file(name, question)]


def _items_of_file(name: str, question: Question) -> list[Item]:
    if not name.lower().endswith((".tar", *_COMPRESSED)):
        return [Item(image=name, question=question)]
    try:
        items = [Item(image=f"{name}/{inner}", question=question, member=member) for inner, member in _members(name)]
    except (tarfile.TarError, OSError) as error:
        advice = "decompress it first" if name.lower().endswith(_COMPRESSED) else "make it again"
        raise InputError(f"{name} cannot be read in place as a tar ({error}); {advice}") from error
    if not items:
        raise InputError(f"tar {name} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return items


def _members(archive: str) -> Iterator[tuple[str, Member]]:
    """Yields name and place of the images in a tar, whose headers alone are read.

    Raises:
        InputError: If an image has no bytes of its own.
        TarError: If the tar is damaged or cut off.
        OSError: If it cannot be read.
    """
    with tarfile.open(archive, "r:") as tar:
        for entry in tar:
            if PurePosixPath(entry.name).suffix.lower() not in IMAGE_SUFFIXES or entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                raise InputError(
                    f"{entry.name} in {archive} is a link, a sparse file or a device, which cannot be read in place; "
                    "make the tar again with --hard-dereference --dereference and without --sparse"
                )
            yield entry.name, Member(archive=archive, offset=entry.offset_data, size_bytes=entry.size)
        end = tar.offset
    # tarfile takes a damaged header, or the end of the file, for the end of the tar.
    with Path(archive).open("rb") as stream:
        stream.seek(end)
        rest = stream.read(_MAX_PADDING)
    if len(rest) < tarfile.BLOCKSIZE or any(rest):
        raise tarfile.ReadError(f"at byte {end} its end mark is missing, or something follows it")


def _asked(question: Question, taxonomy: str, labels: tuple[str, ...] | None) -> Question:
    if question.taxonomy is not None or question.labels is not None:
        return question
    return question.about(None if labels is not None else taxonomy, labels)
