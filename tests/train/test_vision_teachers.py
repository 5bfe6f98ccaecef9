"""A vision tower that learns several label sets at once, and from teachers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_recipe

from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.samples import Sample
from emocaliber.train import run
from emocaliber.train.models import build_model
from emocaliber.train.recipe import Recipe
from emocaliber.train.stage_recipes import GroupRecipe
from emocaliber.train.vision import train_vision
from emocaliber.train.vision.augmentation import Augmentation
from emocaliber.train.vision.labels import LabelBlocks
from emocaliber.train.vision.teachers import ResidualNet, Teachers

AUGMENT = {"crop": 0.6, "rotate": 10, "jitter": 0.2, "mixup": 0.5}
GROUPS = {
    "photographs": {
        "sets": ["oasis"], "augment": AUGMENT, "teachers": 2, "side": 16, "widths": [4, 6], "epochs": 1,
    },
    "drawings": {"sets": ["emotion6-7"], "teachers": 1, "side": 32, "widths": [4, 4, 6], "stride": 3, "epochs": 1},
}  # fmt: skip
VISION = {
    "learning_rate": 2e-3, "batch_size": 4, "epochs": 1, "save_steps": 1, "beta2": 0.99, "decay_positions": False,
    "average": 0.9, "balance": 0.5, "groups": GROUPS,
}  # fmt: skip


def several_sets(scenes: list[Sample]) -> list[Sample]:
    """Returns eight scenes and two more, which are taken for photographs of OASIS."""
    votes = [{"positive": 3.0, "negative": 1.0}, {"negative": 4.0}]
    changed = [
        dataclasses.replace(
            scene, id=f"oasis/{place}", taxonomy="sentiment-2", votes=votes[place], answer=None, posterior=None
        )
        for place, scene in enumerate(scenes[:2])
    ]
    return [*scenes, *changed]


def recipe_with(**changes: Any) -> Recipe:
    data = {"samples": "sets:nowhere", "sets": ["oasis"]}
    return tiny_recipe(data=data, taxonomies=["emotion6-7", "sentiment-2"], vision={**VISION, **changes})


def fresh(recipe: Recipe, processor: Any) -> Any:
    assert recipe.teacher.build is not None
    return build_model(recipe.teacher.build, processor, seed=0)


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C after the second step of the run that is named."""

    stop = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 2 and self._title == self.stop:
            raise KeyboardInterrupt


def test_a_run_broken_in_either_phase_goes_on_as_if_nothing_had_happened(
    scenes: list[Sample], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, samples = recipe_with(), several_sets(scenes)
    whole, again = fresh(recipe, processor), fresh(recipe, processor)
    stage = train_vision(whole, processor, samples, recipe, tmp_path / "whole")
    record = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    # The set of two stands for four: twelve images an epoch.
    assert len([entry for entry in record["history"] if "loss" in entry]) == 3
    assert not (stage.folder / "checkpoints").exists()
    for title in ("teacher-drawings-3", "vision"):
        with monkeypatch.context() as patch:
            patch.setattr(run, "ProgressBar", type("Stopping", (Interrupting,), {"stop": title}))
            with pytest.raises(KeyboardInterrupt):
                train_vision(
                    fresh(recipe, processor), processor, samples, recipe, tmp_path / "broken", resume=title == "vision"
                )
        with pytest.raises(ConfigError, match="unfinished run; continue it with --resume"):
            train_vision(fresh(recipe, processor), processor, samples, recipe, tmp_path / "broken")
    train_vision(again, processor, samples, recipe, tmp_path / "broken", resume=True)
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, again.state_dict()[name], atol=1e-6), name


def test_teachers_and_what_is_asked_for_change_what_is_learnt(
    scenes: list[Sample], processor: Any, tmp_path: Path
) -> None:
    learnt = {}
    plain = {**GROUPS["drawings"], "teachers": 0, "sets": ["emotion6-7", "sentiment-2"]}
    for name, changes in {
        "plain": {"groups": {}, "average": 0.0},
        "group without teachers": {"groups": {"all": plain}, "average": 0.0},
        "averaged": {"groups": {}},
        "augmented": {"groups": {}, "average": 0.0, "augment": AUGMENT},
        "labels": {"average": 0.0, "distill_weight": 1.0, "feature_weight": 0.0},
        "maps": {"average": 0.0, "distill_weight": 0.0, "feature_weight": 1.0},
    }.items():
        recipe = recipe_with(**changes)
        model = fresh(recipe, processor)
        train_vision(model, processor, several_sets(scenes), recipe, tmp_path / name)
        learnt[name] = model.model.vision_model.encoder.layers[0].mlp.fc1.weight.detach()
    assert torch.equal(learnt["plain"], learnt["group without teachers"])
    others = [weight for name, weight in learnt.items() if name != "group without teachers"]
    assert all(not torch.equal(a, b) for place, a in enumerate(others) for b in others[:place])


