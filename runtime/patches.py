"""Images of any size, cut into patches: the Qwen-VL families, number for number as in training.

An image becomes a grid of visual tokens of ``merge × merge`` patches each, and stays an array of that shape. All that
depends on the grid alone and not on the weights is worked out here, so that the graphs need no grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ConfigError, InputError
from .preprocessing import check_channels, check_rgb, normalised

MAX_ASPECT = 200
"""Largest ratio of an image's sides that the families take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPreprocessing:
    """How an image becomes patches: what transformers' ``Qwen2VLImageProcessorPil`` does, and the tower's bookkeeping.

    One bicubic resize to multiples of `factor` with `min_pixels` to `max_pixels` in all, the aspect ratio kept as well
    as that allows; then ``(value / 255 - mean) / std`` per channel.
    """

    kind: Literal["qwen_vl"]
    """The image processor family that is reproduced."""
    patch_size: int
    """Edge of a patch, in pixels."""
    temporal_patch_size: int
    """How often a patch of a still image is repeated, as frames of a film would follow each other."""
    merge_size: int
    """Patches on each side of a visual token."""
    min_pixels: int
    """Fewest pixels after the resize."""
    max_pixels: int
    """Most pixels after the resize; an image more than `MAX_ASPECT` times as long as wide apart."""
    mean: tuple[float, ...]
    """Mean of red, green, blue, of values in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of red, green, blue, of values in [0, 1]."""
    window: int | None = None
    """Visual tokens on each side of a window of attention; None where the tower has no windows (all but Qwen2.5-VL)."""
    position_table: int | None = None
    """Rows and columns of the learned positions that are interpolated to the grid; None without (all but Qwen3-VL)."""

    def __post_init__(self) -> None:
        sizes = ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels")
        for name in (*sizes, *(name for name in ("window", "position_table") if getattr(self, name) is not None)):
            if getattr(self, name) < 1:
                raise ConfigError(f"preprocessing {name} is {getattr(self, name)!r}, expected at least 1")
        if self.max_pixels < max(self.min_pixels, self.factor**2):
            raise ConfigError(
                f"preprocessing max_pixels is {self.max_pixels}, expected at least min_pixels ({self.min_pixels}) "
                f"and the {self.factor**2} of one visual token"
            )
        check_channels(self.mean, self.std)

    @property
    def factor(self) -> int:
        """Edge of a visual token, in pixels."""
        return self.patch_size * self.merge_size

    @property
    def max_tokens(self) -> int:
        """Most visual tokens of an image: as many as the pixels allow, or one long row of them."""
        return max(self.max_pixels // self.factor**2, int(math.sqrt(self.max_pixels * MAX_ASPECT)) // self.factor)

    @property
    def grid_inputs(self) -> tuple[str, ...]:
        """Names of the arrays that `grid` returns, which are inputs of the vision encoder."""
        windows = ("window_ids",) if self.window is not None else ()
        table = ("interpolation_indices", "interpolation_weights") if self.position_table is not None else ()
        return ("position_ids", *windows, *table)

    def apply(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns normalised patches, float32 (rows, columns, merge², values), rows and columns in visual tokens.

        The patches of a visual token stand row by row; the values of a patch are (channel, time, row, column).

        Args:
            rgb: uint8 (H, W, 3), as `decode_image` returns it.

        Raises:
            InputError: If the array is of another type or shape, or more than `MAX_ASPECT` times as long as wide.
        """
        check_rgb(rgb)
        height, width = self.size(rgb.shape[0], rgb.shape[1])
        resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
        merge, edge = self.merge_size, self.patch_size
        rows, columns = height // self.factor, width // self.factor
        cut = normalised(resized, self.mean, self.std).reshape(3, rows, merge, edge, columns, merge, edge)
        patches = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, np.newaxis]
        shape = (rows, columns, merge**2, 3 * self.temporal_patch_size * edge**2)
        return np.repeat(patches, self.temporal_patch_size, axis=5).reshape(shape)

    def shrink(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns an image of which `apply` makes the same, resized already where that stays so.

        Args:
            rgb: uint8 (H, W, 3).

        Raises:
            InputError: If one side is more than `MAX_ASPECT` times the other.
        """
        height, width = self.size(rgb.shape[0], rgb.shape[1])
        # A long row of visual tokens would be resized again.
        if max(height, width) > MAX_ASPECT * min(height, width) or self.size(height, width) != (height, width):
            return rgb
        return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))

    def batch(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Returns what `apply` made of several images as a scorer takes it: one by one."""
        return list(images)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width an image is resized to (``smart_resize`` of transformers' Qwen2-VL).

        Raises:
            InputError: If one side is more than `MAX_ASPECT` times the other.
        """
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise InputError(f"the image has {width} × {height} pixels; no side may be {MAX_ASPECT} times the other")
        factor = self.factor
        high, wide = round(height / factor) * factor, round(width / factor) * factor
        if high * wide > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            high, wide = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
        elif high * wide < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            high, wide = (math.ceil(side * grow / factor) * factor for side in (height, width))
        return high, wide

    def grid(self, rows: int, columns: int) -> dict[str, NDArray[Any]]:
        """Returns what the vision encoder must know of a grid of visual tokens, for P patches in their order.

        ``position_ids`` int64 (P, 2), row and column of each patch. ``window_ids`` int64 (P,), where attention has
        windows: a patch attends to those with its own number. ``interpolation_indices`` int64 (P, 4) and
        ``interpolation_weights`` float32 (P, 4), where positions are learned: entries of the table and their shares
        (bilinear, the corners of grid and table on each other).

        Args:
            rows: Rows of visual tokens.
            columns: Columns of visual tokens.
        """
        merge = self.merge_size
        inputs: dict[str, NDArray[Any]] = {}
        cells = np.indices((rows * merge, columns * merge), dtype=np.int64)
        place = cells.reshape(2, rows, merge, columns, merge).transpose(1, 3, 2, 4, 0).reshape(-1, 2)
        inputs["position_ids"] = np.ascontiguousarray(place)
        if self.window is not None:
            across, down = place // (merge * self.window), -(-columns // self.window)
            inputs["window_ids"] = across[:, 0] * down + across[:, 1]
        if self.position_table is not None:
            row_taps, row_shares = _taps(place[:, 0], rows * merge, self.position_table)
            column_taps, column_shares = _taps(place[:, 1], columns * merge, self.position_table)
            taps = row_taps[:, :, np.newaxis] * self.position_table + column_taps[:, np.newaxis]
            shares = row_shares[:, :, np.newaxis] * column_shares[:, np.newaxis]
            inputs["interpolation_indices"] = taps.reshape(-1, 4)
            inputs["interpolation_weights"] = shares.reshape(-1, 4)
        return inputs


def _taps(places: NDArray[np.int64], size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the two neighbours (P, 2) in a table of length ``side`` of places on an axis of ``size``, and shares."""
    source = places.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    below = np.floor(source)
    share = source - below
    taps = np.minimum(below.astype(np.int64)[:, np.newaxis] + [0, 1], side - 1)
    return taps, np.stack([1 - share, share], axis=1).astype(np.float32)
