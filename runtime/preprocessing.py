"""From RGB pixels to the vision encoder's input, number for number as in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import ConfigError, InputError

MAX_EDGE = 4096
"""Largest edge, in pixels, that the first resize may produce (transformers' Idefics3 ``MAX_IMAGE_SIZE``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes one square tile: what transformers' ``Idefics3ImageProcessorPil`` does without splitting.

    Two Lanczos resizes: first so that the longest edge is `longest_edge`, then to the square tile, whatever the aspect
    ratio; then ``(value / 255 - mean) / std`` per channel.
    """

    kind: Literal["idefics3"]
    """The image processor family that is reproduced."""
    longest_edge: int
    """Longest edge after the first resize, in pixels."""
    tile_size: int
    """Edge of the square the vision encoder sees, in pixels."""
    mean: tuple[float, ...]
    """Mean of red, green, blue, of values in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of red, green, blue, of values in [0, 1]."""

    def __post_init__(self) -> None:
        if self.kind != "idefics3":
            raise ConfigError(f"preprocessing kind is {self.kind!r}, expected 'idefics3'")
        for name, edge in (("longest_edge", self.longest_edge), ("tile_size", self.tile_size)):
            if not 1 <= edge <= MAX_EDGE:
                raise ConfigError(f"preprocessing {name} is {edge!r}, expected 1 to {MAX_EDGE} pixels")
        check_channels(self.mean, self.std)

    def shrink(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Returns the image after the first resize where that makes it smaller, uint8 (h, w, 3), else the image itself.

        `apply` makes the same of both, number for number. What waits to be predicted needs little memory then.

        Args:
            rgb: uint8 (H, W, 3), as `decode_image` returns it.
        """
        size = _longest_edge_size(rgb.shape[1], rgb.shape[0], self.longest_edge)
        # Of an image narrower than a pixel after the resize, a second one would make something else.
        if max(rgb.shape[:2]) <= self.longest_edge or _longest_edge_size(*size, self.longest_edge) != size:
            return rgb
        return np.array(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))

    def apply(self, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Returns the normalised tile, float32 (1, 3, tile_size, tile_size).

        Args:
            rgb: uint8 (H, W, 3), as `decode_image` returns it.

        Raises:
            InputError: If the array is of another type or shape.
        """
        check_rgb(rgb)
        width, height = _longest_edge_size(rgb.shape[1], rgb.shape[0], self.longest_edge)
        image = Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS)
        tile = image.resize((self.tile_size, self.tile_size), Image.Resampling.LANCZOS)
        return normalised(tile, self.mean, self.std)[np.newaxis]

    def batch(self, images: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Returns what `apply` made of N images as a scorer takes it: float32 (N, 3, tile_size, tile_size)."""
        return np.concatenate(images)


def check_channels(mean: Sequence[float], std: Sequence[float]) -> None:
    """Checks the mean and standard deviation of an image's channels.

    Raises:
        ConfigError: If they are not three finite numbers each, or a deviation is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            raise ConfigError(f"preprocessing {name} is {values!r}, expected three finite numbers")
    if min(std) <= 0:
        raise ConfigError(f"preprocessing std is {std!r}, expected positive numbers")


def check_rgb(rgb: npt.NDArray[np.uint8]) -> None:
    """Checks that an array is an image.

    Raises:
        InputError: If it is not uint8 (H, W, 3).
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise InputError(f"image array is {rgb.dtype} {rgb.shape}, expected uint8 (H, W, 3) RGB")


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """Returns ``(value / 255 - mean) / std`` of an RGB image, float32 (3, H, W), rounded as transformers rounds it."""
    # Scaled in double, stored in single, normalised in single precision; a byte has 256 values.
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    channels = zip(image.split(), np.array(mean, np.float32), np.array(std, np.float32), strict=True)
    return np.stack([((scaled - centre) / spread).take(np.asarray(band)) for band, centre, spread in channels])


def _longest_edge_size(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """Returns (width, height) scaled so that the longer one is `longest_edge`; the shorter is made even, at least 1.

    Truncation and rounding up to even follow transformers' Idefics3 ``get_resize_output_image_size``.
    """
    ratio = width / height
    if width >= height:
        short = int(longest_edge / ratio)
        return longest_edge, max(short + short % 2, 1)
    short = int(longest_edge * ratio)
    return max(short + short % 2, 1), longest_edge
