"""GRPO, end to end: a policy that was taught the grammar is rewarded for what it states."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_recipe
from transformers import Idefics3ForConditionalGeneration

from emocaliber.evaluate.prompting import image_block_of, render_prompts
from emocaliber.evaluate.transformers_loading import load_model
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.grammar import MODES
from emocaliber.runtime.samples import Sample
from emocaliber.train import reinforce
from emocaliber.train.models import build_model
from emocaliber.train.reinforce import train_reinforce
from emocaliber.train.rewards import make_reward, reward_of
from emocaliber.train.supervised import train_supervised

# TRL 1.16 still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
TAUGHT = {"learning_rate": 1e-2, "batch_size": 4, "epochs": 12, "direct_share": 1.0}
RECIPE = tiny_recipe(
    verbalize=TAUGHT,
    calibrate={
        "learning_rate": 1e-3,
        "steps": 2,
        "prompts_per_step": 2,
        "rollouts": 4,
        "max_new_tokens": 16,
        "direct_share": 0.5,
        "kl": 0.04,
    },
)


@pytest.fixture(scope="module")
def policy(scenes: list[Sample], processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt to answer at once, most of the time by the grammar."""
    assert RECIPE.teacher.build is not None
    samples = [dataclasses.replace(sample, confidence=0.3) for sample in scenes]
    folder = tmp_path_factory.mktemp("policy")
    model = build_model(RECIPE.teacher.build, processor, seed=0)
    return train_supervised("verbalize", model, processor, samples, RECIPE, folder).folder


def test_the_policy_is_rewarded_for_its_own_responses(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewarded: list[tuple[Any, ...]] = []
    asked: list[torch.Tensor] = []
    reward, generate = make_reward("bounded"), Idefics3ForConditionalGeneration.generate

    def recording_reward(**columns: Any) -> list[float | None]:
        earned = reward(**columns)
        texts = [completion[0]["content"] for completion in columns["completions"]]
        rewarded.extend(zip(texts, columns["candidates"], columns["truth"], columns["mode"], earned, strict=True))
        return earned

    def recording_generate(self: Any, *arguments: Any, **inputs: Any) -> Any:
        asked.extend(ids[mask == 1] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True))
        return generate(self, *arguments, **inputs)

    monkeypatch.setattr(reinforce, "make_reward", lambda kind: recording_reward)
    monkeypatch.setattr(Idefics3ForConditionalGeneration, "generate", recording_generate)
    stage = train_reinforce(policy, processor, scenes, RECIPE, tmp_path)

    # Two steps, two images, four rollouts each; the truth is each scene's own votes.
    assert len(rewarded) == 16
    votes = [sample.distribution() for sample in scenes]
    for text, candidates, truth, mode, earned in rewarded:
        assert tuple(candidates) == LABELS
        assert truth in votes
        assert earned == reward_of(text, LABELS, truth, mode, "bounded")
    assert sum(earned > 0 for *_, earned in rewarded) >= 4
    # It is asked in the tokens of which the runtime asks.
    prompts, block = render_prompts(processor, RECIPE.prompt), image_block_of(processor)
    texts = {mode: prompts.of(mode).prefix(LABELS) + block.text() + prompts.of(mode).after_image for mode in MODES}
    expected = {tuple(processor.tokenizer.encode(text, add_special_tokens=False)) for text in texts.values()}
    assert {tuple(ids.tolist()) for ids in asked} == expected

    record = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    assert (record["stage"], record["recipe"]["calibrate"]["rollouts"]) == ("calibrate", 4)
    logged = [entry for entry in record["history"] if "reward" in entry]
    assert len(logged) == 2
    assert {"kl", "parse_rate"} <= set(logged[0])
    mean = sum(earned for *_, earned in rewarded) / 16
    assert sum(entry["reward"] for entry in logged) / 2 == pytest.approx(mean, abs=1e-4)
    before, after = load_model(policy), load_model(stage.folder)
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_what_is_missing_is_named_before_anything_runs(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    blank = [dataclasses.replace(sample, answer=None, votes=None) for sample in scenes]
    with pytest.raises(InputError, match="has neither votes nor an answer; nothing can reward a response"):
        train_reinforce(policy, processor, blank, RECIPE, tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="unfinished run"):
        train_reinforce(policy, processor, scenes, RECIPE, tmp_path)