@pytest.mark.parametrize("last", [{}, {"crop": 0.9}])
def test_the_last_steps_alter_images_otherwise_also_after_an_interruption(
    scenes: list[Sample], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: dict[str, float]
) -> None:
    # Two steps an epoch, of which the first half are four; the run breaks after the second.
    group = {"sets": ["emotion6-7"], "augment": AUGMENT, "last_augment": last}
    table = {"learning_rate": 2e-3, "batch_size": 4, "epochs": 4, "save_steps": 1, "last_share": 0.5}
    recipe = tiny_recipe(vision={**table, "groups": {"all": group}})
    whole, again = fresh(recipe, processor), fresh(recipe, processor)
    crops: list[float] = []
    altered = Augmentation.__call__

    def recording(self: Augmentation, *arguments: Any) -> Any:
        crops.append(self._crop[0].item())
        images, targets = altered(self, *arguments)
        assert images.shape[-2:] == (32, 32)
        return images, targets

    monkeypatch.setattr(Augmentation, "__call__", recording)
    train_vision(whole, processor, scenes, recipe, tmp_path / "whole")
    expected = 4 * [AUGMENT["crop"]] + 4 * [last.get("crop", 1.0)]
    assert crops == pytest.approx(expected)
    crops.clear()
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", type("Stopping", (Interrupting,), {"stop": "vision"}))
        with pytest.raises(KeyboardInterrupt):
            train_vision(fresh(recipe, processor), processor, scenes, recipe, tmp_path / "broken")
    train_vision(again, processor, scenes, recipe, tmp_path / "broken", resume=True)
    # Of the interrupted step no checkpoint was left.
    assert crops == pytest.approx([*expected[:2], *expected[1:]])
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, again.state_dict()[name], atol=1e-6), name


def test_teachers_answer_for_their_labels_and_show_standardised_maps() -> None:
    samples = [
        Sample(image=f"{place}.png", taxonomy=taxonomy, answer=answer)
        for place, (taxonomy, answer) in enumerate((("emotion6-7", "joy"), ("sentiment-2", "positive")))
    ]
    blocks = LabelBlocks(samples, ())
    group = GroupRecipe(sets=("sentiment-2",), teachers=2, side=16, widths=(4, 6, 8))
    torch.manual_seed(0)
    nets = [ResidualNet(group, blocks.total) for _ in range(2)]
    examples = torch.randn(40, 3, 32, 32)
    shrunk = torch.nn.functional.avg_pool2d(examples, 2)
    for _ in range(30):  # Batch norm has to know the images.
        for net in nets:
            net(shrunk)
    teachers = Teachers(nets, group, blocks, 3, examples)
    assert teachers.taught.tolist() == [False, True]
    assert not any(weight.requires_grad for net in nets for weight in net.parameters())
    probabilities, maps = teachers(examples, torch.ones(40, dtype=torch.long))
    expected = sum(net(shrunk)[0][:, 7:].softmax(dim=1) for net in nets) / 2
    assert torch.allclose(probabilities[:, 7:], expected, atol=1e-5)
    assert torch.all(probabilities[:, :7] == 0)
    assert maps.shape == (40, 9, teachers.channels) == (40, 9, 2 * (6 + 8))
    assert torch.allclose(maps.mean(dim=(0, 1)), torch.zeros(28), atol=1e-4)
    spread = maps.std(dim=(0, 1))
    # A channel that rectification leaves dark has none.
    assert (spread < 1.01).all()
    assert (spread > 0.95).sum() > 20


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": {"sets": ["ferplus"]}}, r"groups.a names \['ferplus'\]; the samples are of emotion6-7, oasis, sentim"),
        ({"a": {"sets": ["oasis"]}, "b": {"sets": ["sentiment-2"]}}, "oasis is in vision.groups.a and .b"),
        ({"a": {"sets": ["oasis"], "teachers": 1, "side": 64}}, "a.side is 64, above the 32 pixels of the tower"),
        ({"a": {"sets": ["oasis"], "widths": [8]}}, r"widths are \[8\], expected two or more numbers > 0"),
        ({"a": {"sets": []}}, "sets is empty"),
        ({"a": {"sets": ["oasis"], "last_augment": {"crop": 0}}}, r"crop is 0.0, expected a number in \(0, 1\]"),
    ],
)
def test_groups_that_make_no_sense_are_refused(
    scenes: list[Sample], processor: Any, tmp_path: Path, groups: dict[str, Any], message: str
) -> None:
    def attempt() -> None:
        recipe = recipe_with(groups=groups)
        train_vision(fresh(recipe, processor), processor, several_sets(scenes), recipe, tmp_path)

    with pytest.raises(ConfigError, match=message):
        attempt()


def test_shares_are_shares() -> None:
    with pytest.raises(ConfigError, match=r"last_share is 1.5, expected a number in \[0, 1\]"):
        recipe_with(last_share=1.5)


def test_weights_that_are_no_matrices_do_not_decay(scenes: list[Sample], processor: Any, tmp_path: Path) -> None:
    # Where nothing but decay is left to change weights, those that do not decay stay as they are.
    still = {"votes_weight": 0.0, "groups": {}, "average": 0.0, "weight_decay": 0.5, "epochs": 2}
    for decay_positions in (False, True):
        recipe = recipe_with(**still, decay_positions=decay_positions)
        model, before = fresh(recipe, processor), fresh(recipe, processor).state_dict()
        train_vision(model, processor, several_sets(scenes), recipe, tmp_path / str(decay_positions))
        for name, weight in model.model.vision_model.named_parameters():
            unchanged = torch.equal(weight, before[f"model.vision_model.{name}"])
            positions = "position_embedding" in name
            assert unchanged == (weight.ndim == 1 or (positions and not decay_positions)), name
