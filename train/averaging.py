"""Weights averaged over the steps of a run, which generalise better than those of its last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback

from emocaliber.runtime.errors import ArtifactError

AVERAGE = "average.safetensors"
"""File of a checkpoint."""


class WeightAverage(TrainerCallback):
    """Keeps an exponential average of a module's weights and buffers; the module has it when training ends.

    After step t the average moves by ``1 - min(decay, (1 + t) / (10 + t))`` towards the weights: early steps, which are
    far from the end, are soon forgotten (Tarvainen and Valpola 2017, arXiv 1703.01780, with the warm-up of TensorFlow's
    ExponentialMovingAverage). Checkpoints hold it, so that a resumed run ends as one that was never interrupted. For
    runs whose weights are not sharded.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Takes the trained module, or a part of it, and the share of the average that a step keeps at most."""
        self._module = module
        self._decay = decay
        self._average: AveragedModel | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts with the weights as they are, or with the average of the checkpoint.

        Raises:
            ArtifactError: If a checkpoint that is resumed holds none.
        """
        self._average = AveragedModel(self._module, multi_avg_fn=self._move, use_buffers=True)
        if state.global_step:
            path = _average_of(args, state)
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; remove the checkpoint {path.parent} and resume again")
            load_model(self._average, path)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the average."""
        assert self._average is not None
        self._average.update_parameters(self._module)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the average into the checkpoint."""
        if state.is_world_process_zero:
            assert self._average is not None
            save_model(self._average, str(_average_of(args, state)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the module the average."""
        assert self._average is not None
        self._module.load_state_dict(self._average.module.state_dict())

    def _move(self, averages: Any, weights: Any, count: torch.Tensor | int) -> None:
        """Moves all averages of one type at once: a GPU is asked for the count once, not once a weight."""
        if averages[0].is_floating_point():
            kept = min(self._decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(averages, weights, 1 - kept)
        else:
            torch._foreach_copy_(averages, weights)  # counts of batches are no weights


def _average_of(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / AVERAGE
