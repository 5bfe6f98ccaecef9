"""Colours as people name them: twelve words, cut out of a perceptual colour space."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats32 = npt.NDArray[np.float32]

COLOURS = (
    "black", "white", "grey", "red", "orange", "brown", "beige", "yellow", "green", "blue", "purple", "pink",
)  # fmt: skip
"""The eleven basic colour terms of English (Berlin & Kay 1969), and beige, which photographs are full of."""

_RGB_TO_LMS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]], np.float32,
)  # fmt: skip
_LMS_TO_LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]], np.float32,
)  # fmt: skip

_BLACK, _WHITE = 0.21, 0.88
"""Lightness below which any colour is black, and above which a colourless one is white."""
_GREY = 0.027
"""Chroma below which a colour is grey, unless it is black or white."""
_BLACK_GREY = 0.28
"""Lightness below which a grey is black."""


def to_oklch(pixels: npt.NDArray[np.uint8]) -> tuple[Floats32, Floats32, Floats32]:
    """Returns lightness in [0, 1], chroma (0 for grey, at most 0.32) and hue in degrees, each float32 (H, W).

    Ottosson 2020, "A perceptual color space for image processing" (OKLab, in polar form).

    Args:
        pixels: uint8 (H, W, 3) sRGB.
    """
    value = np.arange(256, dtype=np.float32) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)
    lab = np.cbrt(linear[pixels] @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return lab[..., 0], np.hypot(lab[..., 1], lab[..., 2]), hue


def name_colours(light: Floats32, chroma: Floats32, hue: Floats32) -> npt.NDArray[np.int8]:
    """Returns int8 (H, W) positions in `COLOURS` for what `to_oklch` returned.

    Colourless pixels first, then sectors of hue; the warm ones are divided by lightness and chroma, as brown is a dark
    orange, beige a weak one, and pink a pale red. The cuts were set against the names that the XKCD colour survey
    (Munroe 2010) gave to single colours.
    """
    grey = chroma < _GREY
    beige = (light > 0.7) & (chroma < 0.085)
    rules = [
        ((light < _BLACK) | (grey & (light < _BLACK_GREY)), "black"),
        (grey & (light > _WHITE), "white"),
        (grey, "grey"),
        ((hue >= 338) & (light < 0.55), "purple"),
        ((hue >= 338) | ((hue < 8) & (light > 0.5)) | ((hue < 20) & (light > 0.64)), "pink"),
        ((hue < 37) & beige & (chroma < 0.05), "beige"),
        ((hue < 37) & (light > 0.7), "pink"),
        ((hue < 37) & (chroma < 0.1), "brown"),
        (hue < 37, "red"),
        ((hue < 108) & beige, "beige"),
        ((hue < 120) & beige & (chroma < 0.055), "beige"),
        ((hue < 92) & (light < 0.7) & (chroma < 0.09), "brown"),
        ((hue < 70) & (light > 0.72 - 1.1 * chroma), "orange"),
        ((hue < 92) & (light < 0.66) & (light < 0.76 - 1.4 * chroma), "brown"),
        ((hue < 75) | ((hue < 84) & (chroma >= 0.13) & (light < 0.82)), "orange"),
        ((hue < 125) & (light > 0.86), "yellow"),
        ((hue < 112) & (light > 0.6), "yellow"),
        (hue < 190, "green"),
        (hue < 286, "blue"),
    ]
    choices = [COLOURS.index(name) for _, name in rules]
    return np.select([where for where, _ in rules], choices, COLOURS.index("purple")).astype(np.int8)
