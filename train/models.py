"""Models and processors a run starts from: built from a recipe's numbers, or loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from emocaliber.evaluate.convolutional import (
    ConvolutionalIdefics3Config,
    ConvolutionalIdefics3ForConditionalGeneration,
    register,
)
from emocaliber.evaluate.transformers_loading import QwenImageProcessor, load_model, load_processor
from emocaliber.runtime.grammar import CONFIDENCE_GRID, MODES, TAG_TOKENS
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample

from .conversations import response_of
from .model_recipe import BuildRecipe, ConvolutionRecipe, ModelRecipe, Precision, TowerRecipe
from .tokenizer import QWEN, SMOLVLM, train_tokenizer

_GRID_REPEATS = 50
"""So that the digits of every confidence become one token, whichever the samples hold."""

_QWEN_FULL_ATTENTION = 8
"""Every so many layers Qwen's vision tower attends over the whole image, in between within windows."""
_QWEN_WINDOW = 4
"""Side of such a window in visual tokens."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(build: BuildRecipe, processor: Any, seed: int) -> Any:
    """Returns a model with random weights, its sizes from ``build`` and its token ids from ``processor``.

    Args:
        build: Sizes.
        processor: Of the model.
        seed: Of the weights.
    """
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = {
        "hidden_size": build.text.hidden_size,
        "intermediate_size": build.text.intermediate_size,
        "num_hidden_layers": build.text.layers,
        "num_attention_heads": build.text.heads,
        "num_key_value_heads": build.text.kv_heads or build.text.heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": build.max_positions,
        # The usual 0.02 suits widths of a thousand; narrow layers would start close to the identity.
        "initializer_range": build.text.hidden_size**-0.5,
        **ids,
    }
    torch.manual_seed(seed)
    model = _qwen(build, text, tokenizer) if build.family == "qwen2_5_vl" else _idefics3(build, text, tokenizer)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model


def _idefics3(build: BuildRecipe, text: dict[str, Any], tokenizer: Any) -> Any:
    vision: dict[str, Any] = {"image_size": build.image_size, "patch_size": build.patch_size}
    shared = {
        "text_config": {"model_type": "llama", "tie_word_embeddings": True, **text},
        "scale_factor": build.scale_factor,
        "image_token_id": tokenizer.convert_tokens_to_ids(SMOLVLM.image),
        "tie_word_embeddings": True,
    }
    if isinstance(build.vision, ConvolutionRecipe):
        shape = build.vision
        vision |= {"stem_width": shape.stem, "stem_stride": shape.stride, "hidden_size": shape.widths[-1]}
        vision |= {"widths": list(shape.widths), "depths": list(shape.depths), "looks": shape.looks}
        register()
        return ConvolutionalIdefics3ForConditionalGeneration(
            ConvolutionalIdefics3Config(vision_config=vision, **shared)
        )
    vision |= {
        "hidden_size": build.vision.hidden_size,
        "intermediate_size": build.vision.intermediate_size,
        "num_hidden_layers": build.vision.layers,
        "num_attention_heads": build.vision.heads,
        "initializer_range": build.vision.hidden_size**-0.5,
    }
    return Idefics3ForConditionalGeneration(Idefics3Config(vision_config=vision, **shared))


def _qwen(build: BuildRecipe, text: dict[str, Any], tokenizer: Any) -> Any:
    assert isinstance(build.vision, TowerRecipe)
    layers = build.vision.layers
    half = build.text.hidden_size // build.text.heads // 2
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": build.vision.hidden_size,
            "intermediate_size": build.vision.intermediate_size,
            "depth": layers,
            "num_heads": build.vision.heads,
            "patch_size": build.patch_size,
            "spatial_merge_size": build.scale_factor,
            "window_size": _QWEN_WINDOW * build.patch_size * build.scale_factor,
            "fullatt_block_indexes": sorted(
                {*range(_QWEN_FULL_ATTENTION - 1, layers, _QWEN_FULL_ATTENTION), layers - 1}
            ),
            "out_hidden_size": build.text.hidden_size,
            "initializer_range": build.vision.hidden_size**-0.5,
        },
        text_config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                # A quarter of the rotary frequencies for time, the rest for height and width.
                "mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8],
            },
            **text,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(QWEN.image),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def build_processor(build: BuildRecipe, texts: Iterable[str]) -> Any:
    """Returns a processor that reads images with Pillow, with a tokenizer trained on ``texts``."""
    if build.family == "qwen2_5_vl":
        edge = build.patch_size * build.scale_factor
        return QwenImageProcessor(
            Qwen2VLImageProcessorPil(
                size={"shortest_edge": edge**2, "longest_edge": build.image_size**2},
                patch_size=build.patch_size,
                merge_size=build.scale_factor,
            ),
            train_tokenizer(texts, build.vocab_size, QWEN),
            chat_template=QWEN.template,
        )
    side = {"longest_edge": build.image_size}
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False),
        tokenizer=train_tokenizer(texts, build.vocab_size),
        image_seq_len=build.visual_tokens,
        chat_template=SMOLVLM.template,
    )


def corpus(samples: Iterable[Sample], template: PromptTemplate) -> Iterable[str]:
    """Yields every text a model built from scratch will read or write for these samples."""
    yield from (f"{value:.2f}" for value in CONFIDENCE_GRID for _ in range(_GRID_REPEATS))
    for sample in samples:
        labels = sample.resolve().labels
        for mode in MODES:
            yield template.instruction(labels, mode)
            if sample.answer is not None and (mode == "direct" or sample.reasoning is not None):
                yield response_of(sample, mode, confidence=sample.confidence or 0.5)


def initial(
    recipe: ModelRecipe, samples: Sequence[Sample], template: PromptTemplate, seed: int, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Returns the model and processor a recipe names, built or loaded.

    Args:
        recipe: Where the model comes from.
        samples: What a model built from scratch will read.
        template: Instructions.
        seed: Of random weights.
        dtype: Type the weights are held in; a model built from scratch has float32.

    Raises:
        ArtifactError: If there is no model at the recipe's path.
    """
    if recipe.build is not None:
        processor = build_processor(recipe.build, corpus(samples, template))
        return build_model(recipe.build, processor, seed), processor
    assert recipe.path is not None
    return load_model(recipe.path, dtype), open_processor(recipe, recipe.path)


