"""Tiny random models of the Qwen-VL families; their tokenizer knows the tags, or does not, as Qwen's own."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from emocaliber.evaluate.transformers_loading import QWEN_FAMILIES, QwenImageProcessor
from emocaliber.runtime.grammar import CONFIDENCE_GRID, REASONING_TAGS, render_response
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.taxonomy import TAXONOMIES
from emocaliber.train.tokenizer import QWEN, train_tokenizer

WIDE = 0.15
"""Spread of the random weights: with the usual 0.02 a model writes one token for ever."""

_TOWERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        {
            "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 64,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        {
            "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
}  # fmt: skip
FAMILIES = tuple(_TOWERS)


def tiny_tokenizer(*, tags: bool = True) -> PreTrainedTokenizerFast:
    """Returns a tokenizer to which every tag is a token, or, as to Qwen's own, text whose tokens run across tags."""
    texts = [" ".join(taxonomy.labels) for taxonomy in TAXONOMIES.values()]
    texts += [PromptTemplate().reason, " ".join(f"{value:.2f}" for value in CONFIDENCE_GRID)]
    if tags:
        return train_tokenizer(texts, 500, QWEN)
    texts += [render_response("joy", 0.5, dict.fromkeys(REASONING_TAGS, "x"))] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [QWEN.pad, QWEN.start, QWEN.end, *QWEN.others, QWEN.image]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=QWEN.pad, eos_token=QWEN.end, chat_template=QWEN.template,
        extra_special_tokens=[QWEN.start, *QWEN.others, QWEN.image],
    )  # fmt: skip


def tiny_family(name: str, *, tags: bool = True, seed: int = 0, layers: int = 3) -> tuple[Any, Any]:
    """Returns a random model of a family and its processor, for images of 1 to 16 visual tokens."""
    config_class, model_class, tower = _TOWERS[name]
    tokenizer = tiny_tokenizer(tags=tags)
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}, patch_size=16, merge_size=2
    )
    processor = QwenImageProcessor(images, tokenizer, chat_template=QWEN.template)
    processor.stands_for = QWEN_FAMILIES[name]
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = config_class(
        vision_config={
            "num_heads": 2, "patch_size": 16, "spatial_merge_size": 2, "depth": layers,
            "initializer_range": WIDE, **tower,
        },
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512, "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "initializer_range": WIDE, **ids,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        initializer_range=WIDE,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = model_class(config).eval()
    for key, value in ids.items():
        setattr(model.generation_config, key, value)
    return model, processor
