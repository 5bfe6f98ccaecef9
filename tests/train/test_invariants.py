"""Settings that must not matter: how a batch is cut into pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_run import tiny_recipe

from emocaliber.runtime.samples import Sample
from emocaliber.train.models import build_model
from emocaliber.train.supervised import train_supervised


def test_accumulated_pieces_are_one_batch(scenes: list[Sample], processor: Any, tmp_path: Path) -> None:
    """One step on 8 samples of uneven length (both modes) equals one step on 8 × 1, 4 × 2 and 2 × 4."""
    weights = []
    for size in (8, 4, 1):
        table = {"batch_size": 8, "micro_batch": size, "direct_share": 0.5}
        recipe = tiny_recipe(reason={"learning_rate": 1e-3, "epochs": 2, "warmup": 0.0, **table})
        assert recipe.teacher.build is not None
        model = build_model(recipe.teacher.build, processor, seed=0)
        before = model.lm_head.weight.detach().clone()
        train_supervised("reason", model, processor, scenes[:8], recipe, tmp_path / str(size))
        assert not torch.allclose(model.lm_head.weight, before, atol=1e-4)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    # Adam turns rounding in tiny gradients into steps of its own size, so a few weights may differ by more.
    for other in weights[1:]:
        assert (weights[0] - other).abs().mean() < 1e-5