def pretrained_student(recipe: ModelRecipe) -> tuple[Any, Any]:
    """Returns a recipe's model and processor as a student's: every tag is a token, and an image is one tile.

    Raises:
        ArtifactError: If there is none.
        ConfigError: If the pixels are limited for a family that has one image size.
    """
    assert recipe.path is not None
    model, processor = load_model(recipe.path), open_processor(recipe, recipe.path)
    if isinstance(processor, Idefics3Processor):
        images = processor.image_processor
        images.do_image_splitting = False
        # Larger images serve only those who cut them into tiles.
        images.size = images.max_image_size
    add_tags(model, processor.tokenizer)
    return model, processor


def add_tags(model: Any, tokenizer: Any) -> None:
    """Makes every tag of the response grammar one token, which starts as the mean of those it was spelt with.

    Args:
        model: Pretrained model, changed in place where it has too few embeddings.
        tokenizer: Its tokenizer, changed in place; tags that it knows already stay as they are.
    """
    vocabulary = tokenizer.get_vocab()
    spelt = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in TAG_TOKENS if tag not in vocabulary}
    # Not special: decoding keeps them.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in spelt])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        # Tied tables are one; it is set twice, to the same.
        for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            for tag, pieces in spelt.items():
                table[tokenizer.convert_tokens_to_ids(tag)] = table[pieces].mean(dim=0)


def freeze_vision(model: Any) -> None:
    """Leaves only the language model to be trained: its embeddings, its layers, its output layer."""
    model.requires_grad_(requires_grad=False)
    for part in (model.get_input_embeddings(), model.get_decoder(), model.get_output_embeddings()):
        part.requires_grad_(requires_grad=True)


def freeze_tower(model: Any) -> None:
    """Leaves the vision tower as it is; what joins it to the decoder is trained, as it is new where the decoder is."""
    base = model.model
    (base.visual if hasattr(base, "visual") else base.vision_model).requires_grad_(requires_grad=False)


def open_processor(recipe: ModelRecipe, path: str | Path) -> Any:
    """Returns the processor at ``path`` with the pixel limits of the recipe.

    Raises:
        ArtifactError: If there is none.
    """
    return load_processor(path, min_pixels=recipe.min_pixels, max_pixels=recipe.max_pixels)
