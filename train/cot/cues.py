"""What can be measured of a photograph without any model: colour, light, detail, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from .colours import COLOURS, Floats32, name_colours, to_oklch

SIDE = 96
"""Longest side, in pixels, of the reduced copy on which everything is measured; smaller images are kept as they are."""

STRONG_CHROMA = 0.1
"""Chroma from which even a small patch is seen at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cues:
    """Measured cues of one image; lightness and chroma are OKLab's (lightness 0..1, chroma 0..0.32 in sRGB)."""

    lightness: float
    """Mean lightness."""
    contrast: float
    """Standard deviation of the lightness, 0..0.5."""
    chroma: float
    """Mean chroma, which is 0 for grey."""
    warmth: float
    """Chroma of the warm pixels (red to yellow) less that of the cool ones (green-blue to violet), as a share of all
    chroma, -1..1; 0 without any."""
    detail: float
    """Mean step of lightness between neighbouring pixels, in either direction."""
    shares: dict[str, float]
    """Share of the pixels that bear each colour name, 0..1."""
    vivid: dict[str, float]
    """Share of the pixels that bear each colour name and have a chroma of at least `STRONG_CHROMA`."""
    top: dict[str, float]
    """The same in the upper third."""
    bottom: dict[str, float]
    """The same in the lower third."""
    top_lightness: float
    """Mean lightness of the upper third."""
    bottom_lightness: float
    """Mean lightness of the lower third."""
    centre_lightness: float
    """Mean lightness of the middle: half the width, half the height."""
    border_lightness: float
    """Mean lightness of what lies around the middle."""
    detail_in_centre: float
    """Share of all detail that lies in the middle, 0..1; a quarter where it is spread evenly."""
    detail_x: float
    """Centre of mass of the detail from left, 0, to right, 1."""
    detail_y: float
    """Centre of mass of the detail from top, 0, to bottom, 1."""
    symmetry: float
    """Correlation of the lightness with its left-right mirror image, -1..1; 1 for an image without contrast."""


def measure_cues(pixels: npt.NDArray[np.uint8]) -> Cues:
    """Returns the cues of uint8 (H, W, 3) sRGB pixels, measured on a copy whose longest side is at most `SIDE`."""
    light, chroma, hue = to_oklch(_reduced(pixels))
    names = name_colours(light, chroma, hue)
    detail = _detail(light)
    height, width = light.shape
    third, middle = (
        max(height // 3, 1),
        (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)),
    )
    around = np.ones(light.shape, bool)
    around[middle] = False
    total = float(detail.sum())
    rows, columns = detail.sum(axis=1), detail.sum(axis=0)
    return Cues(
        lightness=float(light.mean()),
        contrast=float(light.std()),
        chroma=float(chroma.mean()),
        warmth=_warmth(chroma, hue),
        detail=total / detail.size,
        shares=_shares(names),
        vivid=_shares(names[chroma >= STRONG_CHROMA], names.size),
        top=_shares(names[:third]),
        bottom=_shares(names[-third:]),
        top_lightness=float(light[:third].mean()),
        bottom_lightness=float(light[-third:].mean()),
        centre_lightness=float(light[middle].mean()),
        border_lightness=float(light[around].mean()) if around.any() else float(light.mean()),
        detail_in_centre=float(detail[middle].sum()) / total if total else 0.25,
        detail_x=_centre_of_mass(columns),
        detail_y=_centre_of_mass(rows),
        symmetry=_symmetry(light),
    )


def _reduced(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    scale = SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def _detail(light: Floats32) -> Floats32:
    """Returns float32 (H, W): at each pixel the mean of the steps to the next one on the right and the one below."""
    detail = np.zeros_like(light)
    detail[:, :-1] += np.abs(np.diff(light, axis=1)) / 2
    detail[:-1] += np.abs(np.diff(light, axis=0)) / 2
    return detail


def _warmth(chroma: Floats32, hue: Floats32) -> float:
    warm, cool = (hue < 110) | (hue >= 345), (hue >= 160) & (hue < 310)
    total = float(chroma.sum())
    return float(chroma[warm].sum() - chroma[cool].sum()) / total if total else 0.0


def _shares(names: npt.NDArray[np.int8], total: int | None = None) -> dict[str, float]:
    counts = np.bincount(names.ravel(), minlength=len(COLOURS))
    return {
        colour: float(count) / (total or names.size) for colour, count in zip(COLOURS, counts, strict=True) if count
    }


def _centre_of_mass(weights: Floats32) -> float:
    total = float(weights.sum())
    if not total:
        return 0.5
    places = (np.arange(len(weights)) + 0.5) / len(weights)
    return float(weights @ places) / total


def _symmetry(light: Floats32) -> float:
    centred = light - light.mean()
    power = float((centred * centred).sum())
    return float((centred * centred[:, ::-1]).sum()) / power if power > 1e-9 else 1.0
