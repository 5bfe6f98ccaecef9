"""Label sets: the named taxonomies of the field, and the checks a caller's own list must pass."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputError

MIKELS_8 = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
POLARITY_2 = ("negative", "positive")

CUSTOM = "custom"
"""Name of a list of labels that a caller gave."""

MAX_LABELS = 1000
MAX_LABEL_LENGTH = 64

_JOINERS = "\u200c\u200d"
"""Part of a word in Persian and of Indic scripts, and of joined emoji."""
_JOINED = ("Lo", "Mn", "Mc", "So", "Sk")
"""Categories of the characters they stand between there; no letter of a script with capitals is among them."""
_FORBIDDEN = re.compile(r"[<>{}\[\],|\x00-\x1f\x7f\u0085\u2028\u2029]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxonomy:
    """An ordered set of candidate labels under one name."""

    name: str
    """Registered name, or `CUSTOM` for a list given by a caller."""
    labels: tuple[str, ...]
    """Candidates in the order in which the prompt lists them."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Pairs (accepted spelling, label of the set)."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def index(self, label: str) -> int:
        """Returns the position of ``label``, after case folding and aliases.

        Raises:
            InputError: If the label is not a candidate.
        """
        folded = label.strip().casefold()
        folded = dict(self.aliases).get(folded, folded)
        for position, candidate in enumerate(self.labels):
            if candidate.casefold() == folded:
                return position
        raise InputError(f"label {label!r} is not in taxonomy {self.name} ({', '.join(self.labels)})")


def _check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels must be a list of strings, got {labels!r}")
    if not 2 <= len(labels) <= MAX_LABELS:
        raise InputError(f"a taxonomy needs 2 to {MAX_LABELS} labels, got {len(labels)}")
    seen: dict[str, str] = {}
    for label in labels:
        if not label or label != label.strip():
            raise InputError(f"label {label!r} is empty or starts or ends with white space; give a plain word")
        if len(label) > MAX_LABEL_LENGTH:
            raise InputError(f"label {label[:20]!r}... has {len(label)} characters, at most {MAX_LABEL_LENGTH} may be")
        # A tokenizer may turn full-width forms into plain ones.
        plain = unicodedata.normalize("NFKC", label)
        bad = _FORBIDDEN.search(label) or _FORBIDDEN.search(plain)
        invisible = _invisible(label)
        if bad or invisible:
            what = repr(bad.group()) if bad else f"a control character (U+{ord(invisible):04X})"
            raise InputError(f"label {label!r} holds {what}: labels are words, never tags or control codes")
        folded = plain.casefold().translate(dict.fromkeys(map(ord, _JOINERS)))
        if folded in seen:
            raise InputError(f"labels {seen[folded]!r} and {label!r} are the same label; remove one")
        seen[folded] = label


def _invisible(label: str) -> str:
    """Returns the first character that shows nothing and belongs to no word, or nothing."""
    kinds = [unicodedata.category(char) for char in label]
    for place, (char, kind) in enumerate(zip(label, kinds, strict=True)):
        around = (*kinds[max(0, place - 1) : place], *kinds[place + 1 : place + 2])
        joins = char in _JOINERS and len(around) == 2 and set(around) <= set(_JOINED)
        if kind in ("Cc", "Cf", "Cs", "Co", "Cn") and not joins:
            return char
    return ""


_WEBEMO_25 = (
    "affection", "cheerfullness", "confusion", "contentment", "disappointment", "disgust", "enthrallment", "envy",
    "exasperation", "gratitude", "horror", "irritabilty", "lust", "neglect", "nervousness", "optimism", "pride", "rage",
    "relief", "sadness", "shame", "suffering", "surprise", "sympathy", "zest",
)  # fmt: skip

TAXONOMIES: dict[str, Taxonomy] = {
    taxonomy.name: taxonomy
    for taxonomy in (
        Taxonomy(name="emoset-8", labels=MIKELS_8),
        Taxonomy(name="fi-8", labels=MIKELS_8),
        Taxonomy(name="abstract-8", labels=MIKELS_8),
        Taxonomy(name="artphoto-8", labels=MIKELS_8),
        Taxonomy(name="fi-2", labels=POLARITY_2),
        Taxonomy(name="webemo-2", labels=POLARITY_2),
        Taxonomy(name="webemo-7", labels=("anger", "confusion", "fear", "joy", "love", "sadness", "surprise")),
        Taxonomy(
            name="webemo-25",
            labels=_WEBEMO_25,
            aliases=(("cheerfulness", "cheerfullness"), ("irritability", "irritabilty")),
        ),
        Taxonomy(name="unbiasedemo-6", labels=("anger", "fear", "joy", "love", "sadness", "surprise")),
        Taxonomy(name="emotion6-7", labels=("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")),
        Taxonomy(name="sentiment-2", labels=POLARITY_2),
        Taxonomy(
            name="ferplus-8",
            labels=("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
        ),
    )
}
"""The named taxonomies: VECBench (Wu et al. 2025, arXiv 2512.15528), Emotion6 (Peng et al. 2015), FER+ (Barsoum et al.
2016), and a plain polarity."""


def resolve_taxonomy(name: str | None = None, labels: Sequence[str] | None = None) -> Taxonomy:
    """Returns the named taxonomy, or one made of a caller's labels.

    Labels that equal a named taxonomy's, in order, when no name is given, are still ``custom``: a calibrator is only
    valid for the prompt and the set it was fitted on, so the caller has to ask for it by name.

    Raises:
        InputError: If both or neither are given, the name is unknown, or the labels are unusable.
    """
    if (name is None) == (labels is None):
        raise InputError("give either a taxonomy name or a list of labels, not both")
    if labels is not None:
        if isinstance(labels, str):
            raise InputError(f"labels must be a list of strings, got {labels!r}")
        return Taxonomy(name=CUSTOM, labels=tuple(labels))
    assert name is not None
    if name not in TAXONOMIES:
        raise InputError(f"unknown taxonomy {name!r}; known: {', '.join(TAXONOMIES)}; or give your own labels")
    return TAXONOMIES[name]
