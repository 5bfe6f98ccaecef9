"""People: faces, postures, and what two of them do."""

from __future__ import annotations

import numpy as np

from .attributes import Attributes
from .canvas import Canvas, Colour, Point, arc_points

INK: Colour = (44, 32, 36)
WHITE: Colour = (252, 252, 250)
MOUTH: Colour = (120, 24, 40)

_SKINS: tuple[Colour, ...] = ((250, 214, 182), (232, 186, 142), (190, 138, 96), (150, 104, 72))
_HAIR: tuple[Colour, ...] = ((58, 40, 32), (30, 28, 34), (176, 120, 58), (150, 64, 36))
_CLOTHES: tuple[Colour, ...] = ((206, 74, 70), (66, 116, 188), (82, 150, 96), (224, 168, 62), (138, 92, 166))

_FLUSH: dict[str, Colour] = {
    "smile": (255, 208, 104),
    "frown": (112, 156, 226),
    "scowl": (226, 52, 40),
    "gasp": (250, 158, 200),
    "terror": (226, 232, 250),
    "disgust": (124, 184, 56),
}
"""Colour towards which an expression shifts the skin, as comics do: legible even where a face is 20 pixels wide."""
_FLUSH_SHARE = 0.55


def _mixed(colour: Colour, towards: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, towards, strict=True))
    return red, green, blue


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def draw_person(canvas: Canvas, attributes: Attributes, rng: np.random.Generator) -> None:
    """Draws one person from the waist up, filling the frame."""
    expression = str(attributes.expression)
    skin, clothes, hair = _pick(rng, _SKINS), _pick(rng, _CLOTHES), _pick(rng, _HAIR)
    skin = _mixed(skin, _FLUSH.get(expression, skin), _FLUSH_SHARE)
    long_hair = bool(rng.random() < 0.5)
    sleeve = _mixed(clothes, (0, 0, 0), 0.18)
    head, shoulders, half = {
        "raised": (0.38, 0.65, 0.24),
        "upright": (0.36, 0.63, 0.27),
        "slumped": (0.56, 0.83, 0.21),
        "cowering": (0.6, 0.86, 0.25),
        "aggressive": (0.36, 0.6, 0.37),
    }[str(attributes.posture)]
    torso = [
        (0.5 - half, shoulders + 0.04),
        (0.5 - half + 0.06, shoulders - 0.02),
        (0.5 + half - 0.06, shoulders - 0.02),
    ]
    torso += [(0.5 + half, shoulders + 0.04), (0.5 + half * 0.8, 1.1), (0.5 - half * 0.8, 1.1)]
    if attributes.posture == "raised":
        for side in (-1, 1):
            arm = [(0.5 + side * 0.2, 0.7), (0.5 + side * 0.36, 0.48), (0.5 + side * 0.36, 0.16)]
            _draw_limb(canvas, arm, 0.1, sleeve, skin, 0.07)
    if long_hair:
        canvas.disc(0.5, head + 0.06, 0.26, hair, 0.26)
    canvas.shape(torso, clothes)
    canvas.box(0.43, head + 0.14, 0.56, shoulders + 0.01, _mixed(skin, (0, 0, 0), 0.12))
    if attributes.posture in ("upright", "slumped"):
        for side in (-1, 1):
            out = 0.04 if attributes.posture == "upright" else -0.02
            canvas.stroke(
                [(0.5 + side * (half - 0.01), shoulders + 0.06), (0.5 + side * (half + out), 1.1)], 0.1, sleeve
            )
    canvas.disc(0.5, head - 0.035, 0.242, hair, 0.235)
    canvas.disc(0.5, head + 0.02, 0.225, skin, 0.225)
    draw_face(canvas, expression, 0.5, head + 0.02, 0.22)
    _draw_front_arms(canvas, str(attributes.posture), head, sleeve, skin)


