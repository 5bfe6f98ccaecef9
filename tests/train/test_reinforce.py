"""GRPO, end to end: a policy that was taught the grammar is rewarded for what it states."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_qwen import save_tiny_qwen
from tiny_run import tiny_recipe
from transformers import Idefics3ForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

from emocaliber.evaluate.prompting import image_block_of, render_prompts
from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.runtime.errors import BackendError, ConfigError, InputError
from emocaliber.runtime.grammar import MODES
from emocaliber.runtime.samples import Sample
from emocaliber.train import reinforce, run
from emocaliber.train.models import build_model
from emocaliber.train.recipe import Recipe
from emocaliber.train.reinforce import train_reinforce, use_vllm
from emocaliber.train.rewards import make_reward, reward_of
from emocaliber.train.stage_recipes import AlarmRecipe
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
    samples = [dataclasses.replace(sample, confidence=0.2 * (1 + i % 4)) for i, sample in enumerate(scenes)]
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
    assert {"kl", "parse_rate", "brier", "confidence", "confidence_entropy", "ece", "stated"} <= set(logged[0])
    # Every response that parses is in the tally of its step.
    for entry in logged:
        assert sum(entry["stated"]["count"]) == pytest.approx(8 * entry["parse_rate"])
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


def recipe_of(**changes: Any) -> Recipe:
    return dataclasses.replace(RECIPE, calibrate=dataclasses.replace(RECIPE.stage("calibrate"), **changes))


def series_of(folder: Path) -> list[dict[str, Any]]:
    """Returns what each step logged, but for times and tallies."""
    history = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["history"]
    return [
        {name: value for name, value in entry.items() if name not in ("step_time", "stated")}
        for entry in history
        if "loss" in entry
    ]


class Interrupting(run.ProgressBar):
    """Presses Ctrl-C after the third step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("prompts_per_draw", [2, 4])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    prompts_per_draw: int,
) -> None:  # fmt: skip
    # Twelve prompts of five scenes: the samples are gone through more than twice.
    recipe = recipe_of(steps=6, prompts_per_draw=prompts_per_draw, save_steps=1, micro_batch=4)
    train_reinforce(policy, processor, scenes[:5], recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train_reinforce(policy, processor, scenes[:5], recipe, tmp_path / "broken")
    # Never between two steps that share a draw.
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    train_reinforce(policy, processor, scenes[:5], recipe, tmp_path / "broken", resume=True)
    whole, broken = series_of(tmp_path / "whole"), series_of(tmp_path / "broken")
    assert len(whole) == 6
    assert len({entry["loss"] for entry in whole}) == 6
    assert sum("reward" in entry for entry in whole) == 12 // prompts_per_draw
    for ours, theirs in zip(whole, broken, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_one_by_one_or_all_at_once_is_the_same_run(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path
) -> None:
    """The responses are drawn all at once anyhow, and the loss weighs their tokens alike however they are cut."""
    runs = []
    for size in (8, 1):
        train_reinforce(policy, processor, scenes, recipe_of(steps=3, micro_batch=size), tmp_path / str(size))
        runs.append(series_of(tmp_path / str(size)))
    for name in ("reward", "loss", "grad_norm", "completions/mean_length", "brier"):
        whole, single = ([entry[name] for entry in steps] for steps in runs)
        assert single == pytest.approx(whole, abs=1e-4), name


def test_a_step_is_cut_evenly_whatever_it_takes() -> None:
    assert recipe_of(prompts_per_draw=6).stage("calibrate").steps_per_draw == 3
    assert recipe_of(micro_batch=8).stage("calibrate").steps_per_draw == 1
    with pytest.raises(ConfigError, match="responses of a step is 8, not a multiple of its parts of 3"):
        recipe_of(micro_batch=3)
    with pytest.raises(ConfigError, match="responses of a step is 2, not a multiple of its parts of 8"):
        recipe_of(method="tokenized-brier", micro_batch=8)
    with pytest.raises(ConfigError, match="prompts_per_draw is 3, not a multiple of its parts of 2"):
        recipe_of(prompts_per_draw=3)


def test_a_resumed_run_takes_the_new_learning_rate(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(steps=4, save_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(run, "ProgressBar", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train_reinforce(policy, processor, scenes, recipe, tmp_path)
    train_reinforce(policy, processor, scenes, recipe_of(steps=4, learning_rate=1e-5), tmp_path, resume=True)
    # 1e-3 falls to 0 in four steps, and so does 1e-5.
    assert [entry["learning_rate"] for entry in series_of(tmp_path)] == pytest.approx([1e-3, 7.5e-4, 5e-6, 2.5e-6])


def test_a_policy_that_states_one_value_is_stopped(
    processor: Any, scenes: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert RECIPE.teacher.build is not None
    samples = [dataclasses.replace(sample, confidence=0.9) for sample in scenes]
    model = build_model(RECIPE.teacher.build, processor, seed=0)
    sure = train_supervised("verbalize", model, processor, samples, RECIPE, tmp_path / "sure").folder
    folder = tmp_path / "stopped"
    alarm = AlarmRecipe(entropy=0.5, patience=3)
    recipe = recipe_of(steps=9, direct_share=1.0, save_steps=1, alarm=alarm, temperature=0.5)
    with pytest.raises(ConfigError, match=r"collapsed to one confidence: at step 3 of 9 the entropy .* is 0\.000 nats"):
        train_reinforce(sure, processor, scenes, recipe, folder)
    # No checkpoint of a collapsed policy, no finished stage, but the drawing shows what happened.
    assert not list((folder / "checkpoints").glob("checkpoint-*"))
    assert not (folder / "stage.json").exists()
    assert "step 3 of 9" in (folder / "curves.svg").read_text(encoding="utf-8")
    warned = dataclasses.replace(alarm, action="warn")
    capsys.readouterr()
    train_reinforce(sure, processor, scenes, recipe_of(steps=4, direct_share=1.0, alarm=warned), folder)
    lines = capsys.readouterr().err.splitlines()
    assert sum("warning: stage calibrate has collapsed to one confidence: at step 3" in line for line in lines) == 1


def test_tokens_that_stand_for_an_image_are_not_drawn(
    scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = save_tiny_qwen(tmp_path / "start", scenes, RECIPE.prompt)
    processor = load_processor(start)
    suppressed: list[list[int]] = []
    generate = Qwen2_5_VLForConditionalGeneration.generate

    def recording(self: Any, *arguments: Any, **inputs: Any) -> Any:
        suppressed.append(inputs["generation_config"].suppress_tokens)
        return generate(self, *arguments, **inputs)

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "generate", recording)
    train_reinforce(start, processor, scenes, recipe_of(steps=1), tmp_path / "run")
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    assert suppressed == [sorted(processor.tokenizer.convert_tokens_to_ids(names))]


@pytest.mark.parametrize(
    ("engine", "installed", "cuda", "expected"),
    [("auto", True, True, True), ("auto", True, False, False), ("auto", False, True, False),
     ("transformers", True, True, False), ("vllm", True, True, True)],
)  # fmt: skip
def test_who_draws_the_responses(
    monkeypatch: pytest.MonkeyPatch, engine: str, installed: bool, cuda: bool, expected: bool
) -> None:
    monkeypatch.setattr(reinforce, "is_vllm_available", lambda: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert use_vllm(engine) is expected


def test_vllm_is_told_of_by_trl(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforce, "use_vllm", lambda engine: engine == "vllm")
    for engine, expected in (("vllm", (True, "colocate", None)), ("transformers", (False, "colocate", {}))):
        recipe = recipe_of(rollout_engine=engine)
        arguments = reinforce.arguments_of(recipe.stage("calibrate"), recipe, tmp_path, policy)
        asked = arguments.generation_kwargs
        assert (arguments.use_vllm, arguments.vllm_mode, asked and {}) == expected


def test_vllm_that_is_not_there_is_an_error(
    policy: Path, processor: Any, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reinforce, "is_vllm_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"vLLM is not installed \(pip install 'trl\[vllm\]'\) and there is no CUDA"):
        train_reinforce(policy, processor, scenes, recipe_of(rollout_engine="vllm"), tmp_path)
