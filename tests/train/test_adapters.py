"""Adapters: trained alone in every stage, merged when a stage has finished."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_qwen import save_tiny_qwen
from tiny_run import tiny_recipe

from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.runtime.samples import Sample
from emocaliber.train import reinforce, run, supervised
from emocaliber.train.recipe import Recipe
from emocaliber.train.reinforce import train_reinforce
from emocaliber.train.supervised import train_supervised

# TRL calls it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

TABLE = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 2, "direct_share": 1.0}
RECIPE = tiny_recipe(
    vision=None,
    lora={"rank": 4, "alpha": 8},
    reason={**TABLE, "save_steps": 1},
    calibrate={
        "learning_rate": 1e-2, "steps": 2, "prompts_per_step": 2, "rollouts": 4, "max_new_tokens": 12,
        "direct_share": 1.0, "gradient_checkpointing": True,
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def start(scenes: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_qwen(tmp_path_factory.mktemp("start"), scenes, RECIPE.prompt)


@pytest.fixture(scope="module")
def samples(scenes: list[Sample]) -> list[Sample]:
    return [dataclasses.replace(sample, confidence=0.5) for sample in scenes]


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def adapted_layers(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Returns the names of the weights that differ."""
    assert before.keys() == after.keys()
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def test_the_saved_model_is_the_trained_one(
    start: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[torch.Tensor] = []
    save = supervised.save_stage

    def noting(name: str, folder: Path, model: Any, *arguments: Any, **options: Any) -> Any:
        assert isinstance(model, PeftModel)
        trained.append(logits(model))
        return save(name, folder, model, *arguments, **options)

    monkeypatch.setattr(supervised, "save_stage", noting)
    stage = train_supervised("reason", load_model(start), load_processor(start), samples, RECIPE, tmp_path)
    plain = load_model(stage.folder)
    assert torch.allclose(logits(plain), trained[0], atol=1e-4)
    assert not torch.allclose(logits(plain), logits(load_model(start)), atol=1e-2)
    # Only matrices of linear layers have moved: no embedding, no output layer, no norm, no bias.
    moved = adapted_layers(load_model(start).state_dict(), plain.state_dict())
    assert moved
    assert [name for name in moved if not name.endswith(("proj.weight", "qkv.weight", ".0.weight", ".2.weight"))] == []
    assert not [name for name in moved if "embed" in name or "lm_head" in name]
    assert not list(tmp_path.glob("adapter*"))


class Interrupting(run.ProgressBar):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    start: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, *, resume: bool = False) -> None:
        train_supervised("reason", load_model(start), load_processor(start), samples, RECIPE, folder, resume=resume)

    train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "broken")
    train(tmp_path / "broken", resume=True)
    whole, broken = (load_model(tmp_path / name).state_dict() for name in ("whole", "broken"))
    for name, weight in whole.items():
        assert torch.allclose(weight, broken[name], atol=1e-6), name


def by_length(completions: list[Any], **columns: Any) -> list[float]:
    """Returns a reward that differs between any responses, so that there is something to learn from the first on."""
    return [float(len(completion[0]["content"]) % 7) for completion in completions]


def test_the_reference_is_the_policy_without_its_adapters(
    start: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reinforce, "make_reward", lambda kind: by_length)
    stage = train_reinforce(start, load_processor(start), samples, RECIPE, tmp_path)
    history = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))["history"]
    divergences = [entry["kl"] for entry in history if "kl" in entry]
    # Adapters start as nothing: at the first step the two are one, after it they are not.
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert divergences[1] > 1e-5
    moved = adapted_layers(load_model(start).state_dict(), load_model(stage.folder).state_dict())
    assert moved
    assert not [name for name in moved if "embed" in name or "lm_head" in name]


def test_a_stage_without_adapters_moves_every_matrix(start: Path, samples: list[Sample], tmp_path: Path) -> None:
    recipe: Recipe = dataclasses.replace(RECIPE, lora=None)
    stage = train_supervised("reason", load_model(start), load_processor(start), samples, recipe, tmp_path)
    moved = adapted_layers(load_model(start).state_dict(), load_model(stage.folder).state_dict())
    assert "lm_head.weight" in moved
