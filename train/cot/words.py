"""Measured cues and given annotations put into the five parts, with a vocabulary that a small student can learn.

The first four parts are made of the image and of what the set notes about it; they never see the answer or the votes.
Nothing is told that was not measured or noted: whether people are there is only said where the set says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from .cues import Cues

# Where words begin and end. The numbers are quantiles over 1,491 photographs (the train splits of Emotion6 and OASIS,
# default options), fixed so that a word means the same in every set; the quantile stands behind each.
DARK, DIM, BRIGHT = 0.38, 0.51, 0.62  # 20 %, 50 %, 80 % of lightness
LOW_CONTRAST, HIGH_CONTRAST = 0.145, 0.24  # 20 %, 80 %
COLOURLESS, MUTED, VIVID = 0.01, 0.025, 0.057  # 14 %, 33 %, 75 % of chroma
COOL, WARM = -0.2, 0.77  # 20 %, 67 % of warmth
SMOOTH, BUSY = 0.024, 0.054  # 20 %, 80 % of detail
DARKER_TOP, LIGHTER_TOP = -0.07, 0.2  # 20 %, 80 % of upper less lower lightness
DARKER_CENTRE, LIGHTER_CENTRE = -0.06, 0.13  # 20 %, 80 % of central less surrounding lightness
OUTSIDE, INSIDE = 0.23, 0.375  # 10 %, 80 % of the share of detail in the middle
ASIDE, ABOVE, BELOW = 0.045, 0.44, 0.57  # detail off the middle: 10 % to either side, 10 % upwards, 20 % downwards
ALIKE = 0.72  # 90 % of symmetry

ALL, MOSTLY, SOME, TOUCH = 0.9, 0.5, 0.12, 0.02
"""Shares of the pixels: of the first colour, for the first two; of any colour; of a vivid one not named else."""

MEDIAN_LIGHTNESS, SD_LIGHTNESS = 0.51, 0.14
MEDIAN_CHROMA, SD_CHROMA = 0.036, 0.028
"""Median and standard deviation (interquartile range / 1.349) over the same photographs."""

FEELING = 0.35
"""Standard deviations of pleasure or arousal from where a word is used."""

AGREE, MOST, DIVIDED = 0.8, 0.5, 0.7
"""Shares of the votes for these verdicts; divided: the second label has this much of the first one's share."""
SECOND = 0.15
"""Share of the votes from which a second label is named beside a majority."""

PLEASANT = frozenset({
    "affection", "amusement", "awe", "cheerfullness", "contentment", "enthrallment", "excitement", "gratitude",
    "happiness", "joy", "love", "optimism", "positive", "pride", "relief", "zest",
})  # fmt: skip
UNPLEASANT = frozenset({
    "anger", "contempt", "disappointment", "disgust", "envy", "exasperation", "fear", "horror", "irritabilty",
    "negative", "neglect", "nervousness", "rage", "sadness", "shame", "suffering", "sympathy",
})  # fmt: skip
"""Labels with a side; the others, such as surprise and neutral, have none."""


_HUMAN = {"category": "subject:", "facial expression": "facial expression", "human action": "action"}
"""Annotations that the part about people tells, and how it calls them."""


def describe(cues: Cues, annotations: Mapping[str, str]) -> dict[str, str]:
    """Returns the text of the first four parts.

    Args:
        cues: What was measured.
        annotations: What the set notes about the image besides emotion; what is about people is told in ``human``.
    """
    human = [f"{title} {annotations[name]}" for name, title in _HUMAN.items() if name in annotations]
    noted = [f"{name} {value}" for name, value in annotations.items() if name not in _HUMAN]
    return {
        "element": f"{_light(cues)}; {_colours(cues)}; {_detail(cues)}",
        "human": "; ".join(human) or "people not judged",
        "context": "; ".join([*noted, _places(cues)]),
        "interaction": _composition(cues),
    }


def conclude(cues: Cues, answer: str, shares: Mapping[str, float] | None) -> str:
    """Returns the text of the last part: what the cues suggest, weighed against the votes, ending at the answer.

    Args:
        cues: What was measured.
        answer: The label the sample takes as right.
        shares: The share of the votes of each label, where there are votes.
    """
    pleasure = _feeling(cues)[0]
    side = (answer in PLEASANT) - (answer in UNPLEASANT)
    link = "yet" if pleasure * side < 0 else "and"
    verdict = f"the feeling is {answer}" if shares is None else _verdict(answer, shares)
    return f"light and colour suggest {_suggestion(cues)}, {link} {verdict}"


def names_candidate(word: str, candidates: Sequence[str]) -> bool:
    """Returns whether a word is, or has the stem of, a word of a candidate label: ``sad`` for ``sadness``.

    Two words share a stem if one begins with the other, or if they have their first four letters in common; three,
    where the label, without ``-ness``, has at most five (``angry``, ``anger``). It rather takes a word too many.
    """
    folded = word.casefold()
    return any(
        _akin(folded, part.removesuffix("ness"))
        for label in candidates
        for part in re.findall(r"\w+", label.casefold())
    )


def _akin(word: str, label: str) -> bool:
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(word, label, strict=False)))
    return common >= min(3 if len(label) <= 5 else 4, max(len(word), 3), len(label))


