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
    tower.config.mirrored = False
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


def test_a_mirrored_tower_means_what_it_sees_in_an_image_and_in_its_mirror_image(processor) -> None:
    tower = build_model(processor, convolutional=True).model.vision_model
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        seen = tower(images).last_hidden_state
        of_mirror = tower(images.flip(-1)).last_hidden_state
        tower.config.mirrored = False
        plain, flipped = (tower(each).last_hidden_state.view(3, 4, 4, 32) for each in (images, images.flip(-1)))
    torch.testing.assert_close(seen, ((plain + flipped.flip(2)) / 2).flatten(1, 2))
    torch.testing.assert_close(of_mirror, seen.view(3, 4, 4, 32).flip(2).flatten(1, 2))
    assert not torch.allclose(seen, plain.flatten(1, 2)), "a mirror image looks like its image to this tower"


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
