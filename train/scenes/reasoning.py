"""The truthful five-part reasoning of a scene, rendered from its attributes with a small vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emocaliber.runtime.taxonomy import resolve_taxonomy

from .affect import pad
from .attributes import Attributes

_BRIGHTNESS = {-1: "dark", 0: "plain", 1: "bright"}
_SATURATION = {-1: "dull", 0: "soft", 1: "vivid"}
_TINT = {"none": "", "warm": "warm ", "cool": "cool "}

_EXPRESSION = {
    "smile": "smiling",
    "neutral": "calm",
    "frown": "crying",
    "scowl": "scowling",
    "gasp": "gasping",
    "terror": "terrified",
    "disgust": "sickened",
}
_POSTURE = {
    "raised": "arms raised",
    "upright": "standing upright",
    "slumped": "slumped down",
    "cowering": "hands at the face",
    "aggressive": "fists raised",
}
_PLACE = {"meadow": "a meadow", "beach": "a beach", "city": "a city", "forest": "a forest", "room": "a room"}
_TIME = {"dawn": "at dawn", "day": "by day", "dusk": "at dusk", "night": "at night"}
_WEATHER = {"clear": "clear sky", "cloudy": "cloudy sky", "rain": "rain", "snow": "snow", "storm": "storm"}
_PAIRING = {
    "hugging": "they hug each other",
    "holding hands": "they hold hands",
    "talking": "they talk to each other",
    "quarrelling": "they quarrel with each other",
    "turned away": "they turn away from each other",
}
_THING = {
    "flowers": "flowers",
    "balloons": "balloons",
    "gift": "an opened gift",
    "fireworks": "fireworks",
    "grave": "a grave",
    "wreck": "a wrecked car",
    "fire": "a fire",
    "rotten food": "rotten food with flies",
    "rubbish": "rubbish with flies",
}
"""Subjects named otherwise than "a" and the attribute's own word."""


def render_reasoning(
    attributes: Attributes, posterior: Sequence[float], taxonomy: str, rng: np.random.Generator
) -> dict[str, str]:
    """Returns the text of each of the five parts.

    Args:
        attributes: The scene; nothing else is told of.
        posterior: Its true posterior over ``taxonomy``, from which the analysis is worded.
        taxonomy: Name of the label set.
        rng: Chooses between phrasings of the same meaning.
    """
    return {
        "element": _element(attributes, rng),
        "human": _human(attributes, rng),
        "context": _context(attributes, rng),
        "interaction": _interaction(attributes, rng),
        "analysis": f"{_feeling(attributes)}; {_verdict(posterior, resolve_taxonomy(taxonomy).labels)}",
    }


def _thing(attributes: Attributes) -> str:
    return _THING.get(attributes.subject, f"a {attributes.subject}")


def _element(attributes: Attributes, rng: np.random.Generator) -> str:
    colours = (
        f"{_BRIGHTNESS[attributes.brightness]} {_SATURATION[attributes.saturation]} {_TINT[attributes.tint]}colours"
    )
    if attributes.subject == "view":
        return f"only a view, {colours}"
    if attributes.has_people:
        return colours
    return f"{_thing(attributes)}, {colours}" if rng.random() < 0.5 else f"{colours}, {_thing(attributes)}"


def _human(attributes: Attributes, rng: np.random.Generator) -> str:
    if attributes.expression is None:
        return "no person in view" if rng.random() < 0.5 else "nobody is here"
    expression = _EXPRESSION[attributes.expression]
    if attributes.subject == "couple":
        return f"two {expression} people" if rng.random() < 0.5 else f"two people, both {expression}"
    posture = _POSTURE[str(attributes.posture)]
    return f"one {expression} person, {posture}" if rng.random() < 0.5 else f"one person, {expression}, {posture}"


def _context(attributes: Attributes, rng: np.random.Generator) -> str:
    place, time, weather = _PLACE[attributes.setting], _TIME[attributes.time], _WEATHER[attributes.weather]
    if attributes.setting == "room":
        weather += " outside"
    return f"{place} {time}, {weather}" if rng.random() < 0.5 else f"{weather}, {place} {time}"


def _interaction(attributes: Attributes, rng: np.random.Generator) -> str:
    if attributes.pairing is not None:
        return _PAIRING[attributes.pairing]
    if attributes.subject == "person":
        return "the person is alone" if rng.random() < 0.5 else "alone, facing us"
    if attributes.subject == "view":
        return "nothing happens here"
    return "near and large" if attributes.distance == "near" else "far and small"


def _feeling(attributes: Attributes) -> str:
    """Returns pleasure, arousal and dominance in words, from bins of the scene's PAD point."""
    pleasure, arousal, dominance = pad(attributes)
    words = []
    if abs(pleasure) < 0.15:
        words.append("mixed")
    else:
        words.append(("very " if abs(pleasure) > 0.55 else "") + ("pleasant" if pleasure > 0 else "unpleasant"))
    if arousal > 0.2:
        words.append(("very " if arousal > 0.6 else "") + ("excited" if pleasure > 0 else "tense"))
    else:
        words.append("quiet" if arousal < -0.2 else "even")
    if abs(dominance) >= 0.2:
        words.append("strong" if dominance > 0 else "weak")
    return ", ".join(words)


def _verdict(posterior: Sequence[float], labels: Sequence[str]) -> str:
    """Returns the most probable labels, with a word for how sure one can be."""
    order = sorted(range(len(labels)), key=lambda i: (-posterior[i], i))
    first, second = labels[order[0]], labels[order[1]]
    top = posterior[order[0]]
    if top >= 0.8:
        return f"clearly {first}"
    if top >= 0.6:
        return f"likely {first}"
    if top >= 0.4:
        return f"perhaps {first}, or {second}"
    return f"unclear, {first} or {second}"