def _light(cues: Cues) -> str:
    brightness = _band(cues.lightness, ((DARK, "dark"), (DIM, "dim"), (BRIGHT, "light")), "bright")
    contrast = _band(cues.contrast, ((LOW_CONTRAST, "low"), (HIGH_CONTRAST, "medium")), "high")
    bands = ((COLOURLESS, "colourless"), (MUTED, "muted"), (VIVID, "soft"))
    words = [brightness, _band(cues.chroma, bands, "vivid")]
    if cues.chroma >= COLOURLESS and not COOL < cues.warmth < WARM:
        words.append("cool" if cues.warmth <= COOL else "warm")
    return ", ".join([*words, f"{contrast} contrast"])


def _colours(cues: Cues) -> str:
    """Returns the words for up to three colours, and for one more that is vivid, though it covers little."""
    ranked = [(name, share) for name, share in _ranked(cues.shares) if share >= SOME][:3]
    names = [name for name, _ in ranked]
    touches = [name for name, share in _ranked(cues.vivid) if share >= TOUCH and name not in names]
    touch = f", a touch of {touches[0]}" if touches else ""
    if not ranked:
        return f"many colours{touch}"
    first, share = ranked[0]
    if share >= ALL:
        return f"all {first}{touch}"
    if share < MOSTLY:
        return f"{_listed(names)}{touch}"
    return f"mostly {first}" + (f", some {_listed(names[1:])}" if names[1:] else "") + touch


def _detail(cues: Cues) -> str:
    return _band(cues.detail, ((SMOOTH, "smooth"), (BUSY, "some detail")), "busy detail")


def _places(cues: Cues) -> str:
    above, below = _ranked(cues.top)[0][0], _ranked(cues.bottom)[0][0]
    places = f"{above} above and below" if above == below else f"{above} above, {below} below"
    step = cues.top_lightness - cues.bottom_lightness
    if DARKER_TOP < step < LIGHTER_TOP:
        return places
    return f"{places}, {'lighter' if step >= LIGHTER_TOP else 'darker'} above"


def _composition(cues: Cues) -> str:
    parts = [_gathering(cues)]
    step = cues.centre_lightness - cues.border_lightness
    if not DARKER_CENTRE < step < LIGHTER_CENTRE:
        parts.append(f"the middle is {'lighter' if step >= LIGHTER_CENTRE else 'darker'} than the edges")
    if cues.symmetry >= ALIKE:
        parts.append("left and right alike")
    return "; ".join(parts)


def _gathering(cues: Cues) -> str:
    if cues.detail_in_centre >= INSIDE:
        return "detail gathers in the middle"
    vertical = "at the top" if cues.detail_y < ABOVE else "at the bottom" if cues.detail_y > BELOW else ""
    aside = cues.detail_x - 0.5
    horizontal = "" if abs(aside) < ASIDE else "at the left" if aside < 0 else "at the right"
    where = vertical or horizontal
    if where:
        return f"more detail {where}"
    return "more detail at the edges" if cues.detail_in_centre < OUTSIDE else "detail is spread evenly"


def _feeling(cues: Cues) -> tuple[int, int]:
    """Returns the signs of pleasure and arousal that brightness and saturation suggest; 0 within `FEELING` of none.

    Valdez & Mehrabian 1994, "Effects of color on emotions": pleasure = 0.69 b + 0.22 s, arousal = -0.31 b + 0.60 s, in
    standard deviations.
    """
    b = (cues.lightness - MEDIAN_LIGHTNESS) / SD_LIGHTNESS
    s = (cues.chroma - MEDIAN_CHROMA) / SD_CHROMA
    pleasure, arousal = 0.69 * b + 0.22 * s, -0.31 * b + 0.60 * s
    return (pleasure > FEELING) - (pleasure < -FEELING), (arousal > FEELING) - (arousal < -FEELING)


def _suggestion(cues: Cues) -> str:
    pleasure, arousal = _feeling(cues)
    words = [("unpleasant", "", "pleasant")[pleasure + 1], ("calm", "", "lively")[arousal + 1]]
    return " and ".join(word for word in words if word) or "nothing clear"


def _verdict(answer: str, shares: Mapping[str, float]) -> str:
    share = shares.get(answer, 0.0)
    other, rival = next(((label, part) for label, part in _ranked(shares) if label != answer), ("", 0.0))
    if rival > share:
        return f"most viewers say {other}, the answer is {answer}"
    if share >= AGREE:
        return f"viewers agree on {answer}"
    if rival == share:
        return f"viewers divide evenly between {other} and {answer}, the answer is {answer}"
    if rival >= DIVIDED * share:
        return f"viewers divide between {other} and {answer}, leaning to {answer}"
    if share >= MOST:
        return f"some viewers say {other}, most {answer}" if rival >= SECOND else f"most viewers say {answer}"
    return f"viewers differ, the largest group says {answer}"


def _band(value: float, bands: Sequence[tuple[float, str]], last: str) -> str:
    """Returns the word of the first band whose upper end lies above ``value``."""
    return next((word for end, word in bands if value < end), last)


def _ranked(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda item: (-item[1], item[0]))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))
