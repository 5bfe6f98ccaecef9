"""What happens to an image before it is shown to a network in training: always mirrored, the rest if asked for.

Everything is drawn in the training step from torch's own random numbers, not while data are loaded: a loader is a batch
ahead of the step it serves, so that a resumed run would draw otherwise than one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from emocaliber.train.stage_recipes import AugmentRecipe

_MARGIN = 4 / 3
"""Side of the copy that is cropped, relative to the side that is shown."""
_ASPECT = 0.25
"""Most a crop's logarithm of width over height is away from the image's."""
_MIDDLE = 127.5
"""Middle of the range of bytes."""


def mirror_half(pixel_values: torch.Tensor) -> torch.Tensor:
    """Returns (N, ..., width) images, each mirrored left to right with probability one half."""
    mirrored = torch.rand(len(pixel_values)) < 0.5
    shape = (-1, *(1,) * (pixel_values.ndim - 1))
    return torch.where(mirrored.view(shape).to(pixel_values.device), pixel_values.flip(-1), pixel_values)


def altered(pixel_values: torch.Tensor, recipe: AugmentRecipe, image_processor: Any) -> torch.Tensor:
    """Returns images that are normalised already, cropped, turned and of other colours, as the recipe has it.

    Args:
        pixel_values: (N, ..., 3, side, side).
        recipe: What is done; they are neither mirrored nor mixed.
        image_processor: Whose normalisation they have.
    """
    images = pixel_values.reshape(-1, *pixel_values.shape[-3:])
    count = len(images)
    if recipe.crop < 1 or recipe.rotate > 0:
        images = _crops(
            images, torch.full((count,), recipe.crop), torch.full((count,), recipe.rotate), images.shape[-1]
        )
    if recipe.jitter > 0:
        scale, mean, std = _normalisation(image_processor, images.device)
        bytes_ = _jittered((images * std + mean) / scale, torch.full((count,), recipe.jitter))
        images = (bytes_ * scale - mean) / std
    return images.view_as(pixel_values)


def _normalisation(image_processor: Any, device: torch.device) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Returns by what bytes are multiplied, and the mean and deviation (3, 1, 1) of the channels then."""
    mean, std = (
        torch.tensor(values, device=device).view(-1, 1, 1)
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    return float(image_processor.rescale_factor), mean, std


class Augmentation:
    """From bytes in memory to what a network sees, in the way that the recipe has for each label set."""

    def __init__(self, recipes: Sequence[AugmentRecipe], side: int, image_processor: Any) -> None:
        """Takes what is to be done.

        Args:
            recipes: One for each label set.
            side: Pixels of a side that the network sees.
            image_processor: Whose rescaling and normalisation is applied.
        """
        self._side = side
        self._crop, self._turn, self._jitter, self._mixup = (
            torch.tensor([getattr(recipe, name) for recipe in recipes])
            for name in ("crop", "rotate", "jitter", "mixup")
        )
        self._factor, self._mean, self._std = _normalisation(image_processor, torch.device("cpu"))

    @property
    def _cropping(self) -> bool:
        return bool((self._crop < 1).any() or (self._turn > 0).any())

    @property
    def source_side(self) -> int:
        """Pixels of a side that images are to be kept at: more than is shown where they are cropped."""
        return math.ceil(_MARGIN * self._side) if self._cropping else self._side

    def __call__(
        self, pixel_values: torch.Tensor, sets: torch.Tensor, targets: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns (N, 3, side, side) normalised images, altered anew, and their targets.

        Args:
            pixel_values: (N, 3, S, S) bytes; S is `source_side`, or what another way to alter them asks for.
            sets: (N,) label set of each.
            targets: (N, ...) tensors that are mixed as the images are.
        """
        sets = sets.cpu()
        images = mirror_half(pixel_values).float()
        if self._cropping:
            images = _crops(images, self._crop[sets], self._turn[sets], self._side)
        elif images.shape[-1] != self._side:
            images = nn.functional.interpolate(images, self._side, mode="area")
        if (self._jitter > 0).any():
            images = _jittered(images, self._jitter[sets])
        images = self._normalised(images)
        if not (self._mixup > 0).any():
            return images, list(targets)
        partner, share = _mixture(sets, self._mixup[sets])
        return _mixed(images, partner, share), [_mixed(target, partner, share) for target in targets]

    def plain(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns (N, 3, side, side) normalised images as they are."""
        return self._normalised(nn.functional.interpolate(pixel_values.float(), self._side, mode="area"))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        # Rounded to half precision, in which earlier versions held the images: their recorded runs can be repeated.
        return ((images * self._factor - mean) / std).half().float()


def _crops(images: torch.Tensor, crop: torch.Tensor, turn: torch.Tensor, side: int) -> torch.Tensor:
    """Returns a random part of each image, turned, at (side, side) pixels (Szegedy et al. 2015, arXiv 1409.4842).

    Args:
        images: (N, 3, S, S).
        crop: (N,) least share of the area that is kept.
        turn: (N,) most degrees it is turned.
        side: Pixels of a side of the result.
    """
    count = len(images)
    scale = (crop + (1 - crop) * torch.rand(count)).sqrt()
    # An image that is kept whole keeps its shape too.
    aspect = (_ASPECT / 2 * _signed(count) * (crop < 1)).exp()
    width, height = (scale * aspect).clamp(max=1), (scale / aspect).clamp(max=1)
    angle = torch.deg2rad(turn) * _signed(count)
    across, down = (1 - width) * _signed(count), (1 - height) * _signed(count)
    rows = (
        torch.stack([width * angle.cos(), -width * angle.sin(), across], dim=1),
        torch.stack([height * angle.sin(), height * angle.cos(), down], dim=1),
    )
    turned = torch.stack(rows, dim=1).to(images.device)
    # In half precision a place would be off by up to half a pixel.
    with torch.autocast(images.device.type, enabled=False):
        grid = nn.functional.affine_grid(turned, [count, 3, side, side], align_corners=False)
        return nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _jittered(images: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Returns images of 0 to 255 with other brightness, contrast and saturation, each by up to ``strength``."""

    def change() -> torch.Tensor:
        return (strength * _signed(len(images))).view(-1, 1, 1, 1).to(images.device)

    images = images + _MIDDLE * change()
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + change())
    grey = images.mean(dim=1, keepdim=True)
    return (grey + (images - grey) * (1 + change())).clamp(0, 255)


def _mixture(sets: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns for each of N images another of its label set, and its own share, at least one half, in the mixture.

    Mixup draws the share from Beta(alpha, alpha) (Zhang et al. 2018, arXiv 1710.09412); alpha 0 keeps the image.
    """
    share = torch.distributions.Beta(alpha + (alpha == 0), alpha + (alpha == 0)).sample()
    share = torch.where(alpha > 0, torch.maximum(share, 1 - share), 1.0)
    shuffled = torch.randperm(len(sets))
    partner = torch.empty_like(shuffled)
    partner[sets.argsort(stable=True)] = shuffled[sets[shuffled].argsort(stable=True)]
    return partner, share


def _mixed(values: torch.Tensor, partner: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    share = share.view(-1, *(1,) * (values.ndim - 1)).to(values.device)
    return share * values + (1 - share) * values[partner.to(values.device)]


def _signed(count: int) -> torch.Tensor:
    """Returns (count,) uniform numbers in [-1, 1)."""
    return 2 * torch.rand(count) - 1
