"""Qwen2.5-VL, the paper's architecture, through every stage on real photographs: what 7B does, at a tiny size."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from importer_run import run_import
from PIL import Image
from tiny_qwen import save_tiny_qwen, tiny_qwen
from tiny_run import tiny_recipe
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from emocaliber.evaluate.responders import Drawing
from emocaliber.evaluate.responses import read_responses
from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.evaluate.transformers_responder import TransformersResponder, visual_token_ids
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.grammar import REASONING_TAGS, parse_response
from emocaliber.runtime.samples import Sample, read_samples, write_samples
from emocaliber.train.conversations import request_of
from emocaliber.train.recipe import Recipe
from emocaliber.train.stages import STAGES
from emocaliber.train.supervised import train_supervised
from emocaliber.train.workspace import Workspace

# TRL reads the attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PHOTO = Path(__file__).parents[2] / "docs" / "photo.jpg"
WORDS = ("still", "loud", "pale", "near", "wide", "torn", "soft", "grey")
LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


def crops(folder: Path) -> list[Sample]:
    """Returns eight parts of one photograph, of uneven shapes."""
    photo = Image.open(PHOTO).convert("RGB")
    samples = []
    for number in range(8):
        left, top = photo.width * (number % 4) // 6, photo.height * (number // 4) // 3
        box = (left, top, left + photo.width // (2 + number % 3), top + photo.height // (2 + number // 3 % 2))
        path = folder / f"{number}.jpg"
        photo.crop(box).resize((90 + 40 * (number % 3), 150 - 20 * (number % 4))).save(path)
        samples.append(Sample(image=str(path), taxonomy="emotion6-7", votes={LABELS[number % 7]: 3, "neutral": 1}))
    return samples


@pytest.fixture(scope="module", params=["one photograph in parts", "Emotion6"])
def samples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eight photographs with votes, an answer each, and a reasoning that tells them apart."""
    folder = tmp_path_factory.mktemp("photographs")
    if request.param == "Emotion6":
        source = request.getfixturevalue("real_sets") / "emotion6"
        assert run_import("emotion6", source, folder) == 0
        found = read_samples(folder / "samples.jsonl", "train")
        found = [next(sample for sample in found if sample.answer == label) for label in LABELS] + found[-1:]
    else:
        found = crops(folder)
    return [
        dataclasses.replace(
            sample,
            answer=max(sample.votes or {}, key=lambda label: (sample.votes or {})[label]),
            reasoning={tag: f"{word} {tag}" for tag in REASONING_TAGS},
            split="train",
        )
        for sample, word in zip(found, WORDS, strict=True)
    ]


def recipe_of(**changes: Any) -> Recipe:
    prompt = {"reason": "Feel? [{labels}] Think.", "direct": "Feel? [{labels}]", "system": "Help.", "image_first": True}
    return tiny_recipe(**{"prompt": prompt, "vision": None, **changes})


def test_all_stages_run(samples: list[Sample], tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    write_samples(samples, file)
    start = save_tiny_qwen(tmp_path / "start", samples, recipe_of().prompt)
    recipe = recipe_of(
        teacher={"path": str(start), "max_pixels": 140 * 140},
        data={"samples": str(file)},
        # Long enough to write what stage 3 can reward.
        verbalize={"learning_rate": 1e-2, "batch_size": 4, "epochs": 20, "direct_share": 1.0},
        calibrate={
            "learning_rate": 1e-3,
            "steps": 2,
            "prompts_per_step": 4,
            "rollouts": 4,
            "micro_batch": 8,
            "max_new_tokens": 12,
            "direct_share": 1.0,
        },
        respond={"split": "train", "max_new_tokens": 8, "batch_size": 3},
    )
    workspace = Workspace(tmp_path / "run")
    for name in ("reason", "annotate", "verbalize", "calibrate", "respond"):
        STAGES[name](recipe, workspace)
    assert len(read_samples(workspace.annotated)) == 4
    assert [line.ground_truth for line in read_responses(workspace.responses("calibrate"))] == [
        sample.answer for sample in samples
    ]
    folders = [start, *(workspace.stage(name) for name in ("reason", "verbalize", "calibrate"))]
    weights = [load_model(folder).lm_head.weight for folder in folders]
    for before, after in itertools.pairwise(weights):
        assert not torch.equal(before, after)
    processor = load_processor(workspace.stage("calibrate"))
    assert type(processor.image_processor) is Qwen2VLImageProcessorPil
    assert processor.image_processor.size["longest_edge"] == 140 * 140
    rewards = json.loads((workspace.stage("calibrate") / "stage.json").read_text(encoding="utf-8"))["history"]
    assert [entry["reward"] > 0.5 for entry in rewards if "reward" in entry] == [True, True]


def test_a_handful_of_photographs_is_learnt_by_heart(samples: list[Sample], tmp_path: Path) -> None:
    few = samples[:4]
    recipe = recipe_of(reason={"learning_rate": 1e-2, "batch_size": 4, "epochs": 60})
    model, processor = tiny_qwen(few, recipe.prompt)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    train_supervised("reason", model, processor, few, recipe, tmp_path)
    responder = TransformersResponder(model.eval(), processor, name="tiny", batch_size=4)
    requests = [request_of(sample, recipe.prompt, "reason") for sample in few]
    for sample, (text,) in zip(few, responder.respond(requests, Drawing(max_new_tokens=80)), strict=True):
        parsed = parse_response(text, LABELS, "reason", needs_confidence=False)
        assert (parsed.answer, parsed.reasoning) == (sample.answer, sample.reasoning)


def losses_of(samples: Sequence[Sample], micro_batch: int, folder: Path) -> list[float]:
    """Returns the loss of each of six steps on the same eight samples."""
    recipe = recipe_of(
        reason={"learning_rate": 1e-3, "batch_size": 8, "micro_batch": micro_batch, "epochs": 6, "direct_share": 0.5}
    )
    model, processor = tiny_qwen(samples, recipe.prompt)
    train_supervised("reason", model, processor, samples, recipe, folder)
    history = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_one_by_one_or_all_at_once_gives_the_same_losses(samples: list[Sample], tmp_path: Path) -> None:
    whole, single = (losses_of(samples, size, tmp_path / str(size)) for size in (8, 1))
    assert len(whole) == 6
    assert whole[-1] < whole[0] - 0.1
    assert single == pytest.approx(whole, abs=1e-4)


def test_the_processor_is_the_usual_one_without_video(samples: list[Sample], tmp_path: Path) -> None:
    model, processor = tiny_qwen(samples, recipe_of().prompt)
    image = [[Image.open(samples[0].image).convert("RGB")]]
    inputs = processor(text=["<|image_pad|>"], images=image, return_tensors="pt")
    grid = inputs["image_grid_thw"][0]
    assert inputs["input_ids"].shape[1] == int(grid.prod()) // 4
    assert sorted(visual_token_ids(model.config) or ()) == sorted(
        processor.tokenizer.convert_tokens_to_ids(
            ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
        )
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    # Named as what it stands for, and with the file that older programs read.
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "Qwen2_5_VLProcessor"
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["merge_size"] == 2
    again = load_processor(tmp_path, min_pixels=28 * 28, max_pixels=56 * 56)
    assert again.chat_template == processor.chat_template
    small = again(text=["<|image_pad|>"], images=image, return_tensors="pt")
    assert small["input_ids"].shape[1] <= 4 < inputs["input_ids"].shape[1]


def test_pixel_limits_do_not_apply_to_every_family(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "idefics3"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="whose images all have one size"):
        load_processor(tmp_path, max_pixels=100)
