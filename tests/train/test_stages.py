"""The order of the teacher's stages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_recipe

from emocaliber.runtime.errors import ArtifactError, ConfigError
from emocaliber.runtime.samples import Sample, read_samples, write_samples
from emocaliber.train import stages
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import RECORD
from emocaliber.train.stages import STAGES, longest_response, model_after, prepare
from emocaliber.train.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def finish(workspace: Workspace, name: str) -> None:
    """Leaves the record of a stage that has run, and nothing else."""
    folder = workspace.stage(name)
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"stage": name, "wall_s": 1.5}), encoding="utf-8")


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("reason", "vision"), ("annotate", "reason"), ("verbalize", "reason"), ("calibrate", "verbalize")],
)
def test_a_stage_out_of_order_names_the_one_to_run(
    recipe: Recipe, workspace: Workspace, stage: str, missing: str
) -> None:
    with pytest.raises(ArtifactError, match=f"holds no finished stage; run 'emocaliber train {missing}' first"):
        STAGES[stage](recipe, workspace)


def test_verbalize_needs_the_annotated_samples(recipe: Recipe, workspace: Workspace) -> None:
    finish(workspace, "reason")
    with pytest.raises(ArtifactError, match=r"annotated.jsonl is missing; run 'emocaliber train annotate' first"):
        STAGES["verbalize"](recipe, workspace)


@pytest.mark.parametrize("name", ["vision", "reason", "verbalize", "calibrate"])
def test_a_finished_stage_is_not_run_again(recipe: Recipe, workspace: Workspace, name: str) -> None:
    finish(workspace, name)
    stage: Any = STAGES[name](recipe, workspace)
    assert (stage.name, stage.folder, stage.wall_s) == (name, workspace.stage(name), 1.5)
    assert [path.name for path in workspace.root.iterdir()] == [name]


def test_annotations_are_made_once(
    recipe: Recipe, workspace: Workspace, scenes: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def annotate(responder: Any, samples: list[Sample], *_: Any, mode: str, max_new_tokens: int) -> Any:
        calls.append(mode)
        assert max_new_tokens == 12
        return scenes[:2]

    finish(workspace, "reason")
    monkeypatch.setattr(stages, "_responder", lambda *_: None)
    monkeypatch.setattr(stages, "annotate_from_responses", annotate)
    for _ in range(2):
        path = STAGES["annotate"](recipe, workspace)
        assert path == workspace.annotated
    assert calls == ["reason"]
    assert read_samples(workspace.annotated) == scenes[:2]


def test_votes_annotate_without_a_model(workspace: Workspace, scenes: list[Sample]) -> None:
    samples = workspace.root / "votes.jsonl"
    write_samples((dataclasses.replace(scene, answer="joy", votes={"joy": 3, "fear": 1}) for scene in scenes), samples)
    recipe = tiny_recipe(data={"samples": str(samples)}, annotate={"source": "votes", "images": 3})
    annotated = read_samples(Path(str(STAGES["annotate"](recipe, workspace))))
    assert [sample.confidence for sample in annotated] == [0.75] * 3


def test_released_weights_take_the_place_of_the_stages_they_have_been_through(workspace: Workspace) -> None:
    recipe = tiny_recipe(teacher={"path": "hf://owner/name", "trained": "verbalize"}, vision=None)
    assert model_after(recipe, workspace, "reason") == model_after(recipe, workspace, "verbalize") == "hf://owner/name"
    with pytest.raises(ConfigError, match="hf://owner/name have been through stage verbalize already"):
        STAGES["verbalize"](recipe, workspace)
    with pytest.raises(ArtifactError, match="run 'emocaliber train calibrate' first"):
        model_after(recipe, workspace, "calibrate")
    finish(workspace, "calibrate")
    assert model_after(recipe, workspace, "calibrate") == workspace.stage("calibrate")


@pytest.mark.parametrize(
    ("method", "asked"), [("grpo", "train_reinforce"), ("tokenized-brier", "train_tokenized_brier")]
)
def test_the_recipe_says_how_to_calibrate(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, method: str, asked: str
) -> None:
    finish(workspace, "verbalize")
    table = {"method": method, "learning_rate": 1e-4, "steps": 1, "prompts_per_step": 2}
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(stages, "load_model", lambda path, dtype: f"model at {path.name}")
    monkeypatch.setattr(stages, "open_processor", lambda recipe, path: path)
    for name in ("train_reinforce", "train_tokenized_brier"):
        monkeypatch.setattr(stages, name, lambda start, *_, name=name, resume: calls.append((name, start)))
    STAGES["calibrate"](tiny_recipe(calibrate=table), workspace)
    # GRPO reads the policy itself, twice: it is its own reference.
    start = workspace.stage("verbalize") if method == "grpo" else "model at verbalize"
    assert calls == [(asked, start)]


def test_a_stage_without_a_table_cannot_run(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"recipe tiny has no \[vision\] table"):
        STAGES["vision"](tiny_recipe(vision=None), workspace)


def test_threads_are_set_when_a_stage_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    prepare(tiny_recipe(threads=3))
    prepare(tiny_recipe())
    assert asked == [3]


def test_the_longest_response_is_what_stage_three_allows(recipe: Recipe) -> None:
    assert longest_response(recipe) == 12
    assert longest_response(tiny_recipe(calibrate=None)) == 512
