"""Which label set a published line asks about, and whether its candidates agree."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.taxonomy import POLARITY_2, TAXONOMIES, Taxonomy

from .hierarchy import spelled

_TASK_SPELLINGS = {"unbaisedemo-6": "unbiasedemo-6"}
_LIST = re.compile(r"\[([^\[\]]+,[^\[\]]+)\]")
_SETS = ("unbiasedemo", "emoset", "artphoto", "abstract", "webemo", "emotion6", "fi")
_SET_SPELLINGS = {"unbaisedemo": "unbiasedemo", "emoset118k": "emoset", "unbiasedemotion": "unbiasedemo"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A label set as one line states it."""

    taxonomy: str
    """Its name, or ``custom``."""
    labels: tuple[str, ...]
    """Its labels in the order of the taxonomy; of a custom one, in the order of the line."""
    reordered: bool = False
    """Whether the line lists the candidates in another order than the taxonomy."""

    def label(self, word: str, where: str) -> str:
        """Returns the candidate that ``word`` stands for.

        Raises:
            InputError: If there is none.
        """
        if self.taxonomy != "custom":
            found = spelled(word, self.taxonomy)
        else:
            found = next((label for label in self.labels if label.casefold() == word.strip().casefold()), None)
        if found is None:
            raise InputError(f"{where}: label {word!r} is not in {self.taxonomy} ({', '.join(self.labels)})")
        return found


def named_task(name: str) -> str | None:
    """Returns the taxonomy of a VECBench task (``Artphoto-8``, ``UnbaisedEmo-6``), or None."""
    folded = name.strip().casefold().replace("_", "-")
    folded = _TASK_SPELLINGS.get(folded, folded)
    return folded if folded in TAXONOMIES else None


def candidates_in(prompt: str) -> tuple[str, ...] | None:
    """Returns the candidates a question lists in square brackets, or the polarity it asks for, or None."""
    match = _LIST.search(prompt)
    if match:
        return tuple(word for part in match.group(1).split(",") if (word := part.strip().strip("'\"")))
    words = set(re.findall(r"[a-z]+", prompt.casefold()))
    return POLARITY_2 if words.issuperset(POLARITY_2) else None


def task_of(taxonomy: str | None, candidates: Sequence[str] | None, image: str, where: str) -> Task:
    """Returns the label set of a line.

    Args:
        taxonomy: Its name where it is known.
        candidates: Candidates as the line lists them; None where it lists none.
        image: Path of the image: without a name, a folder such as ``EmoSet`` in it tells which set of this many
            labels is meant.
        where: File and line, for messages.

    Raises:
        InputError: If neither a name nor candidates are known, or they contradict each other.
    """
    if candidates is not None and (len(candidates) < 2 or not all(isinstance(word, str) for word in candidates)):
        raise InputError(f"{where}: candidates are {list(candidates)!r}, expected at least two words")
    if taxonomy is None and candidates is not None:
        taxonomy = _guess(candidates, image)
    if taxonomy is None:
        if candidates is None:
            raise InputError(f"{where}: neither a task nor candidates are given; name the label set with --taxonomy")
        try:
            custom = Taxonomy(name="custom", labels=tuple(word.strip() for word in candidates))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return Task(taxonomy="custom", labels=custom.labels)
    labels = TAXONOMIES[taxonomy].labels
    if candidates is None:
        return Task(taxonomy=taxonomy, labels=labels)
    order = _canonical(candidates, taxonomy)
    if set(order) != set(labels) or len(order) != len(labels):
        raise InputError(
            f"{where}: candidates are {', '.join(candidates)}, but {taxonomy} consists of {', '.join(labels)}"
        )
    return Task(taxonomy=taxonomy, labels=labels, reordered=order != labels)


def _canonical(candidates: Sequence[str], taxonomy: str) -> tuple[str | None, ...]:
    """Returns the candidates as the taxonomy spells them; None for a word that is none of its labels."""
    return tuple(spelled(word, taxonomy) for word in candidates)


def _guess(candidates: Sequence[str], image: str) -> str | None:
    """Returns the named taxonomy of these candidates that a folder of the image's path names, or the only one."""
    fitting = [
        name
        for name, taxonomy in TAXONOMIES.items()
        if len(taxonomy) == len(candidates) and set(_canonical(candidates, name)) == set(taxonomy.labels)
    ]
    folders = [re.sub(r"[^a-z0-9]", "", part.casefold()) for part in PurePosixPath(image).parts]
    for folder in folders:
        folder = _SET_SPELLINGS.get(folder, folder)
        hinted = [name for name in fitting if folder in _SETS and name.startswith(f"{folder}-")]
        if hinted:
            return hinted[0]
    return fitting[0] if len(fitting) == 1 else None
