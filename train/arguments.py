"""What every trainer of the pipeline is told alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from emocaliber.runtime.errors import ConfigError

from .recipe import Recipe
from .run import CHECKPOINTS
from .stage_recipes import ReinforceRecipe, StudentRecipe, SupervisedRecipe, VisionRecipe


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
        "logging_steps": 1,
        "save_steps": table.save_steps,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
    }


def epoch_arguments(
    table: SupervisedRecipe | VisionRecipe | StudentRecipe, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """Returns `common_arguments` and those of stages that go over their samples in epochs, with a cosine schedule.

    Raises:
        ConfigError: If the batch cannot be shared out evenly.
    """
    micro = table.micro_batch if isinstance(table, SupervisedRecipe) else None
    size, accumulation = cut_batch(table.batch_size, micro)
    return {
        **common_arguments(table, recipe, folder),
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": table.epochs,
        "warmup_steps": table.warmup,
        "weight_decay": table.weight_decay,
        "lr_scheduler_type": "cosine",
    }


def cut_batch(batch: int, micro: int | None) -> tuple[int, int]:
    """Returns how many items a process takes at once, and how often, so that all processes together take ``batch``.

    Args:
        batch: Items of one optimiser step.
        micro: Most items at once; None for the whole share of a process.

    Raises:
        ConfigError: If the batch cannot be shared out evenly.
    """
    processes = PartialState().num_processes
    share = batch // processes
    size = min(micro or share, share)
    if batch % processes or share % size:
        raise ConfigError(
            f"a batch of {batch} cannot be shared by {processes} processes, {micro or share} at a time; choose "
            f"batch_size and micro_batch so that batch_size is a multiple of processes x micro_batch"
        )
    return size, share // size
