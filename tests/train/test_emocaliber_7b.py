"""The recipes of the paper's size through all their stages; only paths, sizes and the arithmetic are changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_qwen import save_tiny_qwen

from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.runtime.samples import Sample, write_samples
from emocaliber.train.recipe import Recipe, load_recipe
from emocaliber.train.stages import STAGES
from emocaliber.train.workspace import Workspace

# TRL calls it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

FOLDER = Path(__file__).parents[2] / "recipes" / "emocaliber-7b"
TASKS = ("emoset-8", "fi-8", "fi-2", "webemo-2", "webemo-7", "webemo-25")


@pytest.fixture(scope="module")
def samples(scenes: list[Sample]) -> list[Sample]:
    """A sample of each of the six label sets."""
    return [labelled(scene, task) for scene, task in zip(scenes, TASKS, strict=False)]


def labelled(scene: Sample, task: str) -> Sample:
    blank = dataclasses.replace(scene, taxonomy=task, votes=None, posterior=None, answer=None, confidence=0.6, id=task)
    return dataclasses.replace(blank, answer=blank.resolve().labels[0])


@pytest.mark.parametrize("name", ["recipe", "lora"])
def test_all_stages_run_from_the_recipe(name: str, samples: list[Sample], tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    write_samples(samples, file)
    path = FOLDER / f"{name}.toml"
    start = save_tiny_qwen(tmp_path / "start", samples, load_recipe(path).prompt)
    changes = [f"{stage}.samples={file}" for stage in ("data", "reason", "verbalize", "calibrate")]
    changes += [f"{stage}.precision=fp32" for stage in ("reason", "verbalize", "calibrate")]
    changes += [f"teacher.path={start}", "teacher.min_pixels=784", "teacher.max_pixels=12544"]
    changes += ["launch.processes=1", "launch.shard=false"]
    changes += ["calibrate.steps=2", "calibrate.prompts_per_step=1", "calibrate.prompts_per_draw=2"]
    recipe = load_recipe(path, [*changes, "calibrate.max_new_tokens=6"])
    workspace = Workspace(tmp_path / "run")
    for stage in ("reason", "verbalize", "calibrate"):
        STAGES[stage](recipe, workspace)
        record = json.loads((workspace.stage(stage) / "stage.json").read_text(encoding="utf-8"))
        assert record["history"], stage
    model, processor = load_model(workspace.stage("calibrate")), load_processor(workspace.stage("calibrate"))
    assert model.num_parameters() == load_model(start).num_parameters()
    assert processor.image_processor.size["longest_edge"] == 12544


def recipe_of(name: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.toml")


def test_the_numbers_are_the_papers() -> None:
    recipe = recipe_of("recipe")
    assert recipe.reason is not None
    assert recipe.verbalize is not None
    assert recipe.calibrate is not None
    assert (recipe.launch.processes, recipe.launch.shard, recipe.lora) == (8, True, None)
    assert (recipe.teacher.min_pixels, recipe.teacher.max_pixels) == (200_704, 451_584)
    assert [table.learning_rate for table in (recipe.reason, recipe.verbalize, recipe.calibrate)] == [1e-5, 4e-6, 1e-6]
    for table in (recipe.reason, recipe.verbalize):
        # 8 samples at once on 8 GPUs, twice.
        assert (table.batch_size, table.micro_batch, table.epochs, table.warmup) == (8 * 8 * 2, 8, 1.0, 0.05)
    table = recipe.calibrate
    # Draws of 64 prompts, two steps of 32 from each: 14,346 prompts are 224 whole draws.
    assert (table.prompts_per_draw, table.prompts_per_step, table.rollouts) == (64, 32, 8)
    assert table.steps == 14_346 // 64 * 2 == 448
    assert (table.kl, table.max_new_tokens, table.reward) == (0.01, 2048, "bounded")
    assert recipe.annotate is None
    assert load_recipe(FOLDER / "recipe.toml", ["calibrate.reward=paper"]).calibrate.reward == "paper"  # type: ignore[union-attr]


def test_adapters_change_only_what_the_recipe_says() -> None:
    whole, adapted = recipe_of("recipe"), recipe_of("lora")
    assert (adapted.launch.processes, adapted.launch.shard) == (1, False)
    for field in ("taxonomies", "prompt", "teacher", "data"):
        assert getattr(whole, field) == getattr(adapted, field)
    different = {"learning_rate", "weight_decay", "save_steps", "micro_batch", "freeze_vision"}
    for stage in ("reason", "verbalize", "calibrate"):
        tables = [dataclasses.asdict(getattr(recipe, stage)) for recipe in (whole, adapted)]
        assert {key for key in tables[0] if tables[0][key] != tables[1][key]} <= different
        assert tables[1]["learning_rate"] == pytest.approx(10 * tables[0]["learning_rate"])
