"""From attributes to pixels: sky, place, weather, subject, colour grading, in this order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .attributes import Attributes
from .canvas import Canvas, Colour
from .figures import draw_couple, draw_person
from .things import draw_thing

HORIZON = 0.6

_SKIES: dict[str, tuple[Colour, Colour]] = {
    "dawn": ((122, 160, 220), (255, 190, 170)),
    "day": ((70, 150, 235), (185, 222, 250)),
    "dusk": ((98, 62, 130), (250, 140, 70)),
    "night": ((12, 16, 48), (38, 46, 96)),
}
_GREY_SKIES: dict[str, tuple[Colour, Colour]] = {
    "dawn": ((150, 150, 165), (225, 195, 190)),
    "day": ((140, 150, 162), (196, 204, 210)),
    "dusk": ((92, 78, 100), (190, 132, 104)),
    "night": ((24, 26, 38), (52, 56, 72)),
}
_LIGHT = {"dawn": 0.92, "day": 1.0, "dusk": 0.8, "night": 0.5}
"""How light the ground is."""


def draw_scene(attributes: Attributes, rng: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    """Returns the picture: (size, size, 3), uint8 RGB.

    Args:
        attributes: What is to be seen.
        rng: Decides what bears on nothing: position within limits, skin, hair, clothes, drops.
        size: Side in pixels.
    """
    canvas = Canvas(size)
    _draw_sky(canvas, attributes, rng)
    # Rain and snow fall behind the subject, which they would hide at 64 pixels, and outside of a room's window.
    if attributes.setting == "room":
        _draw_weather(canvas, attributes, rng)
        _draw_room(canvas, attributes)
    else:
        _PLACES[attributes.setting](canvas, _LIGHT[attributes.time])
        _draw_weather(canvas, attributes, rng)
    _draw_subject(canvas, attributes, rng)
    return _grade(canvas.pixels(), attributes)


def _dimmed(colour: Colour, light: float) -> Colour:
    return (
        round(colour[0] * light),
        round(colour[1] * light),
        round(min(255.0, colour[2] * (light + 0.15 * (1 - light)))),
    )


def _draw_sky(canvas: Canvas, attributes: Attributes, rng: np.random.Generator) -> None:
    clear = attributes.weather == "clear"
    top, bottom = (_SKIES if clear else _GREY_SKIES)[attributes.time]
    if attributes.weather == "storm":
        top, bottom = _dimmed(top, 0.45), _dimmed(bottom, 0.5)
    canvas.gradient(top, bottom, 1.0 if attributes.setting == "room" else HORIZON + 0.02)
    if attributes.time == "night":
        canvas.disc(0.14, 0.14, 0.085, (240, 238, 205) if clear else (150, 150, 150))
        canvas.disc(0.18, 0.12, 0.075, top)
        if clear:
            for x, y in rng.uniform((0.0, 0.0), (1.0, 0.5), (14, 2)):
                canvas.disc(float(x), float(y), 0.009, (255, 255, 235))
    elif clear:
        height = {"dawn": 0.42, "day": 0.14, "dusk": 0.46}[attributes.time]
        glow, core = (
            ((255, 222, 120), (255, 246, 190)) if attributes.time == "day" else ((255, 170, 90), (255, 226, 150))
        )
        canvas.disc(0.14, height, 0.12, glow)
        canvas.disc(0.14, height, 0.085, core)
    if not clear:
        _draw_clouds(canvas, attributes, rng)


def _draw_clouds(canvas: Canvas, attributes: Attributes, rng: np.random.Generator) -> None:
    light = _LIGHT[attributes.time]
    white = {"cloudy": (236, 238, 242), "rain": (122, 130, 145), "snow": (214, 220, 230), "storm": (66, 68, 84)}
    colour, shade = _dimmed(white[attributes.weather], light), _dimmed(white[attributes.weather], light * 0.86)
    shift = float(rng.uniform(-0.05, 0.05))
    for x, y in ((0.16, 0.17), (0.84, 0.13), (0.5, 0.04)):
        for dx, dy, r in ((-0.1, 0.03, 0.075), (0.1, 0.03, 0.08), (0.0, 0.0, 0.1)):
            canvas.disc(x + shift + dx, y + dy + 0.012, r, shade, r * 0.72)
            canvas.disc(x + shift + dx, y + dy, r, colour, r * 0.68)


def _draw_weather(canvas: Canvas, attributes: Attributes, rng: np.random.Generator) -> None:
    if attributes.weather in ("rain", "storm"):
        drops = 34 if attributes.weather == "rain" else 26
        for x, y in rng.uniform((0.0, 0.0), (1.1, 0.95), (drops, 2)):
            x0, y0 = float(x), float(y)
            canvas.stroke([(x0, y0), (x0 - 0.025, y0 + 0.08)], 0.01, (176, 204, 240))
    if attributes.weather == "storm":
        x = float(rng.uniform(0.04, 0.09))
        bolt = [(x + 0.09, 0.14), (x, 0.4), (x + 0.065, 0.38), (x + 0.01, 0.62), (x + 0.14, 0.32), (x + 0.075, 0.33)]
        canvas.shape([*bolt, (x + 0.15, 0.14)], (255, 240, 120))
    if attributes.weather == "snow":
        for x, y in rng.uniform((0.0, 0.0), (1.0, 1.0), (40, 2)):
            canvas.disc(float(x), float(y), 0.013, (250, 252, 255))


def _draw_meadow(canvas: Canvas, light: float) -> None:
    canvas.disc(0.2, 0.75, 0.5, _dimmed((106, 178, 84), light), 0.2)
    canvas.disc(0.85, 0.76, 0.5, _dimmed((92, 166, 76), light), 0.18)
    canvas.box(0, 0.68, 1, 1, _dimmed((124, 194, 88), light))


def _draw_beach(canvas: Canvas, light: float) -> None:
    canvas.box(0, HORIZON - 0.04, 1, 0.8, _dimmed((44, 132, 190), light))
    for x, y in ((0.2, 0.66), (0.75, 0.7), (0.4, 0.74)):
        canvas.stroke([(x - 0.1, y), (x + 0.1, y)], 0.012, _dimmed((200, 230, 245), light))
    canvas.disc(0.5, 0.95, 0.8, _dimmed((236, 212, 150), light), 0.2)


def _draw_city(canvas: Canvas, light: float) -> None:
    windows = (250, 226, 130) if light < 0.85 else _dimmed((178, 206, 226), light)
    for left, right, top, grey in (
        (0.0, 0.17, 0.3, 128),
        (0.17, 0.3, 0.42, 104),
        (0.7, 0.83, 0.36, 112),
        (0.83, 1.0, 0.24, 136),
    ):
        canvas.box(left, top, right, 0.82, _dimmed((grey, grey - 4, grey + 8), light))
        for row in range(4):
            for column in (0.3, 0.7):
                x, y = left + (right - left) * column, top + 0.06 + 0.1 * row
                canvas.box(x - 0.018, y - 0.022, x + 0.018, y + 0.022, windows)
    canvas.box(0.3, 0.5, 0.7, 0.82, _dimmed((150, 150, 160), light))
    canvas.box(0, 0.8, 1, 1, _dimmed((92, 92, 98), light))


def _draw_forest(canvas: Canvas, light: float) -> None:
    canvas.box(0, HORIZON - 0.02, 1, 1, _dimmed((66, 104, 58), light))
    for x, top in ((0.08, 0.2), (0.92, 0.16), (0.26, 0.34), (0.74, 0.32)):
        canvas.box(x - 0.02, 0.5, x + 0.02, 0.75, _dimmed((92, 66, 44), light))
        for step in range(3):
            y, half = top + 0.12 * step, 0.07 + 0.025 * step
            canvas.shape([(x, y), (x - half, y + 0.17), (x + half, y + 0.17)], _dimmed((34, 96 + 8 * step, 58), light))


_PLACES = {"meadow": _draw_meadow, "beach": _draw_beach, "city": _draw_city, "forest": _draw_forest}


def _draw_room(canvas: Canvas, attributes: Attributes) -> None:
    """Walls around a window at the upper left, through which the sky already drawn is seen."""
    light = 0.62 if attributes.time == "night" else 1.0
    wall, frame = _dimmed((222, 204, 178), light), _dimmed((246, 242, 234), light)
    left, top, right, bottom = 0.03, 0.03, 0.35, 0.5
    canvas.box(0, 0, left, 1, wall)
    canvas.box(right, 0, 1, 1, wall)
    canvas.box(0, 0, 1, top, wall)
    canvas.box(0, bottom, 1, 1, wall)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    canvas.stroke(corners, 0.025, frame)
    canvas.stroke([(left, 0.27), (right, 0.27)], 0.016, frame)
    canvas.box(0, 0.82, 1, 1, _dimmed((160, 112, 78), light))
    canvas.box(0.76, 0.12, 0.94, 0.3, _dimmed((150, 120, 96), light))
    canvas.box(0.785, 0.145, 0.915, 0.275, _dimmed((120, 160, 170), light))


def _draw_subject(canvas: Canvas, attributes: Attributes, rng: np.random.Generator) -> None:
    dx, dy = (float(v) for v in rng.uniform((-0.02, -0.01), (0.02, 0.01)))
    scale, mirrored = float(rng.uniform(0.96, 1.03)), bool(rng.random() < 0.5)
    if attributes.subject == "person":
        canvas.place(dx, dy, scale, mirrored)
        draw_person(canvas, attributes, rng)
    elif attributes.subject == "couple":
        canvas.place(dx, dy, scale, mirrored)
        draw_couple(canvas, attributes, rng)
    elif attributes.subject != "view":
        if attributes.distance == "far":
            canvas.place(dx * 3, dy - 0.1, scale * 0.5, mirrored)
        else:
            canvas.place(dx, dy, scale, mirrored)
        draw_thing(canvas, attributes.subject, rng)


def _grade(pixels: npt.NDArray[np.float32], attributes: Attributes) -> npt.NDArray[np.uint8]:
    """Returns the pixels with the palette's cast, saturation and brightness, as uint8."""
    # Luma of ITU-R BT.601, summed in a fixed order, so that every machine draws the same picture.
    grey = pixels[..., 0] * np.float32(0.299) + pixels[..., 1] * np.float32(0.587) + pixels[..., 2] * np.float32(0.114)
    saturation = {-1: 0.4, 0: 0.95, 1: 1.6}[attributes.saturation]
    graded = grey[..., None] + (pixels - grey[..., None]) * np.float32(saturation)
    cast = {"none": (1.0, 1.0, 1.0), "warm": (1.06, 1.0, 0.9), "cool": (0.92, 0.99, 1.08)}[attributes.tint]
    graded *= np.asarray(cast, dtype=np.float32)
    if attributes.brightness < 0:
        graded *= np.float32(0.64)
    elif attributes.brightness > 0:
        graded = 255 - (255 - graded) * np.float32(0.66)
    rounded: npt.NDArray[np.uint8] = np.clip(graded + np.float32(0.5), 0, 255).astype(np.uint8)
    return rounded
