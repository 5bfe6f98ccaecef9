"""Idefics3 with a convolutional tower, as transformers' own classes see it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import build_model, build_processor

from emocaliber.evaluate.convolutional import ConvolutionalIdefics3ForConditionalGeneration, ConvolutionalTower
from emocaliber.evaluate.transformers_loading import load_model, load_processor


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_the_tower_looks_at_neighbours_and_makes_one_token_of_each_cell(processor) -> None:
    model = build_model(processor, convolutional=True)
    tower = model.model.vision_model
    assert isinstance(tower, ConvolutionalTower)
    tower.config.looks = 1
    # Strides 2, 2 and 2 on 96 pixels leave a map of 12 x 12.
    image = torch.randn(1, 3, 96, 96)
    other = image.clone()
    other[..., :2, :2] += 1.0
    with torch.inference_mode():
        before, after = (tower(each).last_hidden_state for each in (image, other))
    assert before.shape == (1, 144, 32)
    changed = (before != after).any(dim=2)[0].view(12, 12)
    assert changed[0, 0]
    assert not changed[11, 11], "a corner reached the opposite one"


@pytest.mark.parametrize("looks", [2, 4])
def test_a_token_is_the_mean_of_all_looks(processor, looks: int) -> None:
    tower = build_model(processor, convolutional=True).model.vision_model
    images = torch.randn(3, 3, 36, 36)
    # Of 36 pixels a part has 33: one column is cut on the left and two on the right.
    parts = [images[..., :33, 1:34], images[..., 3:, 1:34]]
    upper, lower = (torch.nn.functional.interpolate(part, (36, 36), mode="bilinear") for part in parts)
    shown = [images, images.flip(3), upper, lower.flip(3)][:looks]
    with torch.inference_mode():
        tower.config.looks = looks
        seen = tower(images).last_hidden_state.view(3, 5, 5, 32)
        tower.config.looks = 1
        maps = [tower(each).last_hidden_state.view(3, 5, 5, 32) for each in shown]
    expected = sum(each.flip(2) if place % 2 else each for place, each in enumerate(maps)) / looks
    torch.testing.assert_close(seen, expected)
    assert not torch.allclose(seen, maps[0]), "all looks see the same"


def test_a_saved_model_loads_by_its_name_and_runs_no_code_of_the_folder(processor, tmp_path: Path) -> None:
    model = build_model(processor, seed=5, convolutional=True)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "convolutional.py").is_file(), "other programs could not load it"
    (tmp_path / "convolutional.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()", encoding="utf-8")
    loaded = load_model(tmp_path)
    assert type(loaded) is ConvolutionalIdefics3ForConditionalGeneration
    assert not (tmp_path / "ran").exists()
    assert load_processor(tmp_path).image_processor is not None
    theirs = loaded.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_a_tower_that_is_not_trained_keeps_its_batch_statistics(processor) -> None:
    model = build_model(processor, convolutional=True)
    tower = model.model.vision_model
    kept = {name: value.clone() for name, value in tower.state_dict().items()}
    tower.requires_grad_(requires_grad=False)
    model.train()
    tower(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(value, kept[name]) for name, value in tower.state_dict().items())
    tower.requires_grad_(requires_grad=True)
    model.train()
    tower(torch.randn(4, 3, 32, 32))
    assert not torch.equal(tower.stem[1].running_mean, kept["stem.1.running_mean"])
