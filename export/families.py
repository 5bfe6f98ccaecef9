"""The families that can be exported, and what a bundle says of the way an image enters each."""

from __future__ import annotations

import math
from typing import Any, Literal

from PIL import Image

from emocaliber.evaluate.convolutional import ConvolutionalIdefics3Config
from emocaliber.evaluate.prompting import decoder_shape, image_block_of, preprocessing_of
from emocaliber.evaluate.transformers_loading import QWEN_FAMILIES
from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.manifest import DecoderShape, ImageBlock
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.preprocessing import Preprocessing

QWEN_MODEL_TYPES = tuple(QWEN_FAMILIES)
TILE_MODEL_TYPES = ("idefics3", "smolvlm", ConvolutionalIdefics3Config.model_type)
SUPPORTED_MODEL_TYPES = (*TILE_MODEL_TYPES, *QWEN_MODEL_TYPES)

Family = Literal["idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


def family_of(model: Any) -> Family:
    """Returns the family of a supported model, as a bundle names it."""
    kind: Family = model.config.model_type if model.config.model_type in QWEN_MODEL_TYPES else "idefics3"
    return kind


def decoder_of(model: Any) -> DecoderShape:
    """Returns the sizes of a model's decoder graph."""
    sizes = decoder_shape(model)
    if model.config.model_type not in QWEN_MODEL_TYPES:
        return DecoderShape(**sizes)
    deepstack = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
    if deepstack > sizes["num_layers"]:
        raise ExportError(
            f"features are added behind {deepstack} layers of the decoder, which has {sizes['num_layers']}"
        )
    return DecoderShape(**sizes, position_axes=3, deepstack_layers=deepstack)


def image_side_of(model: Any, processor: Any) -> tuple[Preprocessing | PatchPreprocessing, ImageBlock]:
    """Returns how pixels are made and which tokens stand for an image.

    Raises:
        ExportError: If the processor does what the runtime does not, or does not fit the model.
    """
    if model.config.model_type in QWEN_MODEL_TYPES:
        preprocessing = patch_preprocessing_of(model.config.vision_config, processor.image_processor)
        return preprocessing, ImageBlock(before="", token=processor.image_token, count=None, after="")
    block, expected = image_block_of(processor), model.model.image_seq_len
    if block.count != expected:
        raise ExportError(f"the processor writes {block.count} image tokens, the model makes {expected} image features")
    return preprocessing_of(processor.image_processor, model.config.vision_config.image_size), block


def patch_preprocessing_of(vision: Any, image_processor: Any = None) -> PatchPreprocessing:
    """Returns the runtime's preprocessing for a vision tower of the Qwen-VL families.

    Args:
        vision: Configuration of the tower.
        image_processor: Its image processor; without one the pixels have no settings, and only the grid is right.

    Raises:
        ExportError: If the processor does anything that the runtime does not reproduce.
    """
    size = {"shortest_edge": 1, "longest_edge": (vision.patch_size * vision.spatial_merge_size) ** 2}
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if image_processor is not None:
        _check_processor(image_processor, vision)
        size = {edge: int(image_processor.size[edge]) for edge in size}
        mean, std = tuple(map(float, image_processor.image_mean)), tuple(map(float, image_processor.image_std))
    windows = getattr(vision, "window_size", None)
    table = getattr(vision, "num_position_embeddings", None)
    return PatchPreprocessing(
        kind="qwen_vl",
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        mean=mean,
        std=std,
        window=None if windows is None else windows // vision.spatial_merge_size // vision.patch_size,
        position_table=None if table is None else math.isqrt(table),
    )


def _check_processor(image_processor: Any, vision: Any) -> None:
    wanted = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    faults = [f"{key} is off" for key in wanted if not getattr(image_processor, key, None)]
    if int(image_processor.resample) != int(Image.Resampling.BICUBIC):
        faults.append(f"resample={image_processor.resample}")
    if not math.isclose(image_processor.rescale_factor, 1 / 255):
        faults.append(f"rescale_factor={image_processor.rescale_factor}")
    for key, expected in (
        ("patch_size", vision.patch_size),
        ("temporal_patch_size", vision.temporal_patch_size),
        ("merge_size", vision.spatial_merge_size),
    ):
        if getattr(image_processor, key) != expected:
            faults.append(f"{key}={getattr(image_processor, key)} while the vision encoder takes {expected}")
    if faults:
        raise ExportError(f"this image processor is not supported: {', '.join(faults)}")
