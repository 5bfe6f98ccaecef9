"""Models and processors: built from a recipe, or loaded from a folder that transformers understands."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.grammar import CONFIDENCE_GRID, MODES
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample

from .conversations import response_of
from .recipe import BuildRecipe, ModelRecipe, Precision
from .tokenizer import CHAT_TEMPLATE, IMAGE, train_tokenizer

_GRID_REPEATS = 50
"""So that the digits of every confidence become one token, whichever the samples hold."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(build: BuildRecipe, processor: Any, seed: int) -> Idefics3ForConditionalGeneration:
    """Returns an Idefics3 model with random weights, its sizes from ``build`` and its token ids from ``processor``."""
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = Idefics3Config(
        vision_config={
            "hidden_size": build.vision.hidden_size,
            "intermediate_size": build.vision.intermediate_size,
            "num_hidden_layers": build.vision.layers,
            "num_attention_heads": build.vision.heads,
            "image_size": build.image_size,
            "patch_size": build.patch_size,
            "initializer_range": build.vision.hidden_size**-0.5,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": build.text.hidden_size,
            "intermediate_size": build.text.intermediate_size,
            "num_hidden_layers": build.text.layers,
            "num_attention_heads": build.text.heads,
            "num_key_value_heads": build.text.kv_heads or build.text.heads,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": build.max_positions,
            "tie_word_embeddings": True,
            # The usual 0.02 suits widths of a thousand; narrow layers would start close to the identity.
            "initializer_range": build.text.hidden_size**-0.5,
            **ids,
        },
        scale_factor=build.scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(config)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model


def build_processor(build: BuildRecipe, texts: Iterable[str]) -> Idefics3Processor:
    """Returns a processor of the PIL image processor and a tokenizer trained on ``texts``: no torchvision needed."""
    edge = {"longest_edge": build.image_size}
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer=train_tokenizer(texts, build.vocab_size),
        image_seq_len=build.visual_tokens,
        chat_template=CHAT_TEMPLATE,
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


def load_model(folder: str | Path, precision: Precision = "fp32", *, local: bool = True) -> Any:
    """Returns the image-text-to-text model stored in a folder, in eval mode.

    Raises:
        ArtifactError: If the folder holds no such model.
    """
    if local and not Path(folder, "config.json").is_file():
        raise ArtifactError(f"{folder} holds no model (config.json is missing); run the stage that writes it first")
    return AutoModelForImageTextToText.from_pretrained(
        str(folder), dtype=DTYPES[precision], local_files_only=local, attn_implementation="sdpa"
    ).eval()


def load_processor(folder: str | Path, *, local: bool = True) -> Any:
    """Returns the processor stored in a folder; Idefics3 models get the PIL image processor.

    Raises:
        ArtifactError: If the folder holds no processor.
    """
    if local and not Path(folder, "tokenizer.json").is_file():
        raise ArtifactError(f"{folder} holds no processor (tokenizer.json is missing)")
    return AutoProcessor.from_pretrained(str(folder), local_files_only=local, backend="pil")


def initial(recipe: ModelRecipe, samples: Iterable[Sample], template: PromptTemplate, seed: int) -> tuple[Any, Any]:
    """Returns the model and processor a recipe names, built or loaded."""
    if recipe.build is not None:
        processor = build_processor(recipe.build, corpus(samples, template))
        return build_model(recipe.build, processor, seed), processor
    assert recipe.path is not None
    local = Path(recipe.path).exists()
    return load_model(recipe.path, local=local), load_processor(recipe.path, local=local)
