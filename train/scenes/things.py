"""Animals and objects, each filling the lower middle of the frame."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .canvas import Canvas, Colour, Point, arc_points

INK: Colour = (36, 30, 34)
WHITE: Colour = (252, 252, 250)

_BRIGHT: tuple[Colour, ...] = ((236, 64, 72), (250, 196, 48), (64, 148, 232), (96, 190, 92), (196, 96, 208))


def draw_thing(canvas: Canvas, name: str, rng: np.random.Generator) -> None:
    """Draws the animal or object called ``name``."""
    _DRAWERS[name](canvas, rng)


def _star(x: float, y: float, outer: float, inner: float, spikes: int) -> list[Point]:
    steps = 2 * spikes
    return [
        (x + r * math.cos(math.pi * i / spikes), y + r * math.sin(math.pi * i / spikes))
        for i, r in enumerate([outer, inner] * (steps // 2))
    ]


def _dog(canvas: Canvas, rng: np.random.Generator) -> None:
    coat: Colour = ((206, 150, 92), (170, 116, 72), (226, 196, 150))[int(rng.integers(3))]
    ear: Colour = (112, 72, 46)
    canvas.disc(0.5, 0.98, 0.26, coat, 0.28)
    canvas.disc(0.5, 0.98, 0.13, (250, 240, 224), 0.2)
    canvas.stroke([(0.74, 0.95), (0.86, 0.82), (0.88, 0.7)], 0.07, coat)
    canvas.disc(0.5, 0.5, 0.25, coat, 0.235)
    for side in (-1, 1):
        canvas.disc(0.5 + side * 0.25, 0.52, 0.09, ear, 0.19)
        canvas.disc(0.5 + side * 0.1, 0.45, 0.036, INK, 0.042)
    canvas.disc(0.5, 0.6, 0.135, (250, 240, 224), 0.11)
    canvas.disc(0.5, 0.55, 0.05, INK, 0.038)
    canvas.arc(0.5, 0.6, 0.08, 0.06, (0.05, 0.45), 0.02, INK)
    canvas.disc(0.5, 0.7, 0.05, (240, 100, 120), 0.07)


def _cat(canvas: Canvas, rng: np.random.Generator) -> None:
    coat: Colour = ((240, 156, 74), (150, 150, 158), (238, 224, 200))[int(rng.integers(3))]
    stripe: Colour = (max(0, coat[0] - 60), max(0, coat[1] - 60), max(0, coat[2] - 50))
    canvas.disc(0.5, 0.98, 0.24, coat, 0.26)
    canvas.stroke([(0.7, 0.96), (0.86, 0.88), (0.84, 0.68), (0.9, 0.6)], 0.055, coat)
    for side in (-1, 1):
        canvas.shape([(0.5 + side * 0.06, 0.36), (0.5 + side * 0.24, 0.18), (0.5 + side * 0.25, 0.48)], coat)
        canvas.shape([(0.5 + side * 0.13, 0.35), (0.5 + side * 0.21, 0.25), (0.5 + side * 0.22, 0.4)], (246, 170, 170))
    canvas.disc(0.5, 0.52, 0.255, coat, 0.215)
    for side in (-1, 1):
        canvas.arc(0.5 + side * 0.11, 0.5, 0.05, 0.045, (0.5, 1.0), 0.026, INK)
        for tilt in (-0.03, 0.03):
            canvas.stroke([(0.5 + side * 0.12, 0.6 + tilt / 2), (0.5 + side * 0.32, 0.59 + tilt * 1.6)], 0.01, WHITE)
        canvas.arc(0.5 + side * 0.035, 0.61, 0.035, 0.035, (0.0, 0.5), 0.018, INK)
    canvas.disc(0.5, 0.575, 0.032, (236, 110, 124), 0.024)
    for x in (-0.06, 0.0, 0.06):
        canvas.stroke([(0.5 + x, 0.33), (0.5 + x, 0.4)], 0.025, stripe)


def _butterfly(canvas: Canvas, rng: np.random.Generator) -> None:
    wing = _BRIGHT[int(rng.integers(len(_BRIGHT)))]
    spot = _BRIGHT[int(rng.integers(len(_BRIGHT)))]
    canvas.stroke([(0.5, 1.0), (0.5, 0.72)], 0.03, (70, 140, 70))
    for side in (-1, 1):
        canvas.disc(0.5 + side * 0.2, 0.42, 0.2, INK, 0.2)
        canvas.disc(0.5 + side * 0.2, 0.42, 0.18, wing, 0.18)
        canvas.disc(0.5 + side * 0.15, 0.7, 0.15, INK, 0.15)
        canvas.disc(0.5 + side * 0.15, 0.7, 0.13, wing, 0.13)
        canvas.disc(0.5 + side * 0.24, 0.4, 0.08, WHITE)
        canvas.disc(0.5 + side * 0.24, 0.4, 0.05, spot)
        canvas.disc(0.5 + side * 0.17, 0.72, 0.05, spot)
        canvas.stroke([(0.5, 0.34), (0.5 + side * 0.09, 0.2)], 0.016, INK)
    canvas.stroke([(0.5, 0.36), (0.5, 0.82)], 0.055, INK)


def _snake(canvas: Canvas, rng: np.random.Generator) -> None:
    skin: Colour = ((62, 112, 48), (92, 84, 40), (48, 92, 84))[int(rng.integers(3))]
    band: Colour = (220, 196, 60)
    for y, half in ((0.94, 0.36), (0.82, 0.28)):
        canvas.disc(0.5, y, half, INK, 0.11)
        canvas.disc(0.5, y, half - 0.015, skin, 0.095)
        for step in (-0.6, -0.2, 0.2, 0.6):
            canvas.disc(0.5 + step * half, y + 0.03, 0.045, band, 0.035)
    neck = [(0.56, 0.8), (0.68, 0.66), (0.56, 0.52), (0.5, 0.4)]
    canvas.stroke(neck, 0.16, INK)
    canvas.stroke(neck, 0.13, skin)
    canvas.disc(0.48, 0.34, 0.19, INK, 0.15)
    canvas.disc(0.48, 0.34, 0.175, skin, 0.135)
    for side in (-1, 1):
        canvas.disc(0.48 + side * 0.085, 0.29, 0.048, (255, 222, 40), 0.05)
        canvas.disc(0.48 + side * 0.085, 0.29, 0.014, INK, 0.045)
    canvas.disc(0.48, 0.42, 0.1, (110, 16, 28), 0.05)
    for side in (-1, 1):
        x = 0.48 + side * 0.06
        canvas.shape([(x - 0.018, 0.385), (x + 0.018, 0.385), (x, 0.47)], WHITE)
    canvas.stroke([(0.48, 0.44), (0.48, 0.56)], 0.022, (224, 24, 48))
    canvas.stroke([(0.44, 0.62), (0.48, 0.56), (0.52, 0.62)], 0.022, (224, 24, 48))


def _spider(canvas: Canvas, rng: np.random.Generator) -> None:
    mark: Colour = ((200, 30, 36), (170, 120, 30))[int(rng.integers(2))]
    black: Colour = (26, 22, 26)
    for side in (-1, 1):
        for knee, foot in (
            ((0.26, 0.34), (0.42, 0.2)),
            ((0.32, 0.5), (0.47, 0.44)),
            ((0.32, 0.62), (0.46, 0.78)),
            ((0.25, 0.74), (0.36, 0.97)),
        ):
            canvas.stroke([(0.5, 0.58), (0.5 + side * knee[0], knee[1]), (0.5 + side * foot[0], foot[1])], 0.036, black)
    canvas.disc(0.5, 0.7, 0.2, black, 0.21)
    canvas.disc(0.5, 0.46, 0.125, black, 0.115)
    canvas.shape([(0.44, 0.62), (0.56, 0.62), (0.46, 0.8), (0.54, 0.8)], mark)
    for x, y, r in ((-0.055, 0.42, 0.034), (0.055, 0.42, 0.034), (-0.022, 0.365, 0.02), (0.022, 0.365, 0.02)):
        canvas.disc(0.5 + x, y, r, (255, 60, 48))
    for side in (-1, 1):
        canvas.shape(
            [(0.5 + side * 0.02, 0.52), (0.5 + side * 0.075, 0.52), (0.5 + side * 0.035, 0.61)], (214, 206, 196)
        )


def _wolf(canvas: Canvas, rng: np.random.Generator) -> None:
    coat: Colour = ((92, 96, 106), (74, 70, 74), (116, 104, 96))[int(rng.integers(3))]
    dark: Colour = (46, 46, 54)
    canvas.shape([(0.2, 1.1), (0.26, 0.72), (0.5, 0.62), (0.74, 0.72), (0.8, 1.1)], dark)
    for side in (-1, 1):
        canvas.shape([(0.5 + side * 0.05, 0.36), (0.5 + side * 0.24, 0.1), (0.5 + side * 0.28, 0.46)], coat)
        canvas.shape([(0.5 + side * 0.13, 0.34), (0.5 + side * 0.22, 0.19), (0.5 + side * 0.24, 0.4)], dark)
    head = [(0.3, 0.34), (0.5, 0.28), (0.7, 0.34), (0.82, 0.58), (0.64, 0.68), (0.6, 0.9), (0.4, 0.9), (0.36, 0.68)]
    canvas.shape([*head, (0.18, 0.58)], coat)
    for side in (-1, 1):
        eye = [(0.5 + side * 0.06, 0.53), (0.5 + side * 0.2, 0.43), (0.5 + side * 0.2, 0.51)]
        canvas.shape(eye, (255, 214, 40))
        canvas.disc(0.5 + side * 0.145, 0.485, 0.018, INK)
        canvas.stroke([(0.5 + side * 0.05, 0.49), (0.5 + side * 0.21, 0.4)], 0.03, dark)
    canvas.disc(0.5, 0.61, 0.065, INK, 0.045)
    canvas.shape([(0.36, 0.7), (0.64, 0.7), (0.59, 0.88), (0.41, 0.88)], (140, 20, 34))
    for x in (0.4, 0.47, 0.53, 0.6):
        canvas.shape([(x - 0.033, 0.7), (x + 0.033, 0.7), (x, 0.78)], WHITE)
        canvas.shape([(x * 0.8 + 0.1 - 0.026, 0.88), (x * 0.8 + 0.1 + 0.026, 0.88), (x * 0.8 + 0.1, 0.82)], WHITE)


def _flowers(canvas: Canvas, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(_BRIGHT)))
    for i, (x, y) in enumerate(((0.24, 0.5), (0.76, 0.48), (0.5, 0.34), (0.38, 0.62), (0.64, 0.64))):
        canvas.stroke([(x, y), (0.5 + (x - 0.5) * 0.3, 1.0)], 0.025, (60, 140, 66))
        petal = _BRIGHT[(first + i) % len(_BRIGHT)]
        for px, py in _star(x, y, 0.095, 0.095, 3):
            canvas.disc(px, py, 0.062, petal)
        canvas.disc(x, y, 0.055, (255, 232, 110))
    canvas.shape([(0.3, 0.8), (0.7, 0.8), (0.6, 1.1), (0.4, 1.1)], (238, 232, 240))


def _balloons(canvas: Canvas, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(_BRIGHT)))
    for i, (x, y) in enumerate(((0.5, 0.24), (0.26, 0.36), (0.74, 0.36), (0.42, 0.5), (0.62, 0.52))):
        colour = _BRIGHT[(first + i) % len(_BRIGHT)]
        canvas.stroke([(x, y + 0.16), (0.5, 0.98)], 0.012, (90, 90, 96))
        canvas.disc(x, y, 0.14, colour, 0.17)
        canvas.disc(x - 0.045, y - 0.06, 0.032, WHITE, 0.045)


def _gift(canvas: Canvas, rng: np.random.Generator) -> None:
    box = _BRIGHT[int(rng.integers(len(_BRIGHT)))]
    shade: Colour = (box[0] * 3 // 4, box[1] * 3 // 4, box[2] * 3 // 4)
    for turn in range(7):
        angle = math.pi * (1.08 + 0.14 * turn)
        tip = (0.5 + 0.46 * math.cos(angle), 0.6 + 0.46 * math.sin(angle))
        canvas.stroke([(0.5, 0.6), tip], 0.022, (255, 224, 90))
        canvas.shape(_star(*tip, 0.075, 0.032, 5), _BRIGHT[turn % len(_BRIGHT)])
    canvas.shape(_star(0.5, 0.32, 0.17, 0.075, 5), (255, 236, 80))
    canvas.shape([(0.16, 0.46), (0.3, 0.36), (0.36, 0.58), (0.2, 0.66)], shade)
    canvas.box(0.22, 0.62, 0.78, 1.0, box)
    canvas.box(0.22, 0.62, 0.78, 0.68, shade)
    canvas.box(0.45, 0.62, 0.55, 1.0, WHITE)


def _fireworks(canvas: Canvas, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(_BRIGHT)))
    canvas.disc(0.5, 0.4, 0.46, (28, 26, 62), 0.38)
    for i, (x, y, r) in enumerate(((0.5, 0.36, 0.28), (0.24, 0.52, 0.18), (0.77, 0.54, 0.18))):
        colour = _BRIGHT[(first + i) % len(_BRIGHT)]
        for px, py in _star(x, y, r, r * 0.75, 6):
            canvas.stroke([(x, y), (px, py)], 0.02, colour)
            canvas.disc(px, py, 0.03, (255, 244, 190))
        canvas.disc(x, y, 0.05, WHITE)
    canvas.stroke([(0.5, 0.98), (0.5, 0.5)], 0.02, (255, 210, 120))


def _cup(canvas: Canvas, rng: np.random.Generator) -> None:
    glaze: Colour = ((232, 232, 228), (150, 170, 190), (196, 176, 150))[int(rng.integers(3))]
    canvas.box(0.05, 0.88, 0.95, 1.1, (146, 110, 78))
    canvas.arc(0.7, 0.66, 0.14, 0.12, (-0.25, 0.25), 0.05, glaze)
    canvas.shape([(0.26, 0.48), (0.72, 0.48), (0.66, 0.9), (0.32, 0.9)], glaze)
    canvas.disc(0.49, 0.48, 0.23, glaze, 0.06)
    canvas.disc(0.49, 0.48, 0.2, (84, 54, 40), 0.042)


def _chair(canvas: Canvas, rng: np.random.Generator) -> None:
    wood: Colour = ((164, 112, 66), (120, 84, 56), (190, 150, 100))[int(rng.integers(3))]
    shade: Colour = (wood[0] * 3 // 4, wood[1] * 3 // 4, wood[2] * 3 // 4)
    for x in (0.3, 0.7):
        canvas.stroke([(x, 0.3), (x, 0.98)], 0.06, shade)
        canvas.stroke([(x - 0.04, 0.72), (x - 0.04, 1.0)], 0.05, wood)
    for y in (0.34, 0.45, 0.56):
        canvas.stroke([(0.3, y), (0.7, y)], 0.055, wood)
    canvas.shape([(0.3, 0.66), (0.72, 0.66), (0.76, 0.76), (0.24, 0.76)], wood)


def _grave(canvas: Canvas, rng: np.random.Generator) -> None:
    stone: Colour = ((128, 128, 134), (108, 112, 116), (142, 136, 130))[int(rng.integers(3))]
    shade: Colour = (stone[0] * 3 // 5, stone[1] * 3 // 5, stone[2] * 3 // 5)
    canvas.disc(0.5, 1.0, 0.42, (86, 66, 50), 0.1)
    for inset, colour in ((0.0, shade), (0.025, stone)):
        canvas.disc(0.5, 0.45, 0.25 - inset, colour)
        canvas.box(0.25 + inset, 0.45, 0.75 - inset, 0.95, colour)
    canvas.box(0.47, 0.32, 0.53, 0.7, shade)
    canvas.box(0.38, 0.42, 0.62, 0.48, shade)
    canvas.stroke([(0.3, 0.96), (0.2, 0.86), (0.16, 0.9)], 0.02, (70, 90, 50))
    canvas.disc(0.15, 0.92, 0.04, (110, 50, 60))


def _wreck(canvas: Canvas, rng: np.random.Generator) -> None:
    paint = _BRIGHT[int(rng.integers(3))]
    dull: Colour = tuple((c + 90) // 2 for c in paint)  # type: ignore[assignment]
    for x, y, r in ((0.2, 0.42, 0.12), (0.14, 0.28, 0.1), (0.24, 0.16, 0.09)):
        canvas.disc(x, y, r, (64, 62, 66))
    canvas.shape(
        [
            (0.06, 0.72),
            (0.16, 0.6),
            (0.24, 0.66),
            (0.36, 0.46),
            (0.72, 0.44),
            (0.82, 0.64),
            (0.97, 0.68),
            (0.96, 0.9),
            (0.1, 0.9),
        ],
        dull,
    )
    canvas.shape([(0.38, 0.62), (0.44, 0.5), (0.56, 0.5), (0.56, 0.63)], (176, 196, 206))
    canvas.shape([(0.6, 0.5), (0.69, 0.49), (0.76, 0.64), (0.6, 0.63)], (176, 196, 206))
    canvas.stroke([(0.42, 0.52), (0.48, 0.57), (0.45, 0.62)], 0.016, INK)
    canvas.stroke([(0.62, 0.5), (0.67, 0.57), (0.63, 0.62)], 0.016, INK)
    canvas.stroke([(0.1, 0.7), (0.2, 0.76), (0.15, 0.84), (0.26, 0.86)], 0.022, INK)
    for x, y in ((0.3, 0.9), (0.78, 0.9)):
        canvas.disc(x, y, 0.1, INK)
        canvas.disc(x, y, 0.045, (150, 150, 156))
    for x in (0.06, 0.5, 0.62):
        canvas.shape([(x, 0.98), (x + 0.04, 0.93), (x + 0.06, 0.99)], (200, 220, 230))


def _fire(canvas: Canvas, rng: np.random.Generator) -> None:
    lean = float(rng.uniform(-0.04, 0.04))
    for x, y, r in ((0.34, 0.16, 0.12), (0.58, 0.1, 0.14), (0.7, 0.22, 0.1)):
        canvas.disc(x, y, r, (58, 54, 58))
    flames: tuple[tuple[float, Colour], ...] = ((1.0, (226, 48, 24)), (0.72, (250, 138, 30)), (0.42, (255, 226, 90)))
    outline = [(-0.4, 0.0), (-0.42, -0.34), (-0.28, -0.22), (-0.24, -0.58), (-0.1, -0.4), (0.02, -0.8), (0.14, -0.42)]
    outline += [(0.26, -0.6), (0.3, -0.24), (0.42, -0.36), (0.4, 0.0)]
    for share, colour in flames:
        canvas.shape([(0.5 + (x + lean * -y) * share, 1.0 + y * share) for x, y in outline], colour)


def _rotten_food(canvas: Canvas, rng: np.random.Generator) -> None:
    flesh: Colour = ((146, 140, 52), (132, 116, 56), (116, 132, 58))[int(rng.integers(3))]
    canvas.disc(0.5, 0.95, 0.42, (222, 222, 216), 0.1)
    canvas.disc(0.5, 0.94, 0.36, (148, 172, 60), 0.07)
    canvas.disc(0.4, 0.7, 0.23, flesh, 0.24)
    canvas.disc(0.62, 0.72, 0.22, flesh, 0.22)
    canvas.stroke([(0.5, 0.52), (0.55, 0.4)], 0.03, (84, 60, 40))
    for x, y, r in ((0.32, 0.64, 0.07), (0.7, 0.64, 0.06), (0.44, 0.84, 0.06)):
        canvas.disc(x, y, r, (74, 56, 36))
        canvas.disc(x + 0.01, y - 0.01, r * 0.55, (172, 200, 150))
    canvas.stroke(arc_points(0.58, 0.74, 0.09, 0.07, (0.5, 1.0)), 0.05, (240, 150, 150))
    canvas.disc(0.67, 0.74, 0.03, (220, 110, 116))
    _flies(canvas, rng, 0.32)
    _stench(canvas, 0.42)


def _rubbish(canvas: Canvas, rng: np.random.Generator) -> None:
    bag: Colour = ((56, 58, 66), (52, 70, 58), (78, 62, 54))[int(rng.integers(3))]
    canvas.disc(0.5, 0.97, 0.46, (126, 140, 44), 0.08)
    canvas.disc(0.36, 0.8, 0.25, bag, 0.2)
    canvas.disc(0.64, 0.76, 0.26, bag, 0.24)
    canvas.shape([(0.56, 0.56), (0.62, 0.42), (0.68, 0.5), (0.76, 0.44), (0.72, 0.58)], bag)
    canvas.stroke([(0.2, 0.94), (0.34, 0.9)], 0.03, (232, 232, 222))
    for x in (0.22, 0.26, 0.3):
        canvas.stroke([(x, 0.88), (x + 0.01, 0.96)], 0.014, (232, 232, 222))
    canvas.disc(0.8, 0.92, 0.07, (168, 120, 40), 0.06)
    canvas.disc(0.44, 0.74, 0.06, (140, 170, 50), 0.09)
    _flies(canvas, rng, 0.34)
    _stench(canvas, 0.46)


def _flies(canvas: Canvas, rng: np.random.Generator, top: float) -> None:
    for x0 in (0.2, 0.4, 0.62, 0.82):
        x, y = x0 + float(rng.uniform(-0.04, 0.04)), top + float(rng.uniform(-0.1, 0.1))
        for side in (-1, 1):
            canvas.disc(x + side * 0.032, y - 0.024, 0.026, (226, 230, 236), 0.016)
        canvas.disc(x, y, 0.028, INK, 0.024)


def _stench(canvas: Canvas, bottom: float) -> None:
    """Green waves that rise: what smells bad in a drawing."""
    for x in (0.3, 0.52, 0.74):
        wave = [(x + (0.03 if i % 2 else -0.03), bottom - 0.09 * i) for i in range(4)]
        canvas.stroke(wave, 0.026, (150, 190, 52))


_DRAWERS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "dog": _dog,
    "cat": _cat,
    "butterfly": _butterfly,
    "snake": _snake,
    "spider": _spider,
    "wolf": _wolf,
    "flowers": _flowers,
    "balloons": _balloons,
    "gift": _gift,
    "fireworks": _fireworks,
    "cup": _cup,
    "chair": _chair,
    "grave": _grave,
    "wreck": _wreck,
    "fire": _fire,
    "rotten food": _rotten_food,
    "rubbish": _rubbish,
}
