"""Low-rank adapters: trained instead of all weights, and merged into them when a stage has finished."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftModel

from .model_recipe import LoraRecipe


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


def merged(model: Any) -> Any:
    """Returns ``model`` with its adapters merged into its weights, as a plain transformers model."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