def _draw_front_arms(canvas: Canvas, posture: str, head: float, sleeve: Colour, skin: Colour) -> None:
    dark = _mixed(skin, (0, 0, 0), 0.3)
    for side in (-1, 1):
        if posture == "cowering":
            # Both hands held before the body, at the cheeks.
            arm = [(0.5 + side * 0.3, 1.08), (0.5 + side * 0.35, 0.86), (0.5 + side * 0.26, head + 0.1)]
            _draw_limb(canvas, arm, 0.11, sleeve, _mixed(skin, (0, 0, 0), 0.1), 0.085)
        elif posture == "aggressive":
            fist = (0.5 + side * 0.35, 0.52)
            arm = [(0.5 + side * 0.34, 0.68), (0.5 + side * 0.42, 0.88), fist]
            _draw_limb(canvas, arm, 0.13, sleeve, skin, 0.115)
            for knuckle in (-0.05, 0.0, 0.05):
                x = fist[0] + knuckle
                canvas.stroke([(x, fist[1] - 0.07), (x, fist[1])], 0.014, dark)


def _draw_limb(canvas: Canvas, points: list[Point], width: float, sleeve: Colour, skin: Colour, hand: float) -> None:
    canvas.stroke(points, width, sleeve)
    canvas.disc(*points[-1], hand, skin)


def draw_face(canvas: Canvas, expression: str, x: float, y: float, r: float) -> None:
    """Draws eyes, brows and mouth on a head of radius ``r`` centred at (x, y)."""
    {
        "smile": _smile,
        "neutral": _neutral,
        "frown": _frown,
        "scowl": _scowl,
        "gasp": _gasp,
        "terror": _terror,
        "disgust": _disgust,
    }[expression](canvas, x, y, r)


def _brows(canvas: Canvas, x: float, y: float, r: float, inner: float, outer: float, width: float = 0.11) -> None:
    """Draws both brows; ``inner`` and ``outer`` are the heights of their ends, in radii above the centre."""
    for side in (-1, 1):
        ends = [(x + side * 0.16 * r, y - inner * r), (x + side * 0.66 * r, y - outer * r)]
        canvas.stroke(ends, width * r, INK)


def _round_eyes(canvas: Canvas, x: float, y: float, r: float, white: float, pupil: float) -> None:
    for side in (-1, 1):
        if white:
            canvas.disc(x + side * 0.4 * r, y - 0.12 * r, white * r, WHITE, white * 1.1 * r)
        canvas.disc(x + side * 0.4 * r, y - 0.12 * r, pupil * r, INK)


def _smile(canvas: Canvas, x: float, y: float, r: float) -> None:
    for side in (-1, 1):
        canvas.arc(x + side * 0.4 * r, y - 0.08 * r, 0.17 * r, 0.2 * r, (0.5, 1.0), 0.11 * r, INK)
        canvas.disc(x + side * 0.62 * r, y + 0.22 * r, 0.17 * r, (244, 130, 124))
    canvas.shape(arc_points(x, y + 0.2 * r, 0.56 * r, 0.6 * r, (0.0, 0.5)), MOUTH)
    canvas.shape(
        [
            (x - 0.5 * r, y + 0.2 * r),
            (x + 0.5 * r, y + 0.2 * r),
            (x + 0.42 * r, y + 0.4 * r),
            (x - 0.42 * r, y + 0.4 * r),
        ],
        WHITE,
    )


def _neutral(canvas: Canvas, x: float, y: float, r: float) -> None:
    _round_eyes(canvas, x, y, r, 0.0, 0.12)
    _brows(canvas, x, y, r, 0.42, 0.42, 0.08)
    canvas.stroke([(x - 0.3 * r, y + 0.5 * r), (x + 0.3 * r, y + 0.5 * r)], 0.1 * r, MOUTH)


def _frown(canvas: Canvas, x: float, y: float, r: float) -> None:
    for side in (-1, 1):
        canvas.arc(x + side * 0.4 * r, y - 0.14 * r, 0.18 * r, 0.14 * r, (0.0, 0.5), 0.1 * r, INK)
        tear = (92, 176, 250)
        canvas.disc(x + side * 0.46 * r, y + 0.36 * r, 0.15 * r, tear, 0.2 * r)
        canvas.shape(
            [(x + side * 0.46 * r, y), (x + side * 0.34 * r, y + 0.3 * r), (x + side * 0.58 * r, y + 0.3 * r)], tear
        )
    _brows(canvas, x, y, r, 0.6, 0.3)
    canvas.arc(x, y + 0.8 * r, 0.34 * r, 0.34 * r, (0.55, 0.95), 0.13 * r, MOUTH)


