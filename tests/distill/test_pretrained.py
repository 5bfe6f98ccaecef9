"""Students that start from a model at a path, taught by a teacher of another family: the recipes, at a tiny size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import tiny_family
from tiny_model import build_model, build_processor
from tiny_run import tiny_recipe

from emocaliber.distill.collect import read_traces
from emocaliber.distill.stages import open_model, run_collect, run_student
from emocaliber.evaluate.prompting import image_block_of, render_prompts
from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.grammar import TAG_TOKENS
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample, write_samples
from emocaliber.train.model_recipe import ModelRecipe
from emocaliber.train.models import add_tags, pretrained_student
from emocaliber.train.recipe import load_recipe
from emocaliber.train.workspace import Workspace

RECIPES = Path(__file__).parents[2] / "recipes"
PIXELS = {"teacher": 96 * 96, "student": 64 * 64}


def publish(folder: Path, model: Any, processor: Any) -> Path:
    """Returns the folder with a model in it, as transformers writes it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def smolvlm() -> tuple[Any, Any]:
    processor = build_processor(as_published=True)
    return build_model(processor), processor


@pytest.mark.parametrize("name", ["smolvlm-256m", "qwen3-vl-2b"])
def test_the_recipe_distils(name: str, scenes: list[Sample], tmp_path: Path) -> None:
    qwen = name == "qwen3-vl-2b"
    teacher = publish(tmp_path / "teacher", *tiny_family("qwen2_5_vl", tags=False))
    start = publish(tmp_path / "start", *(tiny_family("qwen3_vl", tags=False) if qwen else smolvlm()))
    tasks = ("emoset-8", "fi-2", "webemo-7")
    samples = [
        dataclasses.replace(scene, taxonomy=task, votes=None, posterior=None, answer=None, id=task)
        for scene, task in zip(scenes, tasks, strict=False)
    ]
    write_samples(samples, tmp_path / "samples.jsonl")
    changes = [f"data.samples={tmp_path / 'samples.jsonl'}", f"teacher.path={teacher}", f"student.model.path={start}"]
    changes += [
        f"taxonomies={json.dumps(tasks)}",
        "teacher.min_pixels=1024",
        f"teacher.max_pixels={PIXELS['teacher']}",
        "student.precision=fp32",
    ]
    changes += ["student.batch_size=4", "student.micro_batch=2", "student.epochs=3"]
    if qwen:
        changes += ["student.model.min_pixels=1024", f"student.model.max_pixels={PIXELS['student']}"]
    recipe, workspace = load_recipe(RECIPES / name / "recipe.toml", changes), Workspace(tmp_path / "run")
    run_collect(recipe, workspace)
    traces = read_traces(workspace.traces)
    assert {(trace["taxonomy"], trace["mode"]) for trace in traces} == {
        (t, m) for t in tasks for m in ("direct", "reason")
    }
    stage = run_student(recipe, workspace)
    record = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert len(losses) > 1
    assert losses[-1] < losses[0]

    model, processor = load_model(stage.folder), load_processor(stage.folder)
    first, last = load_model(start), load_model(teacher)
    assert type(model) is type(first) is not type(last)
    assert type(processor) is type(load_processor(start))
    assert not torch.equal(model.lm_head.weight[: len(first.lm_head.weight)], first.lm_head.weight)
    for tag in TAG_TOKENS:
        assert len(processor.tokenizer.encode(tag, add_special_tokens=False)) == 1
    if qwen:
        assert processor.image_processor.size["longest_edge"] == PIXELS["student"]
    else:
        assert image_block_of(processor).count == 4
        assert render_prompts(processor, recipe.student_prompt)
    scored = open_model(recipe, stage.folder, student=True).score([scenes[0].image], ("joy", "fear"), "direct")
    assert scored.label_scores.shape == (1, 1, 2)


def test_a_published_model_becomes_a_student(tmp_path: Path) -> None:
    before, _ = smolvlm()
    path = publish(tmp_path / "start", *smolvlm())
    model, processor = pretrained_student(ModelRecipe(path=str(path)))
    published = load_processor(path)
    image = [[Image.effect_noise((90, 60), 80).convert("RGB")]]
    assert published(text=["<image>"], images=image, return_tensors="pt")["pixel_values"].shape[1] > 1
    assert processor(text=["<image>"], images=image, return_tensors="pt")["pixel_values"].shape == (1, 1, 3, 32, 32)
    known = len(published.tokenizer)
    assert len(processor.tokenizer) == known + len(TAG_TOKENS) == len(model.lm_head.weight)
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    # What it could do before it still can, and a tag means what its letters meant.
    old, new = before.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(new[:known], old)
    assert model.lm_head.weight is new
    pieces = published.tokenizer.encode("</think>", add_special_tokens=False)
    assert len(pieces) > 1
    (tag,) = processor.tokenizer.encode("</think>", add_special_tokens=False)
    torch.testing.assert_close(new[tag], sum(old[piece] for piece in pieces) / len(pieces))
    again, same = pretrained_student(ModelRecipe(path=str(publish(tmp_path / "again", model, processor))))
    assert len(same.tokenizer) == len(processor.tokenizer)
    assert torch.equal(again.get_input_embeddings().weight, new)
    assert same.tokenizer.decode([tag], skip_special_tokens=True) == "</think>"


def test_tags_fill_the_room_that_a_vocabulary_leaves() -> None:
    """Qwen's tables have more rows than its tokenizer has tokens, and its output layer is not always its input's."""
    model, processor = tiny_family("qwen2_5_vl", tags=False)
    tokenizer = processor.tokenizer
    known = len(tokenizer)
    model.resize_token_embeddings(known + 40, mean_resizing=False)
    tokenizer.add_tokens(["<think>"])  # as Qwen3's own tokenizer
    add_tags(model, tokenizer)
    assert len(tokenizer) == known + len(TAG_TOKENS)
    for table in (model.get_input_embeddings().weight, model.lm_head.weight):
        assert len(table) == known + 40
        (tag,) = tokenizer.encode("<answer>", add_special_tokens=False)
        assert tag >= known
        assert float(table[tag].detach().abs().max()) > 0
    assert model.lm_head.weight is not model.get_input_embeddings().weight


def test_a_student_built_for_another_family_is_refused(scenes: list[Sample], tmp_path: Path) -> None:
    teacher = publish(tmp_path / "teacher", *tiny_family("qwen2_vl"))
    write_samples(scenes[:2], tmp_path / "samples.jsonl")
    recipe = tiny_recipe(
        data={"samples": str(tmp_path / "samples.jsonl")},
        teacher={"path": str(teacher), "trained": "calibrate"},
        calibrate=None,
        vision=None,
    )
    workspace = Workspace(tmp_path / "run")
    run_collect(recipe, workspace)
    with pytest.raises(ConfigError, match=r"is of family idefics3, and would read .* its teacher, which is a qwen2_vl"):
        run_student(recipe, workspace)


def test_the_student_is_asked_before_it_sees() -> None:
    recipe = load_recipe(RECIPES / "smolvlm-256m" / "recipe.toml")
    assert recipe.prompt.image_first
    assert recipe.student is not None
    assert recipe.student_prompt is recipe.student.prompt
    silent = dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, prompt=None))
    assert silent.student_prompt == dataclasses.replace(recipe.prompt, image_first=False)
    with pytest.raises(ConfigError, match="reads its instruction before the image"):
        dataclasses.replace(recipe.student, prompt=PromptTemplate(image_first=True))
