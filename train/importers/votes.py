"""Sets with votes over emotions: Emotion6 and FER+."""

from __future__ import annotations

import math
from pathlib import Path

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.taxonomy import TAXONOMIES

from .base import ImportOptions
from .entries import Entry, Reading, annotation_file, first_existing, most_voted
from .ratings import positive_share
from .splits import SPLIT_NAMES
from .tables import Row, read_table

_EMOTION6 = {f"[prob. {label}]": label for label in TAXONOMIES["emotion6-7"].labels}
_EMOTION6_TAXONOMIES = ("emotion6-7", "sentiment-2")
_EMOTION6_VALENCE_SD = 1.44
"""Emotion6 publishes no spread of its valence, rated from 1 to 9. OASIS does, from 1 to 7: 1.08 on average, that is
1.44 on nine points."""
_FERPLUS = TAXONOMIES["ferplus-8"].labels
_NO_EXPRESSION = ("unknown", "NF")
_FERPLUS_FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}


def read_emotion6(source: Path, options: ImportOptions) -> Reading:
    """Returns Emotion6 (Peng, Chen, Sadovnik, Gallagher 2015): the shares of the votes as published.

    For ``sentiment-2`` the share of positive answers follows from the mean valence, as `positive_share` has it. The
    folder an image is in is the word it was searched with, not its label, and is not used.

    Raises:
        InputError: If ``ground_truth.txt`` is not as published; file and line are named. Or if another label set is
            asked for.
    """
    chosen = options.taxonomies or _EMOTION6_TAXONOMIES[:1]
    wrong = [taxonomy for taxonomy in chosen if taxonomy not in _EMOTION6_TAXONOMIES]
    if wrong:
        known = ", ".join(_EMOTION6_TAXONOMIES)
        raise InputError(f"this set has no {', '.join(wrong)}; it can be written for {known}")
    path = annotation_file(source, ("ground_truth.txt",))
    roots = (*options.images, path.parent / "images", path.parent)
    reading = Reading(files=(path,))
    columns = (*_EMOTION6, *(["[valence]"] if "sentiment-2" in chosen else []))
    for row in read_table(path, ("[image_filename]", *columns), delimiter="\t"):
        name = row.cells["[image_filename]"]
        for taxonomy in chosen:
            votes = _emotion6_votes(row, taxonomy)
            reading.entries.append(
                Entry(
                    key=name if taxonomy == _EMOTION6_TAXONOMIES[0] else f"{name}#{taxonomy}",
                    image=first_existing(name, roots),
                    name=name,
                    where=row.where,
                    taxonomy=taxonomy,
                    answer=most_voted(votes, reading.counts),
                    votes={label: share for label, share in votes.items() if share > 0},
                )
            )
    return reading


def _emotion6_votes(row: Row, taxonomy: str) -> dict[str, float]:
    if taxonomy == "sentiment-2":
        share = positive_share(row.number("[valence]", 1, 9), _EMOTION6_VALENCE_SD, 5.0)
        return {"negative": round(1 - share, 6), "positive": round(share, 6)}
    votes = {label: row.number(column, 0.0, 1.0) for column, label in _EMOTION6.items()}
    if not math.isclose(sum(votes.values()), 1.0, abs_tol=0.01):
        raise InputError(f"{row.where}: the shares of the votes sum to {sum(votes.values()):.3f}, expected 1")
    return votes


def read_ferplus(source: Path, options: ImportOptions) -> Reading:
    """Returns FER2013 faces with the ten votes of FER+ (Barsoum, Zhang, Canton Ferrer, Zhang 2016).

    As in the authors' own reader, a face is left out if more people chose *unknown* (or *not a face*) than any
    expression, and these two are no labels: their votes are dropped from the faces that stay. Unlike it, an expression
    with a single vote keeps it: it is what one of ten people saw.

    Raises:
        InputError: If ``fer2013new.csv`` is not as published; file and line are named.
    """
    path = annotation_file(source, ("fer2013new.csv",))
    reading = Reading(files=(path,))
    for row in read_table(path, ("Usage", "Image name", *_FERPLUS, *_NO_EXPRESSION)):
        name, usage = row.cells["Image name"], row.cells["Usage"]
        if usage not in _FERPLUS_FOLDERS:
            raise InputError(f"{row.where}: Usage is {usage!r}, expected {' or '.join(_FERPLUS_FOLDERS)}")
        if not name:
            reading.counts["left out: row names no image"] += 1
            continue
        votes = {label: row.number(label, 0, 10) for label in _FERPLUS}
        if max(row.number(column, 0, 10) for column in _NO_EXPRESSION) > max(votes.values()):
            reading.counts["left out: most voted unknown or not a face"] += 1
            continue
        if not any(votes.values()):
            reading.counts["left out: row has no votes"] += 1
            continue
        published = _FERPLUS_FOLDERS[usage]
        roots = (*options.images, path.parent / "images", path.parent / "data" / published, path.parent / published)
        entry = Entry(
            key=name,
            image=first_existing(name, roots),
            name=name,
            where=row.where,
            taxonomy="ferplus-8",
            answer=most_voted(votes, reading.counts),
            votes={label: count for label, count in votes.items() if count > 0},
            annotations={"category": "face"},
            split=SPLIT_NAMES[usage.casefold()],
        )
        reading.entries.append(entry)
    return reading
