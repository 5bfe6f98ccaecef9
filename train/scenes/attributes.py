"""What a scene is made of, and how attributes are drawn by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from emocaliber.runtime.errors import ConfigError

SETTINGS = ("meadow", "beach", "city", "forest", "room")
WEATHERS = ("clear", "cloudy", "rain", "snow", "storm")
TIMES = ("dawn", "day", "dusk", "night")
TINTS = ("none", "warm", "cool")
LEVELS = (-1, 0, 1)

EXPRESSIONS = ("smile", "neutral", "frown", "scowl", "gasp", "terror", "disgust")
POSTURES = ("raised", "upright", "slumped", "cowering", "aggressive")
PAIRINGS = ("hugging", "holding hands", "talking", "quarrelling", "turned away")
DISTANCES = ("near", "far")

FRIENDLY = ("dog", "cat", "butterfly")
THREATENING = ("snake", "spider", "wolf")
OBJECTS = (
    "flowers",
    "balloons",
    "gift",
    "fireworks",
    "cup",
    "chair",
    "grave",
    "wreck",
    "fire",
    "rotten food",
    "rubbish",
)
THINGS = (*FRIENDLY, *THREATENING, *OBJECTS)
SUBJECTS = ("person", "couple", *THINGS, "view")

Level = Literal[-1, 0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Everything about a scene that may bear on what it evokes; all of it is visible in the picture."""

    setting: str
    """One of `SETTINGS`."""
    weather: str
    """One of `WEATHERS`; seen through the window of a room."""
    time: str
    """One of `TIMES`."""
    tint: str
    """Colour cast, one of `TINTS`; it bears on nothing (see `affect`)."""
    saturation: int
    """-1 dull, 0 plain, 1 vivid: standard deviations, as in the colour study that `affect` cites."""
    brightness: int
    """-1 dark, 0 plain, 1 bright."""
    subject: str
    """One of `SUBJECTS`."""
    expression: str | None = None
    """One of `EXPRESSIONS`, of a person or of both people; None without people."""
    posture: str | None = None
    """One of `POSTURES`; None for anything but one person."""
    pairing: str | None = None
    """What two people do, one of `PAIRINGS`; None for anything but two people."""
    distance: str | None = None
    """One of `DISTANCES`; None for people and bare views."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {value!r}, expected one of {list(allowed)}"
            for name, value, allowed in (
                ("setting", self.setting, SETTINGS),
                ("weather", self.weather, WEATHERS),
                ("time", self.time, TIMES),
                ("tint", self.tint, TINTS),
                ("saturation", self.saturation, LEVELS),
                ("brightness", self.brightness, LEVELS),
                ("subject", self.subject, SUBJECTS),
                ("expression", self.expression, EXPRESSIONS if self.has_people else (None,)),
                ("posture", self.posture, POSTURES if self.subject == "person" else (None,)),
                ("pairing", self.pairing, PAIRINGS if self.subject == "couple" else (None,)),
                ("distance", self.distance, DISTANCES if self.subject in THINGS else (None,)),
            )
            if value not in allowed
        ]
        if faults:
            raise ConfigError("scene: " + "; ".join(faults))

    @property
    def has_people(self) -> bool:
        """Whether one or two people are in the picture."""
        return self.subject in ("person", "couple")


_SUBJECT_WEIGHTS = {
    "person": 0.42, "couple": 0.16, "view": 0.04,
    "dog": 0.02, "cat": 0.02, "butterfly": 0.02,
    "snake": 0.025, "spider": 0.025, "wolf": 0.025,
    "flowers": 0.02, "balloons": 0.02, "gift": 0.03, "fireworks": 0.03,
    "cup": 0.02, "chair": 0.02, "grave": 0.02, "wreck": 0.02, "fire": 0.02,
    "rotten food": 0.035, "rubbish": 0.025,
}  # fmt: skip

_EXPRESSION_WEIGHTS = {
    "smile": 0.15, "neutral": 0.13, "frown": 0.14, "scowl": 0.18, "gasp": 0.15, "terror": 0.12, "disgust": 0.13,
}  # fmt: skip

_FITTING_POSTURE = {
    "smile": "raised", "neutral": "upright", "frown": "slumped", "scowl": "aggressive", "gasp": "raised",
    "terror": "cowering", "disgust": "upright",
}  # fmt: skip
"""The posture people most often show with an expression; half of the people show it, the others any."""

_PAIR_EXPRESSIONS: dict[str, dict[str, float]] = {
    "hugging": {"smile": 0.6, "frown": 0.25, "neutral": 0.15},
    "holding hands": {"smile": 0.55, "neutral": 0.25, "gasp": 0.2},
    "talking": {"neutral": 0.4, "smile": 0.2, "gasp": 0.2, "disgust": 0.2},
    "quarrelling": {"scowl": 0.7, "frown": 0.15, "terror": 0.15},
    "turned away": {"frown": 0.4, "scowl": 0.3, "neutral": 0.3},
}


def draw_attributes(rng: np.random.Generator) -> Attributes:
    """Returns random attributes; which ones go together is this project's own choice."""
    subject = _choose(rng, _SUBJECT_WEIGHTS)
    expression = posture = pairing = distance = None
    if subject == "person":
        expression = _choose(rng, _EXPRESSION_WEIGHTS)
        posture = _FITTING_POSTURE[expression] if rng.random() < 0.5 else _any_of(rng, POSTURES)
    elif subject == "couple":
        pairing = _any_of(rng, PAIRINGS)
        expression = _choose(rng, _PAIR_EXPRESSIONS[pairing])
    elif subject in THINGS:
        distance = "near" if rng.random() < 0.75 else "far"
    return Attributes(
        setting=_any_of(rng, SETTINGS),
        weather=_choose(rng, {"clear": 0.34, "cloudy": 0.2, "rain": 0.18, "snow": 0.13, "storm": 0.15}),
        time=_choose(rng, {"dawn": 0.15, "day": 0.4, "dusk": 0.2, "night": 0.25}),
        tint=_any_of(rng, TINTS),
        saturation=int(rng.choice(LEVELS)),
        brightness=int(rng.choice(LEVELS)),
        subject=subject,
        expression=expression,
        posture=posture,
        pairing=pairing,
        distance=distance,
    )


def _choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    point = rng.random() * sum(weights.values())
    for value, weight in weights.items():
        point -= weight
        if point < 0:
            return value
    return next(reversed(weights))


def _any_of(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]
