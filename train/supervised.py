"""Stages *reason* and *verbalize*: supervised fine-tuning with TRL's `SFTTrainer`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from emocaliber.runtime.samples import Sample

from .adapters import adapters
from .arguments import epoch_arguments, teacher_arguments
from .choosing import choose_samples
from .conversations import choose_modes, supervised_dataset, with_drawn_answers
from .models import freeze_vision
from .recipe import Recipe
from .run import Stage, callbacks, last_checkpoint, save_stage
from .stage_recipes import SupervisedRecipe


def train_supervised(
    name: str,
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
) -> Stage:
    """Returns the finished stage: ``model`` fine-tuned on the samples' responses and saved to ``folder``.

    The loss is the cross-entropy of the response's tokens alone (prompt and image are masked).

    Args:
        name: ``reason`` (reasoning and answer) or ``verbalize`` (with the sample's confidence after the answer).
        model: Image-text-to-text model, trained in place.
        processor: Its processor.
        samples: Training samples.
        recipe: The run; its table ``name`` holds the hyper-parameters.
        folder: Where the model goes.
        resume: Continue from the newest checkpoint in ``folder``.

    Raises:
        InputError: If a sample lacks what it has to teach.
        ConfigError: If the recipe has no such stage, or an unfinished run is in the way.
    """
    table: SupervisedRecipe = recipe.stage(name)
    started = time.perf_counter()
    chosen = choose_samples(samples, table.max_samples, recipe.data.balance, recipe.seed)
    modes = choose_modes(len(chosen), table.direct_share, recipe.seed)
    if table.draw_answers:
        chosen = with_drawn_answers(chosen, modes, recipe.seed)
    dataset = supervised_dataset(chosen, recipe.prompt, modes, with_confidence=name == "verbalize")
    checkpoint = last_checkpoint(folder, resume=resume)
    if table.freeze_vision:
        freeze_vision(model)
    trainer = SFTTrainer(
        model=model.train(),
        args=_arguments(table, recipe, folder),
        train_dataset=dataset,
        processing_class=processor,
        callbacks=callbacks(name, folder, recipe),
        peft_config=adapters(recipe.lora),
    )
    # Some families (Qwen2.5-VL) deny that they take the number of tokens in a batch, and are then given a mean of the
    # pieces' means: answers in short pieces would weigh more.
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return save_stage(
        name, folder, trainer.model, processor, recipe, started=started, history=trainer.state.log_history
    )


def _arguments(table: SupervisedRecipe, recipe: Recipe, folder: Path) -> SFTConfig:
    return SFTConfig(
        **epoch_arguments(table, recipe, folder),
        **teacher_arguments(table, recipe),
        max_length=None,
    )
