"""The order of the distillation's stages, and ``emocaliber distill``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_recipe

from emocaliber.distill import stages
from emocaliber.distill.stages import open_model, run_collect, run_fit, run_student
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import ArtifactError, ConfigError, InputError
from emocaliber.runtime.samples import Sample, write_samples
from emocaliber.train.models import build_model, build_processor, corpus
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import RECORD, Stage, save_stage
from emocaliber.train.workspace import Workspace, load_samples


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def finish(workspace: Workspace, name: str) -> None:
    """Leaves the record of a stage that has run, and nothing else."""
    folder = workspace.stage(name)
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"stage": name, "wall_s": 1.5}), encoding="utf-8")


def teacher_of(recipe: Recipe, workspace: Workspace) -> Any:
    """Leaves a teacher with random weights, as stage *calibrate* would, and returns it."""
    assert recipe.teacher.build is not None
    samples = load_samples(recipe, workspace, "train")
    processor = build_processor(recipe.teacher.build, corpus(samples, recipe.prompt))
    model = build_model(recipe.teacher.build, processor, seed=5)
    save_stage("calibrate", workspace.stage("calibrate"), model, processor, recipe, started=0.0, history=[])
    return model


def test_stages_out_of_order_are_refused(workspace: Workspace) -> None:
    recipe = tiny_recipe()
    with pytest.raises(
        ArtifactError, match=r"calibrate holds no finished stage; run 'emocaliber train calibrate' first"
    ):
        run_collect(recipe, workspace)
    with pytest.raises(ArtifactError, match="holds no traces; run 'emocaliber distill collect' first"):
        run_student(recipe, workspace)
    with pytest.raises(ArtifactError, match="holds no finished stage; run 'emocaliber distill train' first"):
        stages.run_bundle(recipe, workspace)
    with pytest.raises(ArtifactError):
        run_fit(recipe, workspace)


def test_a_finished_student_is_not_trained_again(workspace: Workspace) -> None:
    finish(workspace, "student")
    assert run_student(tiny_recipe(), workspace).wall_s == 1.5


def test_a_recipe_without_the_table_cannot_run_the_stage(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"has no \[collect\] table"):
        run_collect(tiny_recipe(collect=None), workspace)


def test_traces_and_students_belong_together(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(collect={"images": 5, "samples": 1, "batch_size": 5})
    teacher = teacher_of(recipe, workspace)
    assert run_collect(recipe, workspace) == workspace.traces
    trained: list[dict[str, Any]] = []

    def train(model: Any, processor: Any, rows: Any, recipe: Recipe, folder: Path, *, resume: bool) -> Stage:
        trained.append({"model": model, "rows": rows, "folder": folder, "resume": resume})
        return Stage(name="student", folder=folder, wall_s=0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "train_student", train)
        run_student(recipe, workspace, resume=True)
    (call,) = trained
    assert (call["folder"], call["resume"]) == (workspace.stage("student"), True)
    # Random weights answer by the grammar only where they need not reason.
    assert [row.mode for row in call["rows"]] == ["direct"] * 5
    assert "5 of 10 traces do not follow the grammar and are left out" in capsys.readouterr().err
    # The student sees what the teacher sees, but its decoder is new.
    ours, theirs = call["model"].state_dict(), teacher.state_dict()
    tower = "model.vision_model.embeddings.patch_embedding.weight"
    assert torch.equal(ours[tower], theirs[tower])
    assert not torch.equal(ours["lm_head.weight"], theirs["lm_head.weight"])


def test_traces_of_another_recipe_or_teacher_are_refused(workspace: Workspace) -> None:
    table = {"images": 2, "batch_size": 2}
    recipe = tiny_recipe(collect=table)
    teacher_of(recipe, workspace)
    run_collect(recipe, workspace)
    with pytest.raises(ConfigError, match=r"other settings \(images was .*; seed was 0, now 1\)"):
        run_collect(dataclasses.replace(recipe, seed=1), workspace)
    prompt = dataclasses.replace(recipe.prompt, direct="Well? [{labels}]")
    with pytest.raises(ConfigError, match=r"other settings \(prompt was"):
        run_collect(dataclasses.replace(recipe, prompt=prompt), workspace)
    with pytest.raises(ConfigError, match=r"collect.label_orders was 1, now 2"):
        run_collect(tiny_recipe(collect={**table, "label_orders": 2}), workspace)
    record = workspace.stage("calibrate") / RECORD
    record.write_text(json.dumps({"stage": "calibrate", "wall_s": 2.5}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other settings \(weights was"):
        run_collect(recipe, workspace)


def test_a_taxonomy_without_an_image_is_an_error(workspace: Workspace) -> None:
    recipe = tiny_recipe(collect={"images": 3}, taxonomies=["emotion6-7", "sentiment-2"])
    teacher_of(recipe, workspace)
    samples = [sample for sample in load_samples(recipe, workspace, "train") if sample.taxonomy == "emotion6-7"]
    write_samples(samples, workspace.data / "samples.jsonl")
    message = r"none of the 3 images to be traced has the taxonomy sentiment-2, .* raise collect.images \(\d+ images"
    with pytest.raises(InputError, match=message):
        run_collect(recipe, workspace)


def test_a_student_of_other_sight_starts_from_scratch(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(collect={"images": 2, "batch_size": 2})
    teacher = teacher_of(recipe, workspace)
    run_collect(recipe, workspace)
    assert recipe.student is not None
    assert recipe.student.model.build is not None
    finer = dataclasses.replace(recipe.student.model.build, patch_size=8, scale_factor=2)
    student = dataclasses.replace(recipe.student, model=dataclasses.replace(recipe.student.model, build=finer))
    monkeypatch.setattr(stages, "train_student", lambda model, *_, **__: model)
    model: Any = run_student(dataclasses.replace(recipe, student=student), workspace)
    tower = "model.vision_model.embeddings.patch_embedding.weight"
    assert model.state_dict()[tower].shape != teacher.state_dict()[tower].shape


def test_an_opened_model_scores(workspace: Workspace, scenes: list[Sample]) -> None:
    recipe = tiny_recipe()
    teacher_of(recipe, workspace)
    scored = open_model(recipe, workspace.stage("calibrate")).score(
        [scenes[0].image], scenes[0].resolve().labels, "direct"
    )
    assert scored.label_scores.shape == (1, 1, 7)


@pytest.mark.usefixtures("loud_again")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "train", "missing.toml"]) == 1
    assert capsys.readouterr().err == "emocaliber: error: cannot read recipe missing.toml: No such file or directory\n"
    words = ["name = 'small'", "[data]", "samples = 's.jsonl'", "[teacher]", "path = 't'"]
    Path("recipe.toml").write_text("\n".join(words), encoding="utf-8")
    assert main(["distill", "collect", "recipe.toml"]) == 1
    assert "recipe small has no [collect] table" in capsys.readouterr().err
    finish(Workspace(Path("runs/small")), "student")
    assert main(["distill", "train", "recipe.toml"]) == 0
    assert capsys.readouterr().out == "runs/small/student\n"
    for usage in (["nonsense", "recipe.toml"], ["train"]):
        with pytest.raises(SystemExit) as caught:
            main(["distill", *usage])
        assert caught.value.code == 2


@pytest.mark.parametrize(
    ("samples", "kept"),
    [("sets:/home/me/sets", "sets:FOLDER"), ("/home/me/samples.jsonl", "samples.jsonl"), ("scenes:8", "scenes:8")],
)
def test_a_bundle_does_not_tell_of_the_folders_it_was_made_in(samples: str, kept: str) -> None:
    recipe = tiny_recipe(data={"samples": samples})
    mapping = stages._published(recipe)
    assert mapping["data"]["samples"] == kept
    assert "/home" not in json.dumps(mapping)
    assert recipe.data.samples == samples
