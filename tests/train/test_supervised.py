"""Supervised fine-tuning, end to end on a few scenes."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_recipe

from emocaliber.evaluate.prompting import image_block_of, render_prompts
from emocaliber.evaluate.responders import Drawing
from emocaliber.evaluate.transformers_responder import TransformersResponder
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.grammar import REASONING_TAGS, parse_response
from emocaliber.runtime.samples import Sample
from emocaliber.train import run
from emocaliber.train.conversations import request_of, response_of
from emocaliber.train.models import build_model
from emocaliber.train.recipe import Recipe
from emocaliber.train.supervised import train_supervised

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


def fresh(recipe: Recipe, processor: Any) -> Any:
    assert recipe.teacher.build is not None
    return build_model(recipe.teacher.build, processor, seed=0)


def stage_of(**table: Any) -> Recipe:
    return tiny_recipe(reason={"learning_rate": 5e-3, "batch_size": 2, "epochs": 1, **table})


@pytest.fixture
def short(scenes: list[Sample]) -> list[Sample]:
    """Four scenes with different answers and a reasoning of few words, so that a test can teach them."""
    chosen = {sample.answer: sample for sample in scenes}
    assert len(chosen) >= 3
    samples = (list(chosen.values()) + scenes)[:4]
    return [
        dataclasses.replace(sample, reasoning={tag: f"{tag} {i}" for tag in REASONING_TAGS}, confidence=0.2 + 0.2 * i)
        for i, sample in enumerate(samples)
    ]


def test_the_trainer_sees_what_the_runtime_will_ask(short: list[Sample], processor: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(verbalize={"learning_rate": 1e-3, "batch_size": 4, "epochs": 1, "direct_share": 0.5})
    model = fresh(recipe, processor)
    batches: list[dict[str, torch.Tensor]] = []
    model.register_forward_pre_hook(
        lambda module, positional, inputs: batches.append({**inputs}) if "labels" in inputs else None,
        with_kwargs=True,
    )
    train_supervised("verbalize", model, processor, short, recipe, tmp_path)
    prompts, block = render_prompts(processor, recipe.prompt), image_block_of(processor)
    expected = {}
    for mode in ("direct", "reason"):
        prompt = prompts.of(mode)
        asked = processor.tokenizer.encode(
            prompt.prefix(LABELS) + block.text() + prompt.after_image, add_special_tokens=False
        )
        for sample in short:
            response = response_of(sample, mode, sample.confidence) + "<end_of_utterance>"
            told = processor.tokenizer.encode(response, add_special_tokens=False)
            expected[tuple(asked + told)] = (mode, len(asked), told)
    seen = []
    for ids, mask, labels in zip(*(batches[0][key] for key in ("input_ids", "attention_mask", "labels")), strict=True):
        mode, start, told = expected[tuple(ids[mask == 1].tolist())]
        seen.append(mode)
        learnt = labels[mask == 1].tolist()
        # The prompt is not learnt, the whole response is, its end included.
        assert learnt[:start] == [-100] * start
        assert learnt[start:] == told
    assert sorted(seen) == ["direct", "direct", "reason", "reason"]


def test_a_few_samples_are_learnt_by_heart(short: list[Sample], processor: Any, tmp_path: Path) -> None:
    recipe = stage_of(learning_rate=1e-2, batch_size=4, epochs=40, direct_share=0.0)
    model = fresh(recipe, processor)
    stage = train_supervised("reason", model, processor, short, recipe, tmp_path)
    record = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    assert (record["stage"], record["seed"], record["recipe"]["reason"]["epochs"]) == ("reason", 0, 40)
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert len(losses) == 40
    assert losses[-1] < 0.1 * losses[0]
    # The trained model sees which scene it is.
    responder = TransformersResponder(model.eval(), processor, name="tiny", batch_size=4)
    requests = [request_of(sample, recipe.prompt, "reason") for sample in short]
    responses = responder.respond(requests, Drawing(max_new_tokens=60))
    for sample, (text,) in zip(short, responses, strict=True):
        parsed = parse_response(text, LABELS, "reason", needs_confidence=False)
        assert (parsed.answer, parsed.confidence) == (sample.answer, None)
        assert parsed.reasoning == sample.reasoning


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C in the middle of the second epoch, a checkpoint after the step before."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    short: list[Sample], processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stage_of(batch_size=1, epochs=2, save_steps=1, direct_share=0.5)  # four steps an epoch
    whole, broken = fresh(recipe, processor), fresh(recipe, processor)
    train_supervised("reason", whole, processor, short, recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train_supervised("reason", broken, processor, short, recipe, tmp_path / "broken")
    assert not (tmp_path / "broken" / "stage.json").exists()
    (kept,) = (tmp_path / "broken" / run.CHECKPOINTS).glob("checkpoint-*/stage.json")
    origin = json.loads(kept.read_text(encoding="utf-8"))
    assert (origin["stage"], origin["seed"], origin["recipe"]["reason"]["epochs"]) == ("reason", 0, 2)
    assert origin["trl"] == version("trl")
    again = fresh(recipe, processor)
    with pytest.raises(ConfigError, match="unfinished run; continue it with --resume"):
        train_supervised("reason", again, processor, short, recipe, tmp_path / "broken")
    train_supervised("reason", again, processor, short, recipe, tmp_path / "broken", resume=True)
    assert run.finished(tmp_path / "broken")
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, again.state_dict()[name], atol=1e-6), name
    assert not torch.allclose(whole.lm_head.weight, broken.lm_head.weight, atol=1e-4)


def test_no_more_samples_than_asked(short: list[Sample], processor: Any, tmp_path: Path) -> None:
    recipe = stage_of(max_samples=2, batch_size=1)
    train_supervised("reason", fresh(recipe, processor), processor, short, recipe, tmp_path)
    history = json.loads((tmp_path / "stage.json").read_text(encoding="utf-8"))["history"]
    assert history[-1]["step"] == 2
