"""A canvas in unit coordinates, drawn large and reduced: anti-aliased shapes from Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

DRAWN_SIDE = 192
"""Least side of the large drawing, in pixels."""


class Canvas:
    """A square picture. Coordinates run from 0 to 1, x to the right, y downwards.

    `place` moves what is drawn next: scaled about (0.5, 1), the middle of the lower edge, mirrored, then shifted.
    """

    def __init__(self, size: int) -> None:
        self._factor = max(2, math.ceil(DRAWN_SIDE / size))
        self._side = size * self._factor
        self._image = Image.new("RGB", (self._side, self._side))
        self._draw = ImageDraw.Draw(self._image)
        self.place()

    def place(self, dx: float = 0.0, dy: float = 0.0, scale: float = 1.0, mirrored: bool = False) -> None:
        """Sets where shapes drawn from now on land; no arguments: where their coordinates say."""
        self._dx, self._dy, self._scale, self._mirrored = dx, dy, scale, mirrored

    def _pixel(self, x: float, y: float) -> Point:
        x = 1 - x if self._mirrored else x
        x, y = 0.5 + (x - 0.5) * self._scale + self._dx, 1 + (y - 1) * self._scale + self._dy
        return x * self._side, y * self._side

    def disc(self, x: float, y: float, rx: float, colour: Colour, ry: float | None = None) -> None:
        """Fills the ellipse with centre (x, y), half axes rx and ry (rx where None)."""
        cx, cy = self._pixel(x, y)
        ax, ay = rx * self._scale * self._side, (rx if ry is None else ry) * self._scale * self._side
        self._draw.ellipse((cx - ax, cy - ay, cx + ax, cy + ay), fill=colour)

    def shape(self, points: Sequence[Point], colour: Colour) -> None:
        """Fills the polygon through ``points``."""
        self._draw.polygon([self._pixel(x, y) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fills the rectangle between two corners."""
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draws a line through ``points``, ``width`` wide, with round ends and joints."""
        pixels = [self._pixel(x, y) for x, y in points]
        thick = max(1, round(width * self._scale * self._side))
        self._draw.line(pixels, fill=colour, width=thick)
        if thick > 2:
            half = thick / 2 - 0.5
            for x, y in pixels:
                self._draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)

    def arc(self, x: float, y: float, rx: float, ry: float, span: Point, width: float, colour: Colour) -> None:
        """Draws part of an ellipse; ``span`` is (from, to) in turns, 0 to the right, 0.25 down."""
        self.stroke(arc_points(x, y, rx, ry, span), width, colour)

    def gradient(self, top: Colour, bottom: Colour, height: float) -> None:
        """Fills the upper ``height`` of the picture with a vertical gradient, whatever `place` says."""
        strip = Image.new("RGB", (1, 2))
        strip.putpixel((0, 0), top)
        strip.putpixel((0, 1), bottom)
        rows = round(height * self._side)
        # The outer quarters of a two-pixel strip are flat when stretched: only the blend between is wanted.
        box = (0.0, 0.5, 1.0, 1.5)
        self._image.paste(strip.resize((self._side, rows), Image.Resampling.BILINEAR, box=box), (0, 0))

    def pixels(self) -> npt.NDArray[np.float32]:
        """Returns the picture, reduced to its size: (size, size, 3), in [0, 255]."""
        return np.asarray(self._image.reduce(self._factor), dtype=np.float32)


def arc_points(x: float, y: float, rx: float, ry: float, span: Point) -> list[Point]:
    """Returns points along part of an ellipse; ``span`` as for `Canvas.arc`."""
    steps = 10
    angles = [2 * math.pi * (span[0] + (span[1] - span[0]) * step / steps) for step in range(steps + 1)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]
