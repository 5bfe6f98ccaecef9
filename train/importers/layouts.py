"""Sets of labelled images: one folder a class, a table of paths and labels, and the lists some authors publish."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import IMAGE_SUFFIXES
from emocaliber.runtime.taxonomy import TAXONOMIES

from .base import ImportOptions
from .entries import Entry, Reading, copy_name, first_existing, most_voted
from .hierarchy import find_label, label_of
from .splits import SPLIT_NAMES
from .tables import column_of, read_header, read_table, read_text

IMAGE_COLUMNS = ("image_path", "image", "path", "file_path", "filepath", "file_name", "filename", "file", "img", "name")
LABEL_COLUMNS = ("label", "emotion", "class", "category", "sentiment", "ground_truth")
SPLIT_COLUMNS = ("split", "phase", "usage", "set")
ABSTRACT_TABLE = "ABSTRACT_groundTruth.csv"
_EMOSET_LISTS = ("train.json", "val.json", "test.json")
_EMOSET_ATTRIBUTES = ("scene", "object", "facial_expression", "human_action")
"""What EmoSet notes in words; its brightness and colourfulness are numbers, which can be measured."""
_WEBEMO_LISTS = ("train25.txt", "test25.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """One labelled image, before a label set is chosen."""

    path: str
    """Relative path, with forward slashes."""
    word: str
    """What the set calls the class."""
    where: str
    split: str | None = None
    annotations: dict[str, str] | None = None


def labelled_set(
    *taxonomies: str, label_in_name: bool = False, numbered: bool = False
) -> Callable[[Path, ImportOptions], Reading]:
    """Returns a reader of class folders and tables.

    Args:
        taxonomies: Label sets the set can be written for, the default first.
        label_in_name: Whether the class may stand in the file name, before an underscore.
        numbered: Whether classes may be named by their position in the default taxonomy, from 0, as WebEmo does: class
            folders ``0`` to ``24``, and lists of ``address 7`` lines.
    """
    numbers = TAXONOMIES[taxonomies[0]].labels if numbered else ()

    def read(source: Path, options: ImportOptions) -> Reading:
        chosen = options.taxonomies or taxonomies[:1]
        wrong = [taxonomy for taxonomy in chosen if taxonomy not in taxonomies]
        if wrong:
            raise InputError(f"this set has no {', '.join(wrong)}; it can be written for {', '.join(taxonomies)}")
        indexes = (source,) if source.is_file() else tuple(source / name for name in _WEBEMO_LISTS)
        indexes = tuple(path for path in indexes if numbers and path.suffix.lower() == ".txt" and path.is_file())
        if indexes:
            root = indexes[0].parent
            found = _from_indexes(indexes, (*options.images, root, root / "images"), numbers)
            return _lines(root, found, taxonomies[0], chosen, options, indexes)
        if source.is_file():
            return _lines(source.parent, _from_table(source), taxonomies[0], chosen, options, (source,))
        lists = tuple(source / name for name in _EMOSET_LISTS if (source / name).is_file())
        if lists:
            return _lines(source, _from_lists(lists), taxonomies[0], chosen, options, lists)
        found = _from_folders(source, chosen, numbers, label_in_name=label_in_name)
        return _lines(source, found, taxonomies[0], chosen, options, ())

    return read


def read_abstract(source: Path, options: ImportOptions) -> Reading:
    """Returns Abstract (Machajdik & Hanbury 2010): votes where its own table is there, else folders or a table.

    Raises:
        InputError: If the source is in none of these layouts; file and line are named.
    """
    path = source if source.is_file() else source / ABSTRACT_TABLE
    if path.name != ABSTRACT_TABLE or not path.is_file():
        return labelled_set("abstract-8")(source, options)
    header = read_header(path)
    columns = {column: label_of(column.strip("'"), "abstract-8", f"{path}, line 1") for column in header[1:] if column}
    reading = Reading(files=(path,))
    for row in read_table(path, columns):
        name = row.cells[header[0]].strip("'")
        votes = {label: row.number(column, 0) for column, label in columns.items()}
        if not any(votes.values()):
            raise InputError(f"{row.where}: {name} has no votes")
        entry = Entry(
            key=name,
            image=first_existing(name, (*options.images, path.parent, path.parent / "images")),
            name=name,
            where=row.where,
            taxonomy="abstract-8",
            answer=most_voted(votes, reading.counts),
            votes={label: count for label, count in votes.items() if count > 0},
        )
        reading.entries.append(entry)
    return reading


def _lines(
    root: Path,
    found: Iterator[Labelled],
    default: str,
    taxonomies: tuple[str, ...],
    options: ImportOptions,
    files: tuple[Path, ...],
) -> Reading:
    """Returns one entry for each image and taxonomy."""
    roots = (*options.images, root, root / "images", root / "image")
    reading = Reading(files=files)
    for item in found:
        for taxonomy in taxonomies:
            entry = Entry(
                key=item.path if taxonomy == default else f"{item.path}#{taxonomy}",
                image=first_existing(item.path, roots),
                name=copy_name(item.path),
                where=item.where,
                taxonomy=taxonomy,
                answer=label_of(item.word, taxonomy, item.where),
                split=item.split,
                annotations=item.annotations,
            )
            reading.entries.append(entry)
    return reading


def _from_folders(
    root: Path, taxonomies: tuple[str, ...], numbers: Sequence[str], *, label_in_name: bool
) -> Iterator[Labelled]:
    """Yields the images below ``root``; the outermost folder that is a label is one, a folder such as ``test`` a split.

    A folder may also be named by the position of its label in ``numbers``.

    Raises:
        InputError: If an image is in no such folder, or there is no image.
    """
    empty = True
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(folder).relative_to(root).parts
        words = [_numbered(part, numbers) or part for part in parts]
        word = next((word for word in words if find_label(word, taxonomies[0]) is not None), None)
        split = next((split for part in parts if (split := SPLIT_NAMES.get(_split_word(part)))), None)
        for name in sorted(names):
            if name.startswith(".") or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                continue
            empty = False
            where = str(Path(folder) / name)
            label = word or (name.partition("_")[0] if label_in_name and "_" in name else None)
            if label is None:
                raise InputError(f"{where}: no folder above it is named as a label of {taxonomies[0]}")
            yield Labelled(path=Path(*parts, name).as_posix(), word=label, where=where, split=split)
    if empty:
        raise InputError(f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)})")


def _from_indexes(paths: Sequence[Path], roots: Sequence[Path], numbers: Sequence[str]) -> Iterator[Labelled]:
    """Yields the lines of WebEmo's lists: an address or a path, a space, the position of its label; more is not read.

    An address is looked for by its file name, as its readers save it: in ``train25/7/``, ``train/7/`` or ``7/``, or
    without folders; a path by its last three, two or one parts.
    """
    for path in paths:
        list_split = next((name for name in ("train", "test") if name in path.stem.casefold()), None)
        for number, line in enumerate(read_text(path).splitlines(), 1):
            where, words = f"{path}, line {number}", line.split()
            if not words:
                continue
            label = _numbered(words[1], numbers) if len(words) > 1 else None
            if label is None:
                raise InputError(
                    f"{where} is {line[:80]!r}, expected an image and a number from 0 to {len(numbers) - 1}"
                )
            parts = words[0].replace("\\", "/").split("/")
            places = ["/".join(parts[-k:]) for k in (3, 2, 1)]
            if "://" in words[0]:
                places = [f"{folder}{parts[-1]}" for folder in _saved_in(list_split, words[1])]
            found = next((place for place in places if any((root / place).is_file() for root in roots)), places[0])
            yield Labelled(path=found, word=label, where=where, split=list_split)


def _saved_in(split: str | None, number: str) -> list[str]:
    named = [] if split is None else [f"{split}25/{number}/", f"{split}/{number}/"]
    return [*named, f"{number}/", ""]


def _numbered(word: str, numbers: Sequence[str]) -> str | None:
    return numbers[int(word)] if word.isdecimal() and int(word) < len(numbers) else None


def _split_word(folder: str) -> str:
    """Returns the folder's name as splits are named; WebEmo's lists and folders call theirs ``train25``, ``test25``."""
    return folder.casefold().removesuffix("25")


def _from_table(path: Path) -> Iterator[Labelled]:
    """Yields the rows of a table with a header: a column of paths, one of labels, and perhaps one of splits."""
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    header = read_header(path, delimiter)
    image, label = column_of(path, header, IMAGE_COLUMNS), column_of(path, header, LABEL_COLUMNS)
    split = next((column for column in header if column.casefold() in SPLIT_COLUMNS), None)
    for row in read_table(path, (image, label), delimiter):
        named = row.cells[split].casefold() if split else ""
        if not row.cells[image]:
            raise InputError(f"{row.where}: {image} is empty")
        yield Labelled(
            path=row.cells[image].replace("\\", "/"),
            word=row.cells[label],
            where=row.where,
            split=SPLIT_NAMES.get(named, named or None),
        )


def _from_lists(paths: tuple[Path, ...]) -> Iterator[Labelled]:
    """Yields the entries of EmoSet's ``train.json``, ``val.json``, ``test.json``: lists of [label, …, image, …]."""
    for path in paths:
        try:
            rows = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON ({error})") from error
        if not isinstance(rows, list):
            raise InputError(f"{path} holds no list")
        for number, row in enumerate(rows, 1):
            where = f"{path}, entry {number}"
            texts = [cell for cell in row if isinstance(cell, str)] if isinstance(row, list) else []
            images = [text for text in texts[1:] if Path(text).suffix.lower() in IMAGE_SUFFIXES]
            if len(images) != 1:
                raise InputError(f"{where} is {row!r}, expected [label, ..., path of one image, ...]")
            noted = [path.parent / text for text in texts[1:] if text.endswith(".json")]
            yield Labelled(
                path=images[0], word=texts[0], where=where, split=SPLIT_NAMES[path.stem],
                annotations=_attributes(noted[0]) if noted and noted[0].is_file() else None,
            )  # fmt: skip


def _attributes(path: Path) -> dict[str, str] | None:
    """Returns what an annotation file of EmoSet notes in words besides emotion, or None where it notes nothing."""
    try:
        record = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no object")
    noted = {}
    for name in _EMOSET_ATTRIBUTES:
        value = record.get(name)
        words = [word.strip() for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
        if any(words):
            noted[name.replace("_", " ")] = ", ".join(word for word in words if word).casefold()
    return noted or None
