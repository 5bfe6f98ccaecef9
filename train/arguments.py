"""What every trainer of the pipeline is told alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .recipe import Recipe, ReinforceRecipe, StudentRecipe, SupervisedRecipe, VisionRecipe
from .run import CHECKPOINTS


def common_arguments(
    table: SupervisedRecipe | VisionRecipe | StudentRecipe | ReinforceRecipe, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """Returns the arguments of transformers' `TrainingArguments` that no stage decides for itself.

    Args:
        table: The stage's table of the recipe.
        recipe: The run.
        folder: The stage's folder; checkpoints go below it.
    """
    on_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "learning_rate": table.learning_rate,
        "use_cpu": on_cpu,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": 10,
        "save_steps": table.save_steps,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
    }


def epoch_arguments(
    table: SupervisedRecipe | VisionRecipe | StudentRecipe, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """Returns `common_arguments` and those of stages that go over their samples in epochs, with a cosine schedule."""
    return {
        **common_arguments(table, recipe, folder),
        "per_device_train_batch_size": table.batch_size,
        "num_train_epochs": table.epochs,
        "warmup_steps": table.warmup,
        "weight_decay": table.weight_decay,
        "lr_scheduler_type": "cosine",
    }
