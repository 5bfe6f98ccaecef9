"""Vision towers that look at neighbouring patches from the start."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from PIL import Image

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample
from emocaliber.train.initialise import SHIFTS
from emocaliber.train.model_recipe import BuildRecipe, TowerRecipe
from emocaliber.train.models import build_model, build_processor, corpus
from emocaliber.train.recipe import Recipe


def build(side: int = 96, patch: int = 16, width: int = 128, **changes: Any) -> BuildRecipe:
    tower = TowerRecipe(hidden_size=width, intermediate_size=2 * width, layers=3, heads=8)
    text = TowerRecipe(hidden_size=32, intermediate_size=32, layers=1, heads=2)
    sizes = {"image_size": side, "patch_size": patch, "scale_factor": 1, "vocab_size": 500}
    return BuildRecipe(**{"vision": tower, "text": text, "init": "shift", **sizes, **changes})


@pytest.mark.parametrize(("patch", "width"), [(16, 128), (12, 192)])
def test_every_layer_looks_at_the_neighbours(recipe: Recipe, scenes: list[Sample], patch: int, width: int) -> None:
    table = build(patch=patch, width=width)
    processor = build_processor(table, corpus(scenes, recipe.prompt))
    model = build_model(table, processor, 0, scenes).eval()
    tower, grid = model.model.vision_model, 96 // patch
    pictures = [[Image.fromarray(decode_image(scene.image))] for scene in scenes]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"][:, 0]
    inner = [row * grid + column for row in range(1, grid - 1) for column in range(1, grid - 1)]
    with torch.no_grad():
        hidden = tower.embeddings(pixels, torch.ones(len(pixels), grid, grid, dtype=torch.bool))
        for layer in tower.encoder.layers:
            seen, attention = layer.layer_norm1(hidden), layer.self_attn
            query, key = (
                part(seen).view(len(pixels), grid**2, 8, -1).transpose(1, 2)
                for part in (attention.q_proj, attention.k_proj)
            )
            mass = (query @ key.transpose(2, 3) * (width // 8) ** -0.5).softmax(dim=-1).mean(dim=0)
            for head, (rows, columns) in enumerate(SHIFTS):
                wanted = [mass[head, place, place + rows * grid + columns].item() for place in inner]
                assert sum(wanted) / len(wanted) > 0.5, (head, wanted)
            hidden = layer(hidden, None)
        assert torch.isfinite(tower(pixels).last_hidden_state).all()
        assert hidden.std() < 10


def test_the_same_seed_starts_alike(recipe: Recipe, scenes: list[Sample]) -> None:
    table = build()
    processor = build_processor(table, corpus(scenes, recipe.prompt))
    first, again, other = (build_model(table, processor, seed, scenes).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    name = "model.vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(first[name], other[name])


def test_what_cannot_start_so_is_refused(recipe: Recipe, scenes: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="found idefics3 and 8 heads of 8"):
        build(width=64)
    with pytest.raises(ConfigError, match="found idefics3 and 4 heads of 32"):
        build(vision=TowerRecipe(hidden_size=128, intermediate_size=64, layers=1, heads=4))
    with pytest.raises(ConfigError, match="found qwen2_5_vl"):
        dataclasses.replace(build(), family="qwen2_5_vl")
    table = build()
    with pytest.raises(InputError, match="needs training images, but there are none"):
        build_model(table, build_processor(table, corpus(scenes, recipe.prompt)), 0)
