"""From the words that sets use for their classes to the labels of our taxonomies, coarser ones included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.taxonomy import MIKELS_8, TAXONOMIES

WEBEMO_7: Mapping[str, tuple[str, ...]] = {
    "love": ("affection", "gratitude", "lust"),
    "joy": ("cheerfullness", "contentment", "enthrallment", "optimism", "pride", "relief", "zest"),
    "surprise": ("surprise",),
    "confusion": ("confusion",),
    "sadness": ("disappointment", "neglect", "sadness", "shame", "suffering", "sympathy"),
    "anger": ("disgust", "envy", "exasperation", "irritabilty", "rage"),
    "fear": ("horror", "nervousness"),
}
"""The 25 classes of WebEmo below its 7 (Panda et al. 2018, as VECBench has them)."""

_POSITIVE = ("love", "joy", "surprise", "amusement", "awe", "contentment", "excitement")
_SPELLINGS = {"content": "contentment", "sad": "sadness"}
"""How ArtPhoto and Abstract (Machajdik & Hanbury 2010) abbreviate two of the eight."""


def _polarity(labels: Iterable[str]) -> dict[str, str]:
    return {label: "positive" if label in _POSITIVE else "negative" for label in labels}


_SEVEN_OF = {fine: coarse for coarse, labels in WEBEMO_7.items() for fine in labels}
_COARSER: Mapping[str, Mapping[str, str]] = {
    "fi-2": _polarity(MIKELS_8),
    "webemo-7": _SEVEN_OF,
    "webemo-2": {fine: "positive" if coarse in _POSITIVE else "negative" for fine, coarse in _SEVEN_OF.items()},
}
"""Taxonomy: class of a finer one: its label."""


def spelled(word: str, taxonomy: str) -> str | None:
    """Returns the label of ``taxonomy`` that ``word`` spells, in any case or accepted form, or None."""
    folded = word.strip().casefold()
    candidates = TAXONOMIES[taxonomy]
    for spelling in (folded, _SPELLINGS.get(folded, folded)):
        try:
            return candidates.labels[candidates.index(spelling)]
        except InputError:
            continue
    return None


def find_label(word: str, taxonomy: str) -> str | None:
    """Returns the label of ``taxonomy`` that ``word`` spells, or that a class of a finer taxonomy falls under, or None.

    ``Affection`` is ``love`` in webemo-7 and ``positive`` in webemo-2.
    """
    label = spelled(word, taxonomy)
    if label is not None:
        return label
    coarser = _COARSER.get(taxonomy, {})
    classes = (spelled(word, finer) for finer in ("webemo-25", "fi-8"))
    return next((coarser[name] for name in classes if name is not None and name in coarser), None)


def label_of(word: str, taxonomy: str, where: str) -> str:
    """Returns the label of ``taxonomy`` that ``word`` stands for.

    Raises:
        InputError: If there is none; ``where`` says where the word stands.
    """
    label = find_label(word, taxonomy)
    if label is None:
        known = ", ".join(TAXONOMIES[taxonomy].labels)
        raise InputError(f"{where}: label {word!r} is not in taxonomy {taxonomy} ({known})")
    return label
