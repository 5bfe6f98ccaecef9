"""The samples a run works on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import tiny_recipe

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.samples import Sample, write_samples
from emocaliber.train.workspace import Workspace, load_samples


def test_scenes_are_made_once_and_split(tmp_path: Path) -> None:
    recipe = tiny_recipe(data={"samples": "scenes:12", "calibration": 4, "test": 8, "image_size": 32})
    asked = {"train": 12, "calibration": 4, "test": 8}
    workspace = Workspace(tmp_path)
    splits = {name: load_samples(recipe, workspace, name) for name in asked}
    counts = {name: len(found) for name, found in splits.items()}
    assert counts == {name: pytest.approx(count, abs=1) for name, count in asked.items()}
    images = [sample.image for found in splits.values() for sample in found]
    assert len(set(images)) == 24
    written = (workspace.data / "samples.jsonl").stat().st_mtime_ns
    assert load_samples(recipe, workspace, "train") == splits["train"]
    assert (workspace.data / "samples.jsonl").stat().st_mtime_ns == written


@pytest.mark.parametrize("count", ["", "0", "-3", "many", "1.5"])
def test_numbers_of_scenes_must_make_sense(tmp_path: Path, count: str) -> None:
    recipe = tiny_recipe(data={"samples": f"scenes:{count}"})
    with pytest.raises(ConfigError, match=r"expected scenes:COUNT, for example scenes:4000"):
        load_samples(recipe, Workspace(tmp_path), "train")


def test_only_the_recipes_taxonomy_and_the_split_count(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [("emotion6-7", "train"), ("sentiment-2", "train"), ("emotion6-7", "test"), ("sentiment-2", "dev")]
    write_samples([Sample(image=f"{i}.png", taxonomy=t, split=s) for i, (t, s) in enumerate(lines)], path)
    recipe = tiny_recipe(data={"samples": str(path)})
    assert [Path(s.image).name for s in load_samples(recipe, Workspace(tmp_path), "train")] == ["0.png"]
    with pytest.raises(InputError, match="holds no samples of split 'dev' and taxonomy 'emotion6-7'"):
        load_samples(recipe, Workspace(tmp_path), "dev")
    held_out = load_samples(recipe, Workspace(tmp_path), "dev", foreign=True)
    assert [sample.taxonomy for sample in held_out] == ["sentiment-2"]
    with pytest.raises(InputError, match=r"holds no samples of split 'test2'$"):
        load_samples(recipe, Workspace(tmp_path), "test2", foreign=True)
    with pytest.raises(InputError, match="cannot read samples"):
        load_samples(tiny_recipe(data={"samples": "gone.jsonl"}), Workspace(tmp_path), "train")
