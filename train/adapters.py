"""Low-rank adapters: trained instead of all weights, and merged into them when a stage has finished."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from .model_recipe import LoraRecipe
from .sharding import whole_weights


def adapters(recipe: LoraRecipe | None) -> LoraConfig | None:
    """Returns the adapters of a recipe as peft names them, or None where all weights are trained."""
    if recipe is None:
        return None
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.targets,
        task_type="CAUSAL_LM",
    )


def finished_model(model: Any) -> tuple[Any, dict[str, torch.Tensor] | None]:
    """Returns a trained model as a plain one, adapters merged, and its weights where it does not hold them itself.

    Of a sharded model only the main process gets something to save; every process must call this.

    Args:
        model: Model as a trainer leaves it: plain or with adapters, whole or sharded.
    """
    weights = whole_weights(model)
    if not isinstance(model, PeftModel):
        return model, weights
    if weights is None:
        return model.merge_and_unload(), None
    if not weights:
        return model, None
    with torch.device("meta"):
        plain = AutoModelForImageTextToText.from_config(model.get_base_model().config)
        unsharded = get_peft_model(plain, model.peft_config[model.active_adapter])
    unsharded.load_state_dict(weights, assign=True)
    return unsharded.merge_and_unload(), None
