"""Sets with ratings of valence, OASIS and BASS, as votes for positive and negative."""

from __future__ import annotations

import math
import re
from pathlib import Path

from .base import ImportOptions
from .entries import Entry, Reading, annotation_file, first_existing, most_voted
from .tables import Row, read_table

_NUMBER_AT_END = re.compile(r"\s*\d+$")


def positive_share(mean: float, sd: float, middle: float) -> float:
    """Returns the share of raters, in [0, 1], whose rating lies above the middle of the scale.

    P(X > middle) for X normal with the given mean and standard deviation: Phi((mean - middle) / sd). Without spread it
    is 0, 1, or 0.5 in the middle.
    """
    if sd == 0:
        return 0.5 if mean == middle else float(mean > middle)
    return 0.5 * math.erfc((middle - mean) / (sd * math.sqrt(2.0)))


def read_oasis(source: Path, options: ImportOptions) -> Reading:
    """Returns OASIS (Kurdi, Lozano, Banaji 2017), valence rated from 1 to 7; themes are groups (``Fire 3``: ``Fire``).

    Theme and, where the table has it, category are annotations of the image.

    Raises:
        InputError: If ``OASIS.csv`` is not as published; file and line are named.
    """
    path = annotation_file(source, ("OASIS.csv",))
    roots = (*options.images, path.parent / "images", path.parent / "Images", path.parent)
    reading = Reading(files=(path,))
    for row in read_table(path, ("Theme", "Valence_mean", "Valence_SD", "Valence_N")):
        theme = row.cells["Theme"]
        group = _NUMBER_AT_END.sub("", theme)
        noted = {"category": row.cells.get("Category", ""), "theme": group}
        annotations = {key: value.casefold() for key, value in noted.items() if value}
        votes = _votes(row, ("Valence_mean", "Valence_SD", "Valence_N"), 7)
        reading.entries.append(_entry(f"{theme}.jpg", group, annotations, row, votes, roots, reading))
    return reading


def read_bass(source: Path, options: ImportOptions) -> Reading:
    """Returns BASS (Kawai, Lukács, Ansorge), valence rated from 1 to 9 by people in the US and in China.

    The two groups' votes are added up, each rater one vote, unless the options name one group. Variants of a motif are
    a group (``abuse2``: ``abuse``) and the motif an annotation.

    Raises:
        InputError: If ``BASS_data.csv`` is not as published; file and line are named.
    """
    path = annotation_file(source, ("BASS_data.csv",))
    raters = {"us": ("us",), "chinese": ("ch",), "all": ("us", "ch"), None: ("us", "ch")}[options.raters]
    tables = [(f"val_mean_{group}", f"val_sd_{group}", f"val_n_{group}") for group in raters]
    roots = (*options.images, path.parent / "images", path.parent)
    reading = Reading(files=(path,))
    for row in read_table(path, ("file_name", *(column for table in tables for column in table))):
        votes = {"negative": 0.0, "positive": 0.0}
        for table in tables:
            for label, weight in _votes(row, table, 9).items():
                votes[label] += weight
        name = row.cells["file_name"]
        motif = _NUMBER_AT_END.sub("", Path(name).stem)
        reading.entries.append(_entry(name, motif, {"motif": motif.casefold()}, row, votes, roots, reading))
    return reading


def _votes(row: Row, columns: tuple[str, str, str], top: int) -> dict[str, float]:
    """Returns the raters of one group as votes; their scale runs from 1 to ``top``."""
    mean, sd, raters = row.number(columns[0], 1, top), row.number(columns[1], 0, top), row.number(columns[2], 1)
    share = positive_share(mean, sd, (1 + top) / 2)
    return {"negative": raters * (1 - share), "positive": raters * share}


def _entry(
    name: str,
    group: str,
    annotations: dict[str, str],
    row: Row,
    votes: dict[str, float],
    roots: tuple[Path, ...],
    reading: Reading,
) -> Entry:
    return Entry(
        key=name,
        image=first_existing(name, roots),
        name=name,
        where=row.where,
        taxonomy="sentiment-2",
        answer=most_voted(votes, reading.counts),
        votes={label: round(weight, 6) for label, weight in votes.items()},
        annotations=annotations,
        group=group.casefold(),
    )
