"""Idefics3 with a convolutional vision tower, for models that are built from scratch on few images.

A transformer has to learn from data that neighbouring pixels belong together; a convolution knows. The tower is a
residual network (He et al. 2016, arXiv 1512.03385) whose last map is read as a sequence, one visual token a cell; all
else is transformers' Idefics3. It imports nothing of this package, so that a saved model can carry it along: other
programs load such a folder with ``trust_remote_code``, this one uses the class below and runs no code of a folder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig


class ConvolutionalVisionConfig(Idefics3VisionConfig):
    """Shape of the tower; ``hidden_size`` is the last width and ``patch_size`` the stride of the whole."""

    model_type = "idefics3_convolutional_vision"

    stem_width: int = 24
    """Channels of the first convolution."""
    stem_stride: int = 2
    """Its stride; its kernel has one pixel more than twice that."""
    widths: list[int] | tuple[int, ...] = (64, 128, 256)
    """Channels of each stage, each at half the resolution of the one before."""
    depths: list[int] | tuple[int, ...] = (1, 1, 1)
    """Residual blocks of each stage."""
    looks: int = 1
    """In how many ways a trained tower looks at an image, see `looks_at`; each token is the mean of all looks."""


class ConvolutionalIdefics3Config(Idefics3Config):
    """`Idefics3Config` with another tower."""

    model_type = "idefics3_convolutional"
    sub_configs_defaults = {  # noqa: RUF012 - as transformers declares it
        **Idefics3Config.sub_configs_defaults,
        "vision_config": ConvolutionalVisionConfig,  # type: ignore[dict-item]
    }


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the first convolution has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Has random weights drawn from torch's own random numbers."""
        super().__init__()
        self.first = normed(inputs, outputs, kernel=3, stride=stride)
        self.second = normed(outputs, outputs, kernel=3, stride=1)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, *normed(inputs, outputs, kernel=1, stride=1))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Returns (N, outputs, height / stride, width / stride) of (N, inputs, height, width)."""
        return torch.relu(self.second(torch.relu(self.first(maps))) + self.shortcut(maps))


def normed(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    """Returns a convolution that keeps the size but for its stride, and its batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class ConvolutionalTower(nn.Module):
    """Takes the place of ``Idefics3VisionTransformer``."""

    def __init__(self, config: Any) -> None:
        """Has random weights drawn from torch's own random numbers.

        Args:
            config: `ConvolutionalVisionConfig`.
        """
        super().__init__()
        self.config = config
        self.stem = normed(
            config.num_channels, config.stem_width, kernel=2 * config.stem_stride + 1, stride=config.stem_stride
        )
        blocks: list[nn.Module] = []
        before = config.stem_width
        for width, depth in zip(config.widths, config.depths, strict=True):
            for place in range(depth):
                blocks.append(ResidualBlock(before, width, 1 if place else 2))
                before = width
        self.blocks = nn.Sequential(*blocks)

    def forward(
        self, pixel_values: torch.Tensor, patch_attention_mask: torch.Tensor | None = None, **_: object
    ) -> BaseModelOutputWithPooling:
        """Returns (N, (side / patch_size)², hidden_size) visual tokens of (N, 3, side, side) pixels.

        Args:
            pixel_values: Normalised.
            patch_attention_mask: Not used: images are whole squares.
        """
        # In training one look is enough, of images that are altered anew each time.
        looks = 1 if self.training else self.config.looks
        if looks > 1:
            pixel_values = torch.stack(looks_at(pixel_values, looks), dim=1).flatten(0, 1)
        # The layout in which convolutions are quickest on a CPU.
        maps = torch.relu(self.stem(pixel_values.contiguous(memory_format=torch.channels_last)))
        maps = self.blocks(maps)
        if looks > 1:
            seen = maps.unflatten(0, (-1, looks))
            maps = (seen[:, ::2].sum(dim=1) + seen[:, 1::2].sum(dim=1).flip(-1)) / looks
        return BaseModelOutputWithPooling(last_hidden_state=maps.flatten(2).transpose(1, 2).contiguous())

    def train(self, mode: bool = True) -> ConvolutionalTower:
        """Sets training mode; a tower that is not to be trained keeps its batch statistics too."""
        return super().train(mode and any(weight.requires_grad for weight in self.parameters()))


def looks_at(images: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Returns two or four looks at (N, 3, side, side) images, each of their size, every other one mirrored.

    The image, its mirror image, its upper part, its lower part mirrored: such a part has eleven twelfths of both sides
    and is made larger. Means of several looks are surer than one (Krizhevsky et al. 2012, section 4.1, took ten).
    """
    looks = [images, images.flip(-1)]
    if count == 2:
        return looks
    side = images.shape[-1]
    cut = side // 12
    middle = slice(cut // 2, side - (cut - cut // 2))
    lower, upper = (
        nn.functional.interpolate(part, (side, side), mode="bilinear", align_corners=False)
        for part in (images[..., cut:, middle], images[..., : side - cut, middle])
    )
    return [*looks, upper, lower.flip(-1)]


class ConvolutionalIdefics3ForConditionalGeneration(Idefics3ForConditionalGeneration):
    """`Idefics3ForConditionalGeneration` with a `ConvolutionalTower`."""

    config_class = ConvolutionalIdefics3Config

    def __init__(self, config: Any) -> None:
        """Has random weights: the tower's as torch draws them, the rest as transformers does."""
        super().__init__(config)
        self.model.vision_model = ConvolutionalTower(config.vision_config)


def register() -> None:
    """Lets transformers' auto classes know the architecture; any number of times."""
    AutoConfig.register(ConvolutionalIdefics3Config.model_type, ConvolutionalIdefics3Config, exist_ok=True)
    AutoModelForImageTextToText.register(
        ConvolutionalIdefics3Config, ConvolutionalIdefics3ForConditionalGeneration, exist_ok=True
    )
    ConvolutionalIdefics3Config.register_for_auto_class()  # type: ignore[no-untyped-call]
    ConvolutionalIdefics3ForConditionalGeneration.register_for_auto_class(  # type: ignore[no-untyped-call]
        "AutoModelForImageTextToText"
    )
