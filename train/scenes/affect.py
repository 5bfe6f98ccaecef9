"""From attributes to the true posterior over labels.

Two steps. The attributes give a point in the space of pleasure, arousal and dominance (PAD); the point gives the
posterior: labels have published PAD coordinates ``c_y``, and

    p(y) proportional to exp(-|pad - c_y|^2 / (2 tau^2) + bias_y + affinity_y(attributes))

The *coordinates* are those of Russell and Mehrabian (1977), the *colour coefficients* those of Valdez and Mehrabian
(1994). The *signs* of the other effects follow findings named beside them; their *sizes*, tau, the biases and the
affinities (which PAD needs: it hardly separates anger from disgust) are this project's own. ``docs/scenes.md``
says more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.taxonomy import resolve_taxonomy

from .attributes import Attributes


class Effect(NamedTuple):
    """What one attribute value adds."""

    pleasure: float
    arousal: float
    dominance: float
    affinity: Mapping[str, float] = MappingProxyType({})
    """Label of emotion6-7: what is added to its logit."""


COORDINATES: dict[str, dict[str, tuple[float, float, float]]] = {
    # Russell & Mehrabian 1977, "Evidence for a three-factor theory of emotions".
    "emotion6-7": {
        "anger": (-0.51, 0.59, 0.25),
        "disgust": (-0.60, 0.35, 0.11),
        "fear": (-0.64, 0.60, -0.43),
        "joy": (0.76, 0.48, 0.35),
        "sadness": (-0.63, -0.27, -0.33),
        "surprise": (0.40, 0.67, -0.13),
        "neutral": (0.0, 0.0, 0.0),
    },
    # Two points on the pleasure axis: own choice.
    "sentiment-2": {"negative": (-0.3, 0.0, 0.0), "positive": (0.3, 0.0, 0.0)},
}
"""Taxonomy: label: (pleasure, arousal, dominance) in [-1, 1]."""

TAU = 0.45
"""Spread of what different people feel before the same scene, in units of PAD."""

BIAS = {"anger": -0.1, "disgust": -0.1, "surprise": -0.1, "neutral": -0.1}
"""Added to the logits of emotion6-7: how readily each label is named."""

# Valdez & Mehrabian 1994, "Effects of color on emotions": standardised regression weights of (pleasure, arousal,
# dominance).
BRIGHTNESS_WEIGHTS = (0.69, -0.31, -0.76)
SATURATION_WEIGHTS = (0.22, 0.60, 0.32)
COLOUR_SIZE = 0.2
"""PAD units per standard deviation of colour. Hue, weak in that study, has no effect here."""

EXPRESSION_EFFECTS = {
    # Facial expressions of emotion: Ekman 1992, "An argument for basic emotions".
    "smile": Effect(0.62, 0.2, 0.15, {"joy": 0.6}),
    "neutral": Effect(0.0, -0.1, 0.0, {"neutral": 0.7}),
    "frown": Effect(-0.5, -0.3, -0.25, {"sadness": 0.6}),
    "scowl": Effect(-0.45, 0.45, 0.3, {"anger": 1.0}),
    "gasp": Effect(0.15, 0.6, -0.15, {"surprise": 0.9}),
    "terror": Effect(-0.5, 0.5, -0.4, {"fear": 0.8}),
    "disgust": Effect(-0.5, 0.2, 0.05, {"disgust": 1.5}),
}
POSTURE_EFFECTS = {
    # Bodily expression of emotion: Wallbott 1998; expansive postures and dominance: Tiedens & Fragale 2003.
    "raised": Effect(0.3, 0.35, 0.25),
    "upright": Effect(0.0, 0.0, 0.1),
    "slumped": Effect(-0.25, -0.4, -0.25, {"sadness": 0.4}),
    "cowering": Effect(-0.25, 0.25, -0.4, {"fear": 0.7}),
    "aggressive": Effect(-0.3, 0.35, 0.4, {"anger": 0.9}),
}
PAIRING_EFFECTS = {
    # Own choice.
    "hugging": Effect(0.4, 0.1, 0.1),
    "holding hands": Effect(0.3, 0.05, 0.1),
    "talking": Effect(0.05, 0.05, 0.0),
    "quarrelling": Effect(-0.4, 0.45, 0.2, {"anger": 0.7}),
    "turned away": Effect(-0.35, -0.25, -0.1, {"sadness": 0.4}),
}
SUBJECT_EFFECTS = {
    "person": Effect(0.0, 0.0, 0.0),
    "couple": Effect(0.0, 0.0, 0.0),
    "view": Effect(0.0, -0.1, 0.0),
    "dog": Effect(0.5, 0.25, 0.2, {"joy": 0.5}),
    "cat": Effect(0.45, 0.0, 0.15, {"joy": 0.5}),
    "butterfly": Effect(0.5, 0.2, 0.1, {"surprise": 0.6}),
    # Fear of snakes, spiders and large predators: Öhman & Mineka 2001.
    "snake": Effect(-0.6, 0.6, -0.4, {"fear": 1.0}),
    "spider": Effect(-0.6, 0.5, -0.3, {"fear": 0.7, "disgust": 1.0}),
    "wolf": Effect(-0.5, 0.6, -0.4, {"fear": 1.0}),
    "flowers": Effect(0.6, 0.15, 0.15, {"joy": 0.5}),
    "balloons": Effect(0.65, 0.4, 0.25, {"joy": 0.6}),
    "gift": Effect(0.45, 0.6, -0.05, {"surprise": 1.2}),
    "fireworks": Effect(0.45, 0.75, -0.1, {"surprise": 1.2}),
    "cup": Effect(0.05, -0.1, 0.05, {"neutral": 0.8}),
    "chair": Effect(0.0, -0.1, 0.0, {"neutral": 0.8}),
    "grave": Effect(-0.65, -0.3, -0.35, {"sadness": 1.0}),
    "wreck": Effect(-0.6, 0.35, -0.2, {"fear": 0.3, "anger": 0.5}),
    "fire": Effect(-0.5, 0.65, -0.3, {"fear": 0.6, "anger": 0.3}),
    # Decay and waste elicit disgust: Rozin & Fallon 1987.
    "rotten food": Effect(-0.6, 0.25, 0.1, {"disgust": 1.6}),
    "rubbish": Effect(-0.55, 0.15, 0.05, {"disgust": 1.5, "anger": 0.4}),
}
WEATHER_EFFECTS = {
    # Sunny and rainy days and mood: Schwarz & Clore 1983.
    "clear": Effect(0.08, 0.0, 0.03),
    "cloudy": Effect(-0.04, -0.05, 0.0),
    "rain": Effect(-0.1, -0.06, -0.04),
    "snow": Effect(0.03, -0.04, 0.0),
    "storm": Effect(-0.15, 0.18, -0.12),
}
TIME_EFFECTS = {
    # Darkness heightens startle in humans: Grillon et al. 1997.
    "dawn": Effect(0.05, -0.04, 0.0),
    "day": Effect(0.0, 0.0, 0.0),
    "dusk": Effect(0.0, -0.06, 0.0),
    "night": Effect(-0.1, 0.08, -0.1),
}
SETTING_EFFECTS = {
    # Preference for nature over built places: Ulrich 1983.
    "meadow": Effect(0.06, -0.03, 0.0),
    "beach": Effect(0.08, 0.0, 0.0),
    "city": Effect(-0.04, 0.06, 0.0),
    "forest": Effect(0.03, 0.0, -0.03),
    "room": Effect(0.0, -0.04, 0.03),
}
FAR_FACTOR = 0.5
"""A far subject has this share of the effect of a near one (own choice)."""
VIEW_FACTOR = 2.0
"""In a bare view nothing distracts from place, weather, time and colour: their share (own choice)."""


def _effects(attributes: Attributes) -> list[tuple[float, Effect]]:
    """Returns (factor, effect) of every attribute but colour."""
    subject_factor = FAR_FACTOR if attributes.distance == "far" else 1.0
    place_factor = VIEW_FACTOR if attributes.subject == "view" else 1.0
    effects = [
        (subject_factor, SUBJECT_EFFECTS[attributes.subject]),
        (place_factor, SETTING_EFFECTS[attributes.setting]),
        (place_factor, WEATHER_EFFECTS[attributes.weather]),
        (place_factor, TIME_EFFECTS[attributes.time]),
    ]
    if attributes.expression is not None:
        effects.append((1.0, EXPRESSION_EFFECTS[attributes.expression]))
    if attributes.posture is not None:
        effects.append((1.0, POSTURE_EFFECTS[attributes.posture]))
    if attributes.pairing is not None:
        effects.append((1.0, PAIRING_EFFECTS[attributes.pairing]))
    return effects


def pad(attributes: Attributes) -> tuple[float, float, float]:
    """Returns the scene's mean (pleasure, arousal, dominance): the sum of all effects, clipped to [-1, 1]."""
    size = COLOUR_SIZE * (VIEW_FACTOR if attributes.subject == "view" else 1.0)
    point = []
    for axis in range(3):
        colour = attributes.brightness * BRIGHTNESS_WEIGHTS[axis] + attributes.saturation * SATURATION_WEIGHTS[axis]
        total = size * colour
        for factor, effect in _effects(attributes):
            total += factor * (effect.pleasure, effect.arousal, effect.dominance)[axis]
        point.append(min(1.0, max(-1.0, total)))
    return point[0], point[1], point[2]


def posterior(attributes: Attributes, taxonomy: str = "emotion6-7") -> tuple[float, ...]:
    """Returns the probability of each label, in the taxonomy's order; the formula stands in the module's docstring.

    Raises:
        InputError: If the taxonomy has no coordinates here.
    """
    if taxonomy not in COORDINATES:
        raise InputError(f"scenes know no posterior over {taxonomy!r}; known: {', '.join(COORDINATES)}")
    point = pad(attributes)
    logits = []
    for label in resolve_taxonomy(taxonomy).labels:
        distance = math.dist(point, COORDINATES[taxonomy][label])
        logit = -(distance**2) / (2 * TAU**2)
        if taxonomy == "emotion6-7":
            logit += BIAS.get(label, 0.0)
            logit += sum(factor * effect.affinity.get(label, 0.0) for factor, effect in _effects(attributes))
        logits.append(logit)
    weights = np.exp(np.asarray(logits) - max(logits))
    return tuple(float(p) for p in weights / weights.sum())
