"""The vision tower's own first stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import scene_samples, tiny_recipe

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.samples import Sample
from emocaliber.train import run
from emocaliber.train.models import build_model
from emocaliber.train.recipe import Recipe
from emocaliber.train.vision import mirror_half, train_vision


def fresh(recipe: Recipe, processor: Any) -> Any:
    assert recipe.teacher.build is not None
    return build_model(recipe.teacher.build, processor, seed=0)


def test_the_tower_learns_and_the_decoder_stays(scenes: list[Sample], processor: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(vision={"learning_rate": 5e-3, "batch_size": 8, "epochs": 60})
    model, before = fresh(recipe, processor), fresh(recipe, processor).state_dict()
    stage = train_vision(model, processor, scenes, recipe, tmp_path)
    record = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    assert (record["stage"], record["seed"], record["recipe"]["vision"]["epochs"]) == ("vision", 0, 60)
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert len(losses) == 60
    # Votes are ten draws: their entropy, which no model can go below, is 0.5 to 1.5 nats.
    entropy = [-sum(p * torch.tensor(p).log().item() for p in (s.distribution() or ()) if p) for s in scenes]
    assert sum(entropy) / len(entropy) < losses[-1] < losses[0] - 0.1
    for name, weight in model.state_dict().items():
        trained = name.startswith(("model.vision_model", "model.connector"))
        assert trained or torch.equal(weight, before[name]), name
    seen = "model.vision_model.embeddings.patch_embedding.weight"
    assert not torch.equal(model.state_dict()[seen], before[seen])


# Recorded before images were held as bytes, and before a recipe could ask for more than mirrored images.
RECORDED = [2.482165, 2.519850, 2.695955, 2.716002, 2.966821, 2.586210]


def test_a_recipe_that_asks_for_nothing_more_learns_as_it_always_did(processor: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(vision={"learning_rate": 5e-3, "batch_size": 8, "epochs": 1})
    scenes = scene_samples(tmp_path / "scenes", 48)
    stage = train_vision(fresh(recipe, processor), processor, scenes, recipe, tmp_path / "vision")
    history = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))["history"]
    assert [entry["loss"] for entry in history if "loss" in entry] == pytest.approx(RECORDED, abs=1e-4)


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C in the middle of the second epoch, a checkpoint after the step before."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    scenes: list[Sample], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two epochs of four steps. Images are mirrored at random: the state of the random numbers has to come back too.
    recipe = tiny_recipe(vision={"learning_rate": 5e-3, "batch_size": 2, "epochs": 2, "save_steps": 1})
    whole, broken, again = (fresh(recipe, processor) for _ in range(3))
    train_vision(whole, processor, scenes, recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train_vision(broken, processor, scenes, recipe, tmp_path / "broken")
    with pytest.raises(ConfigError, match="unfinished run; continue it with --resume"):
        train_vision(again, processor, scenes, recipe, tmp_path / "broken")
    train_vision(again, processor, scenes, recipe, tmp_path / "broken", resume=True)
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, again.state_dict()[name], atol=1e-6), name


def test_samples_must_say_what_is_seen(scenes: list[Sample], processor: Any, tmp_path: Path) -> None:
    blank = dataclasses.replace(scenes[0], answer=None, votes=None, id="blank")
    recipe = tiny_recipe()
    with pytest.raises(InputError, match="sample blank has neither votes nor an answer"):
        train_vision(fresh(recipe, processor), processor, [blank], recipe, tmp_path)


@pytest.mark.parametrize("shape", [(200, 3, 2, 4), (200, 1, 3, 2, 4)])
def test_half_of_the_images_are_mirrored(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pixels = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    after = mirror_half(pixels)
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(after, pixels, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(after, pixels, strict=True)]
    assert [not mirror for mirror in mirrored] == kept
    assert 75 < sum(mirrored) < 125
