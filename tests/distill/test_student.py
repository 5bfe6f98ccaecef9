"""Training the student, end to end on a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny_family
from tiny_model import build_model
from tiny_run import tiny_recipe

from emocaliber.distill.packing import PackedRow, PackingCollator, packed_losses
from emocaliber.distill.student import train_student
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import REASONING_TAGS, render_reasoning, render_response
from emocaliber.runtime.samples import Sample
from emocaliber.train import run
from emocaliber.train.recipe import Recipe

REASONING = render_reasoning(dict.fromkeys(REASONING_TAGS, "x"))


def recipe_of(**table: Any) -> Recipe:
    given = {"learning_rate": 3e-3, "batch_size": 2, "epochs": 2, "distribution_weight": 2.0, **table}
    return tiny_recipe(student={"model": {"path": "unused"}, **given})


@pytest.fixture
def rows(scenes: list[Sample]) -> list[PackedRow]:
    return [
        PackedRow(
            image=scene.image,
            mode="reason" if i % 2 else "direct",
            reasoning=REASONING if i % 2 else "",
            labels=scene.resolve().labels,
            answer="joy",
            response=render_response("joy", 0.5, None),
            # Each image has a favourite of its own.
            target=tuple(0.7 if j == i else 0.05 for j in range(7)),
        )
        for i, scene in enumerate(scenes)
    ]


def test_the_student_learns_text_and_distribution(rows: list[PackedRow], processor: Any, tmp_path: Path) -> None:
    recipe = recipe_of(learning_rate=1e-2, epochs=20, flip=False, batch_size=6)
    model = build_model(processor)
    collator = PackingCollator(processor, recipe.prompt)
    batch = collator(rows)
    with torch.inference_mode():
        before = packed_losses(model, batch)
    stage = train_student(model, processor, rows, recipe, tmp_path)
    with torch.inference_mode():
        after = packed_losses(model.eval(), batch)
    assert float(after[0]) < 0.5 * float(before[0])
    assert float(after[1]) < 0.5 * float(before[1])
    record = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    assert (record["stage"], record["seed"], record["recipe"]["student"]["epochs"]) == ("student", 0, 20)
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert len(losses) == 20
    # What is logged is the weighted sum of both losses, before each step.
    first, last = (float(part[0] + 2.0 * part[1]) for part in (before, after))
    assert losses[0] == pytest.approx(first, rel=1e-4)
    assert last < losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("weights", "text_moves"),
    [({"distribution_weight": 0.0}, True), ({"sequence_weight": 0.0, "distribution_weight": 1.0}, False)],
)
def test_each_loss_has_its_weight(
    rows: list[PackedRow], processor: Any, tmp_path: Path, weights: dict[str, float], text_moves: bool
) -> None:
    recipe = recipe_of(learning_rate=1e-2, epochs=5, flip=False, batch_size=6, **weights)
    model = build_model(processor)
    collator = PackingCollator(processor, recipe.prompt)
    batch = collator(rows)
    with torch.inference_mode():
        before = [float(loss) for loss in packed_losses(model, batch)[:2]]
    train_student(model, processor, rows, recipe, tmp_path)
    with torch.inference_mode():
        after = [float(loss) for loss in packed_losses(model.eval(), batch)[:2]]
    learnt, other = (0, 1) if text_moves else (1, 0)
    assert after[learnt] < 0.8 * before[learnt]
    assert after[learnt] / before[learnt] < after[other] / before[other]


def test_a_batch_may_be_cut_in_pieces(rows: list[PackedRow], processor: Any, tmp_path: Path) -> None:
    """Rows with and without a reasoning have different numbers of learnt tokens: a mean of means would differ."""
    ordered, losses, weights = [*rows[::2], *rows[1::2]], [], []
    for micro in (6, 2):
        recipe = recipe_of(batch_size=6, micro_batch=micro, epochs=3, flip=False, gradient_checkpointing=micro == 2)
        model = build_model(processor)
        stage = train_student(model, processor, ordered, recipe, tmp_path / str(micro))
        history = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))["history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert torch.allclose(weights[0], weights[1], atol=1e-4)


def test_precision_is_that_of_the_arithmetic(rows: list[PackedRow], processor: Any, tmp_path: Path) -> None:
    types: dict[str, set[torch.dtype]] = {}
    for precision in ("fp32", "bf16"):
        model, seen = build_model(processor), types.setdefault(precision, set())
        model.lm_head.register_forward_hook(lambda _module, _inputs, logits, seen=seen: seen.add(logits.dtype))
        train_student(model, processor, rows[:2], recipe_of(epochs=1, precision=precision), tmp_path / precision)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert types == {"fp32": {torch.float32}, "bf16": {torch.bfloat16}}


def test_images_of_all_sizes_are_not_mirrored(rows: list[PackedRow], tmp_path: Path) -> None:
    model, processor = tiny_family("qwen3_vl")
    with pytest.raises(ConfigError, match="set flip = false for a Qwen-VL student"):
        train_student(model, processor, rows, recipe_of(), tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train_student(model, processor, rows, recipe_of(flip=False), tmp_path)
    for part in ("model.visual.blocks.0.attn.qkv.weight", "model.language_model.layers.0.mlp.up_proj.weight"):
        assert not torch.equal(model.state_dict()[part], before[part])


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C in the middle of the second epoch, a checkpoint after the step before."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    rows: list[PackedRow], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(save_steps=4)  # two epochs of three steps, images mirrored at random
    whole, broken, again = (build_model(processor) for _ in range(3))
    train_student(whole, processor, rows, recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train_student(broken, processor, rows, recipe, tmp_path / "broken")
    with pytest.raises(ConfigError, match="unfinished run; continue it with --resume"):
        train_student(again, processor, rows, recipe, tmp_path / "broken")
    train_student(again, processor, rows, recipe, tmp_path / "broken", resume=True)
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, again.state_dict()[name], atol=1e-6), name


def test_without_rows_nothing_is_trained(processor: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trace is left to train the student on"):
        train_student(build_model(processor), processor, [], recipe_of(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_frozen_tower_stays_while_images_are_altered(rows: list[PackedRow], processor: Any, tmp_path: Path) -> None:
    recipe = recipe_of(freeze_vision=True, augment={"crop": 0.5, "jitter": 0.2})
    model = build_model(processor, convolutional=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_student(model, processor, rows, recipe, tmp_path)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("model.vision_model.") for name in moved)
    assert "model.connector.modality_projection.proj.weight" in moved
    assert "model.text_model.layers.0.mlp.up_proj.weight" in moved


def test_images_with_texts_of_their_own_cannot_be_mixed() -> None:
    with pytest.raises(ConfigError, match=r"student\.augment\.mixup is 0\.5; a response belongs to one image"):
        recipe_of(augment={"mixup": 0.5})
