"""The average of the weights over a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from emocaliber.runtime.errors import ArtifactError
from emocaliber.train.averaging import WeightAverage


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("batches", torch.tensor(0))

    def become(self, value: int) -> None:
        with torch.no_grad():
            self.weight.fill_(float(value))
            self.get_buffer("mean").fill_(10.0 * value)
            self.get_buffer("batches").fill_(value)


def run(module: Scale, values: list[int], folder: Path, *, start: int = 0) -> WeightAverage:
    """Trains ``module`` by giving it the values, and saves after the last of them."""
    args, state = (
        SimpleNamespace(output_dir=str(folder)),
        SimpleNamespace(global_step=start, is_world_process_zero=True),
    )
    average = WeightAverage(module, 0.5)
    average.on_train_begin(args, state, None)
    for value in values:
        module.become(value)
        state.global_step += 1
        average.on_step_end(args, state, None)
    (folder / f"checkpoint-{state.global_step}").mkdir(parents=True)
    average.on_save(args, state, None)
    average.on_train_end(args, state, None)
    return average


# By hand: 1 is taken as it is; 2/11 of it are kept beside 2; 3/12 of that beside 4; half, the decay, beside 8 at last.
AFTER_THREE = 0.25 * (2 / 11 * 1 + 9 / 11 * 2) + 0.75 * 4


def test_early_steps_are_forgotten_sooner(tmp_path: Path) -> None:
    module = Scale()
    run(module, [1, 2, 4], tmp_path)
    assert module.weight.item() == pytest.approx(AFTER_THREE)
    assert module.get_buffer("mean").item() == pytest.approx(10 * AFTER_THREE)
    assert module.get_buffer("batches").item() == 4


def test_the_decay_is_the_most_that_is_kept(tmp_path: Path) -> None:
    module = Scale()
    run(module, [3] * 20 + [5, 7], tmp_path)
    assert module.weight.item() == pytest.approx(0.25 * 3 + 0.25 * 5 + 0.5 * 7)


def test_a_resumed_run_goes_on_with_the_average(tmp_path: Path) -> None:
    whole, broken, again = Scale(), Scale(), Scale()
    run(whole, [1, 2, 4, 8, 16], tmp_path / "whole")
    run(broken, [1, 2, 4], tmp_path / "broken")
    run(again, [8, 16], tmp_path / "broken", start=3)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_weights_that_are_not_trained_stay_exactly(tmp_path: Path) -> None:
    module, value = Scale(), torch.tensor([1 / 3])
    module.weight.data = value.clone()
    average = WeightAverage(module, 0.998)
    args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=0, is_world_process_zero=True)
    average.on_train_begin(args, state, None)
    for _ in range(50):
        average.on_step_end(args, state, None)
    average.on_train_end(args, state, None)
    assert torch.equal(module.weight.detach(), value)


def test_a_checkpoint_without_an_average_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"checkpoint-3/average.safetensors is missing; remove the checkpoint"):
        run(Scale(), [1], tmp_path, start=3)
