"""Stage *calibrate*: GRPO with TRL, so that the stated confidence means what it says."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.import_utils import is_vllm_available

from emocaliber.evaluate.transformers_loading import is_folder, transformers_name
from emocaliber.evaluate.transformers_responder import visual_token_ids
from emocaliber.runtime.errors import BackendError
from emocaliber.runtime.samples import Sample

from .adapters import adapters
from .arguments import common_arguments, cut_batch, teacher_arguments
from .choosing import prompt_samples
from .conversations import choose_modes, prompt_dataset
from .models import freeze_vision
from .recipe import Recipe
from .rewards import make_reward
from .run import Stage, callbacks, last_checkpoint, save_stage
from .stage_recipes import ReinforceRecipe
from .stated import CollapseAlarm, Stated, StatedConfidences


class _Reinforcer(StatedConfidences, GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` that logs what the policy states."""

    def newly_stated(self) -> Stated:
        """Returns the confidences of the responses drawn since the last call; those that do not parse state none."""
        columns = [list(self._logs["extra"].pop(name, ())) for name in ("confidence", "right")]
        confidence, right = (np.array([value for value in column if value is not None]) for column in columns)
        return Stated(confidence=confidence, right=right, weight=np.ones(len(confidence)))


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
    # As many as the whole run draws, so that it ends within one pass of TRL's sampler, which restarts each pass alike.
    chosen = prompt_samples(samples, _prompts(table), recipe.data.balance, recipe.seed + 2)
    modes = choose_modes(len(chosen), table.direct_share, recipe.seed)
    checkpoint = last_checkpoint(folder, resume=resume)
    trainer = _Reinforcer(
        model=transformers_name(policy),
        reward_funcs=make_reward(table.reward),
        args=arguments_of(table, recipe, folder, policy),
        train_dataset=prompt_dataset(chosen, recipe.prompt, modes),
        processing_class=processor,
        callbacks=[*callbacks("calibrate", folder, recipe), CollapseAlarm(table.alarm)],
        peft_config=adapters(recipe.lora),
    )
    if table.freeze_vision:
        freeze_vision(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return save_stage(
        "calibrate", folder, trainer.model, processor, recipe, started=started, history=trainer.state.log_history
    )


def use_vllm(engine: str) -> bool:
    """Returns whether vLLM draws the responses, for ``auto``, ``transformers`` or ``vllm``.

    Raises:
        BackendError: If vLLM was asked for and cannot run here.
    """
    missing = [] if is_vllm_available() else ["vLLM is not installed (pip install 'trl[vllm]')"]
    if not torch.cuda.is_available():
        missing.append("there is no CUDA device")
    if engine == "vllm" and missing:
        raise BackendError(
            f"calibrate.rollout_engine is 'vllm', but {' and '.join(missing)}; or say "
            f"--set calibrate.rollout_engine=transformers, which is slower and needs neither"
        )
    return engine != "transformers" and not missing


def _prompts(table: ReinforceRecipe) -> int:
    """Returns how many prompts a run draws: those of all its steps, and of the rest of its last draw."""
    return math.ceil(table.steps / table.steps_per_draw) * table.steps_per_draw * table.prompts_per_step


def arguments_of(table: ReinforceRecipe, recipe: Recipe, folder: Path, policy: str | Path) -> GRPOConfig:
    """Returns what TRL is told of the recipe.

    Raises:
        BackendError: If vLLM was asked for and cannot run here.
        ConfigError: If a step cannot be shared out evenly.
    """
    common = common_arguments(table, recipe, folder)
    # Between the steps of a draw a checkpoint would lack the responses that are still to be learnt from.
    common["save_steps"] = math.ceil(table.save_steps / table.steps_per_draw) * table.steps_per_draw
    size, accumulation = cut_batch(table.prompts_per_step * table.rollouts, table.micro_batch)
    adapted_in_half = recipe.lora is not None and table.precision == "bf16"
    drawing: dict[str, Any] = {"use_vllm": True, "vllm_mode": "colocate"}
    if not use_vllm(table.rollout_engine):
        config = AutoConfig.from_pretrained(transformers_name(policy), local_files_only=is_folder(policy))
        drawing = {"generation_kwargs": {"suppress_tokens": visual_token_ids(config)}}
    return GRPOConfig(
        **common,
        **teacher_arguments(table, recipe),
        **drawing,
        max_steps=table.steps,
        lr_scheduler_type=table.schedule,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        generation_batch_size=table.steps_per_draw * table.prompts_per_step * table.rollouts,
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
