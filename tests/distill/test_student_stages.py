"""The stages that refine a student: what each starts from, and which student is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_recipe

from emocaliber.distill import stages
from emocaliber.distill.stages import run_bundle, run_ground, run_on_policy, student_stages
from emocaliber.runtime.errors import ArtifactError, ConfigError
from emocaliber.train.models import build_model, build_processor, corpus
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import Stage, save_stage
from emocaliber.train.workspace import Workspace, load_samples

GROUND = {"learning_rate": 1e-3, "batch_size": 4, "images": 4}
ON_POLICY = {"learning_rate": 1e-3, "batch_size": 2, "steps": 1}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def leave(name: str, recipe: Recipe, workspace: Workspace) -> None:
    """Leaves a model with random weights, as the stage would."""
    assert recipe.teacher.build is not None
    processor = build_processor(recipe.teacher.build, corpus(load_samples(recipe, workspace, "train"), recipe.prompt))
    model = build_model(recipe.teacher.build, processor, seed=5)
    save_stage(name, workspace.stage(name), model, processor, recipe, started=0.0, history=[])


def test_the_last_student_of_a_recipe() -> None:
    assert student_stages(tiny_recipe()) == ("student",)
    assert student_stages(tiny_recipe(ground=GROUND)) == ("student", "ground")
    assert student_stages(tiny_recipe(ground=GROUND, on_policy=ON_POLICY)) == ("student", "on_policy", "ground")


def test_stages_out_of_order_are_refused(workspace: Workspace) -> None:
    recipe = tiny_recipe(ground=GROUND, on_policy=ON_POLICY)
    for run in (run_on_policy, lambda recipe, workspace: run_ground(tiny_recipe(ground=GROUND), workspace)):
        with pytest.raises(
            ArtifactError, match="student holds no finished stage; run 'emocaliber distill train' first"
        ):
            run(recipe, workspace)
    with pytest.raises(ArtifactError, match="on_policy holds no finished stage; run 'emocaliber distill on-policy'"):
        run_ground(recipe, workspace)
    with pytest.raises(ArtifactError, match="ground holds no finished stage; run 'emocaliber distill ground' first"):
        run_bundle(recipe, workspace)
    for run, table in ((run_ground, "ground"), (run_on_policy, "on_policy")):
        with pytest.raises(ConfigError, match=rf"has no \[{table}\] table"):
            run(tiny_recipe(), workspace)


def test_without_a_teacher_nobody_corrects_the_student(workspace: Workspace) -> None:
    recipe = tiny_recipe(on_policy=ON_POLICY)
    leave("student", recipe, workspace)
    with pytest.raises(ArtifactError, match="calibrate holds no finished stage; run 'emocaliber train calibrate'"):
        run_on_policy(recipe, workspace)


def test_other_label_sets_are_refused(workspace: Workspace) -> None:
    recipe = tiny_recipe(on_policy=ON_POLICY, ground=GROUND)
    leave("student", recipe, workspace)
    leave("calibrate", tiny_recipe(taxonomies=["sentiment-2"]), Workspace(workspace.root / "other"))
    (workspace.root / "other" / "calibrate").rename(workspace.stage("calibrate"))
    with pytest.raises(
        ConfigError, match=r"calibrate has learnt the label sets sentiment-2, but recipe tiny asks for emo"
    ):
        run_on_policy(recipe, workspace)
    asked = tiny_recipe(ground=GROUND, taxonomies=["emotion6-7", "sentiment-2"])
    with pytest.raises(ConfigError, match=r"student has learnt the label sets emotion6-7, but .* asks for sentiment-2"):
        run_ground(asked, workspace)


def test_a_student_is_asked_first_about_what_it_has_not_seen(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(collect={"images": 5}, ground={**GROUND, "images": 99})
    leave("student", recipe, workspace)
    calls: list[dict[str, Any]] = []

    def train(model: Any, processor: Any, samples: Any, recipe: Recipe, folder: Path, **settings: Any) -> Stage:
        calls.append({"from": model.name_or_path, "samples": samples, "folder": folder, **settings})
        return Stage(name="ground", folder=folder, wall_s=0.0)

    monkeypatch.setattr(stages, "train_grounded", train)
    run_ground(recipe, workspace, resume=True)
    (call,) = calls
    assert (call["from"], call["folder"]) == (str(workspace.stage("student")), workspace.stage("ground"))
    assert (call["max_new_tokens"], call["resume"]) == (12, True)
    traced = {sample.id for sample in stages.chosen_samples(recipe, workspace, 5)}
    count = len(call["samples"])
    known = [sample.id in traced for sample in call["samples"]]
    assert known == [False] * (count - 5) + [True] * 5
    assert f"the student has learnt from 5 of the {count} images it is asked about" in capsys.readouterr().err


def test_the_grounded_student_is_the_one_that_is_exported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(ground=GROUND)
    for name in ("student", "ground"):
        leave(name, recipe, workspace)
    monkeypatch.setattr(stages, "write_bundle", lambda folder, model, *_, **__: model.name_or_path)
    assert str(run_bundle(recipe, workspace)) == str(workspace.stage("ground"))
    assert str(run_bundle(tiny_recipe(), workspace)) == str(workspace.stage("student"))


def test_static_ranges_are_found_on_calibration_images(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def write(folder: Path, *_: Any, calibration_samples: Any) -> Path:
        given.append(calibration_samples)
        return folder

    monkeypatch.setattr(stages, "write_bundle", write)
    bundle = {"name": "tiny", "license": "Apache-2.0"}
    for precisions in (["int8"], ["int8", "qdq-fp16"]):
        recipe = tiny_recipe(bundle={**bundle, "precisions": precisions})
        leave("student", recipe, workspace)
        run_bundle(recipe, workspace)
    assert given[0] == ()
    assert {sample.split for sample in given[1]} == {"calibration"}
