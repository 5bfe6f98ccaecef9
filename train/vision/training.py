"""The training loop of this stage, for the tower and for its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Subset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from emocaliber.train.arguments import epoch_arguments
from emocaliber.train.averaging import WeightAverage
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import callbacks
from emocaliber.train.stage_recipes import VisionRecipe

from .images import Images


class _Trainer(Trainer):
    """`Trainer` that may spare the positions from weight decay, besides norms and biases."""

    def __init__(self, *, decay_positions: bool, **arguments: Any) -> None:
        self._decay_positions = decay_positions
        super().__init__(**arguments)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the weights that decay: matrices and kernels."""
        return [
            name
            for name, weight in model.named_parameters()
            if weight.ndim > 1 and (self._decay_positions or "position_embedding" not in name)
        ]


def train_epochs(
    title: str,
    learner: nn.Module,
    kept: nn.Module,
    images: Images,
    order: list[int],
    table: VisionRecipe,
    recipe: Recipe,
    folder: Path,
    checkpoint: str | None,
    watchers: Sequence[TrainerCallback] = (),
) -> list[dict[str, Any]]:
    """Returns the log of a training run in place, one mapping a logged step.

    Args:
        title: What is trained, for the progress bar.
        learner: Returns the loss of a batch of ``images``.
        kept: The part of it that serves afterwards; it ends with the average of its weights where the table asks.
        images: Training images.
        order: Indices of one epoch, before they are shuffled.
        table: Hyper-parameters.
        recipe: The run.
        folder: Where checkpoints and curves go.
        checkpoint: Where to continue, or None.
        watchers: What else happens at its steps.
    """
    averages = [WeightAverage(kept, table.average)] if table.average else []
    trainer = _Trainer(
        decay_positions=table.decay_positions,
        model=learner.train(),
        args=TrainingArguments(
            **epoch_arguments(table, recipe, folder), adam_beta2=table.beta2, bf16=table.precision == "bf16"
        ),
        train_dataset=Subset(images, order),
        callbacks=[*callbacks(title, folder, recipe), *averages, *watchers],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    history: list[dict[str, Any]] = trainer.state.log_history
    return history
