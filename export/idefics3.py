"""The vision graph of Idefics3 and SmolVLM: one square tile of one size."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from emocaliber.evaluate.convolutional import ConvolutionalTower
from emocaliber.runtime.errors import ConfigError


class VisionEncoder(nn.Module):
    """The vision tower and the connector for whole square tiles, without the padding logic of the original."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        base = model.model
        self.patch_embedding = base.vision_model.embeddings.patch_embedding
        self.position_embedding = base.vision_model.embeddings.position_embedding
        self.layers = base.vision_model.encoder.layers
        self.post_layernorm = base.vision_model.post_layernorm
        self.connector = base.connector
        self.register_buffer("position_ids", _tile_positions(base.vision_model), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns image features [N, count, hidden] of float32 pixels [N, 3, T, T]."""
        hidden = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = hidden + self.position_embedding(self.position_ids)
        for layer in self.layers:
            hidden = layer(hidden, None)
        features: torch.Tensor = self.connector(self.post_layernorm(hidden))
        return features


class ConvolutionalVisionEncoder(nn.Module):
    """A convolutional vision tower and the connector, batch normalisation folded into the convolutions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = copy.deepcopy(model.model.vision_model).eval()
        self.connector = model.model.connector
        for layers in [module for module in self.tower.modules() if isinstance(module, nn.Sequential)]:
            for place, norm in enumerate(layers):
                convolution = layers[place - 1]
                if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
                    layers[place - 1] = fuse_conv_bn_eval(convolution, norm)
                    layers[place] = nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns image features [N, count, hidden] of float32 pixels [N, 3, T, T]."""
        features: torch.Tensor = self.connector(self.tower(pixel_values).last_hidden_state)
        return features


def vision_encoder(model: Any) -> nn.Module:
    """Returns the vision graph's module for the tower that a model has."""
    convolutional = isinstance(model.model.vision_model, ConvolutionalTower)
    return ConvolutionalVisionEncoder(model) if convolutional else VisionEncoder(model)


def see_smaller(model: Any, processor: Any, image_size: int) -> None:
    """Lets a model and its processor take smaller square images, both in place.

    A patch has the pixels it had, and there are fewer of them. The position table is read at the places that the model
    gives to so many patches: for a side of half the size every second one.

    Args:
        model: An Idefics3 model.
        processor: Its processor.
        image_size: Side in pixels.

    Raises:
        ConfigError: If such an image does not fall into whole visual tokens, or is larger than those it was made for.
    """
    vision, scale = model.config.vision_config, model.config.scale_factor
    token, most = vision.patch_size * scale, vision.image_size
    if image_size < token or image_size % token or image_size > most:
        raise ConfigError(f"image size is {image_size}, expected a multiple of {token} up to the {most} of the model")
    vision.image_size = image_size
    model.model.image_seq_len = processor.image_seq_len = (image_size // token) ** 2
    images = processor.image_processor
    images.max_image_size = type(images.max_image_size)(longest_edge=image_size)


def _tile_positions(vision: Any) -> torch.Tensor:
    """Returns int64 [1, patches]: the position ids that the model itself gives to the patches of one full tile."""
    seen: list[torch.Tensor] = []
    table = vision.embeddings.position_embedding
    hook = table.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    size, side = vision.config.image_size, vision.config.image_size // vision.config.patch_size
    try:
        vision.embeddings(
            pixel_values=torch.zeros(1, vision.config.num_channels, size, size),
            patch_attention_mask=torch.ones(1, side, side, dtype=torch.bool),
        )
    finally:
        hook.remove()
    return seen[0]