def _scowl(canvas: Canvas, x: float, y: float, r: float) -> None:
    _round_eyes(canvas, x, y, r, 0.19, 0.1)
    _brows(canvas, x, y, r, 0.14, 0.56, 0.2)
    canvas.shape(
        [
            (x - 0.44 * r, y + 0.72 * r),
            (x - 0.3 * r, y + 0.34 * r),
            (x + 0.3 * r, y + 0.34 * r),
            (x + 0.44 * r, y + 0.72 * r),
        ],
        MOUTH,
    )
    canvas.box(x - 0.3 * r, y + 0.42 * r, x + 0.3 * r, y + 0.64 * r, WHITE)
    for tooth in (-0.15, 0.0, 0.15):
        canvas.stroke([(x + tooth * r, y + 0.42 * r), (x + tooth * r, y + 0.64 * r)], 0.04 * r, MOUTH)


def _gasp(canvas: Canvas, x: float, y: float, r: float) -> None:
    _round_eyes(canvas, x, y, r, 0.25, 0.12)
    for side in (-1, 1):
        canvas.arc(x + side * 0.42 * r, y - 0.44 * r, 0.24 * r, 0.22 * r, (0.55, 0.95), 0.1 * r, INK)
    canvas.disc(x, y + 0.5 * r, 0.27 * r, MOUTH, 0.34 * r)
    canvas.disc(x, y + 0.66 * r, 0.16 * r, (226, 104, 110), 0.14 * r)


def _terror(canvas: Canvas, x: float, y: float, r: float) -> None:
    _round_eyes(canvas, x, y, r, 0.27, 0.06)
    _brows(canvas, x, y, r, 0.72, 0.44)
    wave = [(-0.46, 0.62), (-0.3, 0.4), (-0.15, 0.52), (0.0, 0.4), (0.15, 0.52), (0.3, 0.4), (0.46, 0.62)]
    lower = [(0.3, 0.76), (0.15, 0.66), (0.0, 0.78), (-0.15, 0.66), (-0.3, 0.76)]
    canvas.shape([(x + a * r, y + b * r) for a, b in (*wave, *lower)], INK)


def _disgust(canvas: Canvas, x: float, y: float, r: float) -> None:
    for side in (-1, 1):
        canvas.stroke([(x + side * 0.58 * r, y - 0.26 * r), (x + side * 0.24 * r, y - 0.1 * r)], 0.1 * r, INK)
        canvas.stroke([(x + side * 0.58 * r, y + 0.04 * r), (x + side * 0.24 * r, y - 0.1 * r)], 0.1 * r, INK)
    _brows(canvas, x, y, r, 0.3, 0.46, 0.12)
    canvas.arc(x, y + 0.66 * r, 0.48 * r, 0.3 * r, (0.52, 0.98), 0.12 * r, MOUTH)
    canvas.disc(x, y + 0.66 * r, 0.22 * r, (236, 92, 124), 0.3 * r)
    canvas.stroke([(x, y + 0.46 * r), (x, y + 0.76 * r)], 0.05 * r, (176, 50, 84))


def draw_couple(canvas: Canvas, attributes: Attributes, rng: np.random.Generator) -> None:
    """Draws two people from the waist up; both have the same expression."""
    expression = str(attributes.expression)
    gap = {"hugging": 0.185, "holding hands": 0.24, "talking": 0.24, "quarrelling": 0.24, "turned away": 0.28}
    half = gap[str(attributes.pairing)]
    first = int(rng.integers(len(_CLOTHES)))
    looks = []
    for side in (-1, 1):
        skin = _pick(rng, _SKINS)
        skin = _mixed(skin, _FLUSH.get(expression, skin), _FLUSH_SHARE)
        clothes = _CLOTHES[(first + 1 + side) % len(_CLOTHES)]
        looks.append((0.5 + side * half, side, skin, clothes))
        _draw_partner(canvas, attributes, looks[-1], _pick(rng, _HAIR))
    _draw_pairing(canvas, str(attributes.pairing), looks)


