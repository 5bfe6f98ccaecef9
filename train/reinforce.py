"""Stage *calibrate*: GRPO with TRL, so that the stated confidence means what it says."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from emocaliber.evaluate.transformers_loading import is_folder, transformers_name
from emocaliber.runtime.samples import Sample

from .adapters import adapters
from .arguments import common_arguments, cut_batch, teacher_arguments
from .conversations import choose_modes, prompt_dataset
from .recipe import Recipe
from .rewards import make_reward
from .run import Stage, callbacks, last_checkpoint, save_stage
from .stage_recipes import ReinforceRecipe


def train_reinforce(
    policy: str | Path, processor: Any, samples: Sequence[Sample], recipe: Recipe, folder: Path, *, resume: bool = False
) -> Stage:
    """Returns the finished stage: the stage-2 model in ``policy`` reinforced on its own responses, saved to ``folder``.

    Advantages are group means, not divided by the standard deviation, and the KL penalty uses the low-variance
    estimator: the paper's setting (arXiv 2512.15528).

    Args:
        policy: The stage-2 model, a folder or ``hf://owner/name``; also the reference of the KL penalty.
        processor: Its processor.
        samples: Training samples with votes or answers.
        recipe: The run; its ``calibrate`` table holds the hyper-parameters.
        folder: Where the model goes.
        resume: Continue from the newest checkpoint in ``folder``.

    Raises:
        InputError: If a sample has neither votes nor an answer.
    """
    table: ReinforceRecipe = recipe.stage("calibrate")
    started = time.perf_counter()
    chosen = list(samples)
    random.Random(recipe.seed + 2).shuffle(chosen)  # noqa: S311 - reproducible order, not secrecy
    chosen = chosen[: table.steps * table.prompts_per_step]
    modes = choose_modes(len(chosen), table.direct_share, recipe.seed)
    checkpoint = last_checkpoint(folder, resume=resume)
    trainer = GRPOTrainer(
        model=transformers_name(policy),
        reward_funcs=make_reward(table.reward),
        args=_arguments(table, recipe, folder, policy),
        train_dataset=prompt_dataset(chosen, recipe.prompt, modes),
        processing_class=processor,
        callbacks=callbacks("calibrate", folder),
        peft_config=adapters(recipe.lora),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return save_stage(
        "calibrate", folder, trainer.model, processor, recipe, started=started, history=trainer.state.log_history
    )


def _arguments(table: ReinforceRecipe, recipe: Recipe, folder: Path, policy: str | Path) -> GRPOConfig:
    common = common_arguments(table, recipe, folder)
    size, accumulation = cut_batch(table.prompts_per_step * table.rollouts, table.micro_batch)
    adapted_in_half = recipe.lora is not None and table.precision == "bf16"
    return GRPOConfig(
        **common,
        **teacher_arguments(table, recipe),
        max_steps=table.steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        generation_batch_size=(table.prompts_per_draw or table.prompts_per_step) * table.rollouts,
        num_generations=table.rollouts,
        temperature=table.temperature,
        top_k=0,
        max_completion_length=table.max_new_tokens,
        beta=table.kl,
        scale_rewards="none",
        model_init_kwargs={
            "dtype": "bfloat16" if adapted_in_half else "float32",
            "local_files_only": is_folder(policy),
        },
    )
