"""What a stage leaves behind, and how an unfinished one is found."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tiny_run import recipe_mapping

from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.runtime.errors import ArtifactError, ConfigError
from emocaliber.train.models import build_model
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import CHECKPOINTS, RECORD, finished, last_checkpoint, read_stage, save_stage


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / CHECKPOINTS / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if complete:
        (path / "trainer_state.json").write_text("{}", encoding="utf-8")
    return path


def test_a_stage_says_how_it_was_made(recipe: Recipe, processor: Any, tmp_path: Path) -> None:
    assert recipe.teacher.build is not None
    model = build_model(recipe.teacher.build, processor, seed=0)
    checkpoint(tmp_path, 3)
    history = [{"step": 1, "loss": 2.5}]
    started = time.perf_counter() - 60.0
    assert not finished(tmp_path)
    stage = save_stage("reason", tmp_path, model, processor, recipe, started=started, history=history)
    assert finished(tmp_path)
    assert read_stage(tmp_path) == stage
    assert (stage.name, stage.folder) == ("reason", tmp_path)
    assert 60.0 < stage.wall_s < 90.0
    record = json.loads((tmp_path / RECORD).read_text(encoding="utf-8"))
    assert record["emocaliber"] == version("emocaliber")
    assert record["torch"] == version("torch")
    assert record["seed"] == 0
    assert record["history"] == history
    assert record["recipe"]["teacher"]["build"]["text"]["layers"] == 2
    assert record["recipe"]["calibrate"]["reward"] == "bounded"
    assert not set(recipe_mapping()) - set(record["recipe"])
    assert not (tmp_path / CHECKPOINTS).exists()
    assert load_model(tmp_path).num_parameters() == model.num_parameters()
    assert load_processor(tmp_path).image_seq_len == 4


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"stage": "reason"}', b"\xff"])
def test_a_folder_without_a_whole_record_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(ArtifactError, match="holds no finished stage"):
        read_stage(tmp_path)


def test_an_unfinished_run_asks_for_resume(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path, resume=False) is None
    assert last_checkpoint(tmp_path, resume=True) is None
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, complete=False)
    with pytest.raises(ConfigError, match="holds an unfinished run; continue it with --resume, or remove the folder"):
        last_checkpoint(tmp_path, resume=False)
    assert last_checkpoint(tmp_path, resume=True) == str(newest)
