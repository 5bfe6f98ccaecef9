"""Training the student on packed rows: sequence distillation and label-distribution distillation together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from emocaliber.evaluate.transformers_loading import QwenImageProcessor
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.train.arguments import epoch_arguments
from emocaliber.train.models import freeze_tower
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import Stage, callbacks, last_checkpoint, save_stage
from emocaliber.train.stage_recipes import AugmentRecipe, StudentRecipe
from emocaliber.train.vision import altered, mirror_half

from .packing import IGNORED, PackedRow, PackingCollator, packed_losses


class _Rows(Dataset[PackedRow]):
    def __init__(self, rows: Sequence[PackedRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PackedRow:
        return self._rows[index]


class _StudentTrainer(Trainer):
    """`Trainer` whose loss is the weighted sum of both distillation losses."""

    def __init__(self, table: StudentRecipe, collator: PackingCollator, **arguments: Any) -> None:
        super().__init__(data_collator=collator, **arguments)
        self._table = table
        self._images = collator.processor.image_processor

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Returns the loss of one packed batch, or of a piece of one that counts by its share of the learnt tokens."""
        pixels = inputs["pixel_values"]
        if self._table.augment != AugmentRecipe():
            pixels = altered(pixels, self._table.augment, self._images)
        if self._table.flip:
            pixels = mirror_half(pixels)
        inputs = {**inputs, "pixel_values": pixels}
        # Prepared for mixed precision is the whole model's forward pass, and only its parts are called here.
        with self.accelerator.autocast():
            sequence, distribution, _ = packed_losses(model, inputs)
        if num_items_in_batch is not None:
            own = (inputs["labels"] != IGNORED).sum()
            sequence = sequence * own * self.accelerator.num_processes / num_items_in_batch
            distribution = distribution / self.current_gradient_accumulation_steps
        return self._table.sequence_weight * sequence + self._table.distribution_weight * distribution


def train_student(
    model: Any, processor: Any, rows: Sequence[PackedRow], recipe: Recipe, folder: Path, *, resume: bool = False
) -> Stage:
    """Returns the finished stage: ``model`` trained on the rows and saved to ``folder``.

    Args:
        model: The student, trained in place.
        processor: Its processor.
        rows: Training rows.
        recipe: The run; its ``student`` table holds the hyper-parameters.
        folder: Where the student goes.
        resume: Continue from the newest checkpoint in ``folder``.

    Raises:
        InputError: If there are no rows.
        ConfigError: If an unfinished run is in the way, or images are to be altered that have no one size.
    """
    table: StudentRecipe = recipe.stage("student")
    if not rows:
        raise InputError("no trace is left to train the student on: none of them parsed")
    if (table.flip or table.augment != AugmentRecipe()) and isinstance(processor, QwenImageProcessor):
        raise ConfigError(
            "student.flip and student.augment change images of one size; leave augment out and set flip = false for a "
            "Qwen-VL student"
        )
    started = time.perf_counter()
    collator = PackingCollator(processor, recipe.student_prompt)
    checkpoint = last_checkpoint(folder, resume=resume)
    if table.freeze_vision:
        freeze_tower(model)
    trainer = _StudentTrainer(
        table,
        collator,
        model=model.train(),
        args=TrainingArguments(
            **epoch_arguments(table, recipe, folder),
            bf16=table.precision == "bf16",
            activation_checkpointing=table.gradient_checkpointing,
            remove_unused_columns=False,
        ),
        train_dataset=_Rows(rows),
        callbacks=callbacks("student", folder, recipe),
    )
    # Else a batch's number of learnt tokens is not told, and the loss would be a mean of its pieces' means.
    trainer.model_accepts_loss_kwargs = True
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return save_stage(
        "student", folder, trainer.model, processor, recipe, started=started, history=trainer.state.log_history
    )