_Look = tuple[float, int, Colour, Colour]
"""Centre, side (-1 left, 1 right), skin, clothes."""


def _draw_partner(canvas: Canvas, attributes: Attributes, look: _Look, hair: Colour) -> None:
    x, side, skin, clothes = look
    torso = [(x - 0.17, 0.7), (x - 0.11, 0.64), (x + 0.11, 0.64), (x + 0.17, 0.7), (x + 0.16, 1.1), (x - 0.16, 1.1)]
    canvas.shape(torso, clothes)
    canvas.box(x - 0.05, 0.55, x + 0.045, 0.66, _mixed(skin, (0, 0, 0), 0.12))
    r, y = 0.188, 0.45
    canvas.disc(x, y - 0.03, r * 1.08, hair)
    canvas.disc(x, y + 0.01, r, skin)
    # Faces look where their owners do: away from each other, or a little towards each other.
    turn = 0.32 if attributes.pairing == "turned away" else -0.1
    draw_face(canvas, str(attributes.expression), x + side * turn * r, y + 0.01, r * 0.98)
    if attributes.pairing == "turned away":
        canvas.disc(x - side * 0.75 * r, y - 0.02, 0.4 * r, hair, 0.75 * r)


def _draw_pairing(canvas: Canvas, pairing: str, looks: list[_Look]) -> None:
    (left, _, skin_left, clothes_left), (right, _, skin_right, clothes_right) = looks
    if pairing == "hugging":
        for x, side, skin, clothes in looks:
            sleeve = _mixed(clothes, (0, 0, 0), 0.18)
            reach = [
                (x + side * 0.13, 0.73),
                (x - side * 0.1, 0.84 + side * 0.05),
                (x - side * 0.38, 0.8 + side * 0.05),
            ]
            _draw_limb(canvas, reach, 0.085, sleeve, skin, 0.06)
        _draw_heart(canvas, 0.5, 0.13)
    elif pairing == "holding hands":
        canvas.stroke([(left + 0.1, 0.74), (0.5, 0.9)], 0.08, _mixed(clothes_left, (0, 0, 0), 0.18))
        canvas.stroke([(right - 0.1, 0.74), (0.5, 0.9)], 0.08, _mixed(clothes_right, (0, 0, 0), 0.18))
        canvas.disc(0.475, 0.9, 0.055, skin_left)
        canvas.disc(0.525, 0.9, 0.055, skin_right)
    elif pairing == "talking":
        canvas.disc(0.5, 0.12, 0.17, WHITE, 0.1)
        canvas.shape([(0.44, 0.18), (0.54, 0.19), (0.44, 0.3)], WHITE)
        for dot in (-0.07, 0.0, 0.07):
            canvas.disc(0.5 + dot, 0.12, 0.022, INK)
    elif pairing == "quarrelling":
        for x, side, skin, clothes in looks:
            arm = [(x - side * 0.06, 0.8), (0.5 + side * 0.1, 0.74)]
            _draw_limb(canvas, arm, 0.085, _mixed(clothes, (0, 0, 0), 0.18), skin, 0.055)
        star = [
            (0.5 + r * np.cos(a), 0.14 + r * np.sin(a))
            for a, r in zip(np.linspace(0, 2 * np.pi, 17)[:-1], [0.17, 0.08] * 8, strict=True)
        ]
        canvas.shape([(float(x), float(y)) for x, y in star], (240, 52, 36))
        canvas.disc(0.5, 0.14, 0.05, (255, 214, 64))


def _draw_heart(canvas: Canvas, x: float, y: float) -> None:
    red = (232, 48, 84)
    for side in (-1, 1):
        canvas.disc(x + side * 0.055, y, 0.065, red)
    canvas.shape([(x - 0.115, y + 0.025), (x + 0.115, y + 0.025), (x, y + 0.15)], red)
