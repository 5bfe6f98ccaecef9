"""Models of published shapes with random weights."""

from __future__ import annotations

from typing import Any

import torch

from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import build_model

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 112, "vocabulary": 700,
        "vision": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2},
        "text": {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "kv_heads": 2},
    },
    "3b": {
        "image_size": 672, "vocabulary": 151_936,
        "vision": {"hidden_size": 1280, "intermediate_size": 3420, "layers": 32, "heads": 16},
        "text": {"hidden_size": 2048, "intermediate_size": 11_008, "layers": 36, "heads": 16, "kv_heads": 2},
    },
    "7b": {
        "image_size": 672, "vocabulary": 152_064,
        "vision": {"hidden_size": 1280, "intermediate_size": 3420, "layers": 32, "heads": 16},
        "text": {"hidden_size": 3584, "intermediate_size": 18_944, "layers": 28, "heads": 28, "kv_heads": 4},
    },
}  # fmt: skip
"""Qwen2.5-VL as published (the 3B's two vocabulary tables are kept apart here), and one for tests; 672² = 451,584."""


def build_of(shape: str) -> dict[str, Any]:
    """Returns the recipe of a model of one of the shapes."""
    towers = {name: value for name, value in SHAPES[shape].items() if name != "vocabulary"}
    return {"family": "qwen2_5_vl", "patch_size": 14, "max_positions": 8192, **towers}


def model_of(build: BuildRecipe, processor: Any, vocabulary: int, device: str) -> Any:
    """Returns a random model on a device, its vocabulary as large as the published one."""
    with torch.device(device):
        model = build_model(build, processor, seed=0)
        model.resize_token_embeddings(max(vocabulary, len(processor.tokenizer)), mean_resizing=False)
    return model
