"""What every trainer of the pipeline is told alike."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from emocaliber.runtime.errors import ConfigError, DependencyError

from .launch import processes
from .recipe import Recipe
from .run import CHECKPOINTS
from .sharding import sharding_arguments
from .stage_recipes import ReinforceRecipe, StudentRecipe, SupervisedRecipe, VisionRecipe
from .student_recipes import GroundRecipe, OnPolicyRecipe

EpochRecipe = SupervisedRecipe | VisionRecipe | StudentRecipe | GroundRecipe
"""Table of a stage that goes over its samples in epochs."""

_WITHOUT_BF16 = ("DEFAULT", "AVX2")
"""Kinds of processors, as torch names them, whose matrix products in bf16 took some 300 times as long as in fp32."""


def common_arguments(
    table: EpochRecipe | ReinforceRecipe | OnPolicyRecipe, recipe: Recipe, folder: Path
) -> dict[str, Any]:
    """Returns the arguments of transformers' `TrainingArguments` that no stage decides for itself.

    Args:
        table: The stage's table of the recipe.
        recipe: The run.
        folder: The stage's folder; checkpoints go below it.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu and table.precision == "bf16" and torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16:
        sys.stderr.write("this processor has no bf16 arithmetic and imitates it, very slowly; say precision=fp32\n")
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


def epoch_arguments(table: EpochRecipe, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Returns `common_arguments` and those of stages that go over their samples in epochs, with a cosine schedule.

    Raises:
        ConfigError: If the batch cannot be shared out evenly.
    """
    micro = None if isinstance(table, VisionRecipe) else table.micro_batch
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


def teacher_arguments(table: SupervisedRecipe | ReinforceRecipe, recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments of stages that train the teacher, which may be large: arithmetic, memory, and sharding.

    Raises:
        ConfigError: If the weights are to be sharded, and there is only one process.
        DependencyError: If fused kernels are asked for and are not installed.
    """
    if table.fused_kernels and find_spec("liger_kernel") is None:
        raise DependencyError("fused_kernels needs the package liger-kernel (and a GPU); run: pip install liger-kernel")
    arguments: dict[str, Any] = {"bf16": table.precision == "bf16", "use_liger_kernel": table.fused_kernels}
    if recipe.launch.shard:
        return {
            **arguments,
            **sharding_arguments(checkpointing=table.gradient_checkpointing),
            # FSDP does it itself, without gathering a layer once more.
            "activation_checkpointing": False,
        }
    return {**arguments, "activation_checkpointing": table.gradient_checkpointing}


def cut_batch(batch: int, micro: int | None) -> tuple[int, int]:
    """Returns how many items a process takes at once, and how often, so that all processes together take ``batch``.

    Args:
        batch: Items of one optimiser step.
        micro: Most items at once; None for the whole share of a process.

    Raises:
        ConfigError: If the batch cannot be shared out evenly.
    """
    count = processes().num_processes
    share = batch // count
    size = max(1, min(micro or share, share))
    if batch % count or share % size:
        raise ConfigError(
            f"a batch of {batch} cannot be shared by {count} processes, {micro or share} at a time; choose "
            f"batch_size and micro_batch so that batch_size is a multiple of processes x micro_batch"
        )
    return size, share // size
