"""Label sets and images of the vision stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from emocaliber.runtime.samples import Sample
from emocaliber.train.vision.images import Images, balanced
from emocaliber.train.vision.labels import LabelBlocks


@pytest.fixture
def several() -> list[Sample]:
    """Two sets that share a taxonomy, one with another, and a sample of none."""
    polarity, emotion = {"taxonomy": "sentiment-2"}, {"taxonomy": "emotion6-7"}
    return [
        Sample(image="1.png", id="oasis/1.png", votes={"positive": 3, "negative": 1}, **polarity),
        Sample(image="2.png", id="bass/2.png", votes={"negative": 2}, **polarity),
        Sample(image="3.png", id="oasis/3.png", answer="negative", **polarity),
        Sample(image="4.png", id="4.png", votes={"joy": 1, "anger": 1}, **emotion),
    ]


def test_sets_have_columns_of_their_own(several: list[Sample]) -> None:
    blocks = LabelBlocks(several, ("oasis", "bass"))
    assert [each.source for each in blocks.sets] == ["oasis", "bass", "emotion6-7"]
    assert blocks.of_samples.tolist() == [0, 1, 0, 2]
    expected = torch.zeros(4, 11)
    expected[0, 0], expected[0, 1], expected[1, 2], expected[2, 0] = 0.25, 0.75, 1.0, 1.0
    expected[3, 4], expected[3, 7] = 0.5, 0.5
    assert torch.equal(blocks.targets(several), expected)


def test_samples_of_no_set_are_told_apart_by_taxonomy(several: list[Sample]) -> None:
    blocks = LabelBlocks(several, ())
    assert [each.names for each in blocks.sets] == [{"sentiment-2"}, {"emotion6-7"}]


def test_probabilities_stay_within_a_set(several: list[Sample]) -> None:
    blocks = LabelBlocks(several, ("oasis", "bass"))
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(0))
    probabilities = blocks.own(logits, blocks.of_samples).softmax(dim=1)
    assert torch.allclose(probabilities[1, 2:4], logits[1, 2:4].softmax(dim=0))
    assert torch.allclose(probabilities[3, 4:], logits[3, 4:].softmax(dim=0))
    assert (probabilities * (blocks.targets(several) == 0)).sum(dim=1)[1] < 1


def test_small_sets_are_repeated() -> None:
    sets = torch.tensor([0] * 16 + [1] * 4 + [2])
    assert balanced(sets, range(21), 1.0) == list(range(21))
    half = balanced(sets, range(21), 0.5)
    # 16 (4/16)^½ = 8 and 16 (1/16)^½ = 4.
    assert [half.count(index) for index in range(21)] == [1] * 16 + [2] * 4 + [4]
    alike = balanced(sets, range(21), 0.0)
    assert [int((sets[alike] == each).sum()) for each in range(3)] == [16, 16, 16]
    assert balanced(sets, range(16, 21), 1.0) == [16, 17, 18, 19, 20]


def test_images_are_held_as_bytes_at_the_side_asked_for(scenes: list[Sample], processor: Any, tmp_path: Path) -> None:
    Image.effect_noise((40, 24), 80).save(tmp_path / "grey.png")
    grey = dataclasses.replace(scenes[0], image=str(tmp_path / "grey.png"))
    samples = [*scenes[:2], grey]
    blocks = LabelBlocks(samples, ())
    for side in (32, 48):
        images = Images(samples, blocks, processor, side)
        assert len(images) == 3
        for example in images:
            assert example["pixel_values"].dtype == torch.uint8
            assert example["pixel_values"].shape == (3, side, side)
        assert torch.equal(images[2]["pixel_values"][0], images[2]["pixel_values"][2])
    # The processor's own numbers, where its own size is asked for.
    picture = [[Image.open(scenes[1].image).convert("RGB")]]
    expected = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0, 0]
    bytes_ = Images(samples, blocks, processor, 32)[1]["pixel_values"]
    assert torch.allclose(bytes_.float() / 127.5 - 1, expected, atol=1e-6)
