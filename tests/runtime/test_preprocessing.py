"""Preprocessing against transformers' own processor, which the models are trained with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.preprocessing import Preprocessing
from emocaliber.runtime.records import from_mapping, to_mapping

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def preprocessing(**changes: Any) -> Preprocessing:
    return Preprocessing(**{"kind": "idefics3", "longest_edge": 96, "tile_size": 64, **HALF, **changes})


@pytest.mark.parametrize(("longest_edge", "tile_size"), [(64, 64), (128, 64), (96, 48)])
@pytest.mark.parametrize("size", [(64, 64), (37, 91), (91, 37), (200, 113), (1, 300), (300, 2), (5, 5), (127, 128)])
@pytest.mark.parametrize("scale", [HALF, IMAGENET], ids=["half", "imagenet"])
def test_equals_the_reference_processor(
    size: tuple[int, int], longest_edge: int, tile_size: int, scale: dict[str, Any]
) -> None:
    pil_module = pytest.importorskip("transformers.models.idefics3.image_processing_pil_idefics3")
    reference = pil_module.Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": longest_edge},
        max_image_size={"longest_edge": tile_size},
        image_mean=list(scale["mean"]),
        image_std=list(scale["std"]),
    )
    rgb = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    expected = reference(images=[rgb], input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    ours = preprocessing(longest_edge=longest_edge, tile_size=tile_size, **scale).apply(rgb)
    assert ours.dtype == np.float32
    assert ours.shape == (1, 3, tile_size, tile_size) == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_channels_first_and_normalised() -> None:
    rgb = np.full((64, 64, 3), (255, 0, 51), np.uint8)  # 1.0, 0.0, 0.2
    tile = preprocessing(mean=(0.5, 0.25, 0.2), std=(0.5, 0.25, 0.1)).apply(rgb)[0]
    np.testing.assert_allclose(tile[0], 1.0, atol=1e-6)
    np.testing.assert_allclose(tile[1], -1.0, atol=1e-6)
    np.testing.assert_allclose(tile[2], 0.0, atol=1e-6)
    assert tile.flags["C_CONTIGUOUS"]


def test_survives_the_manifest() -> None:
    record = preprocessing(**IMAGENET)
    assert from_mapping(Preprocessing, to_mapping(record), "bundle.json") == record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "clip"}, "kind is 'clip'"),
        ({"longest_edge": 0}, "longest_edge is 0"),
        ({"tile_size": 5000}, "tile_size is 5000"),
        ({"mean": (0.5, 0.5)}, "mean is"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean is"),
        ({"std": (0.5, 0.0, 0.5)}, "std is"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocessing(**changes)


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_other_arrays_are_refused(array: Any) -> None:
    with pytest.raises(InputError, match="expected uint8"):
        preprocessing().apply(array)


@pytest.mark.parametrize(
    "size", [(97, 96), (300, 200), (113, 500), (1000, 7), (3, 1000), (5000, 3), (96, 96), (95, 20), (4032, 3024)]
)
@pytest.mark.parametrize("longest_edge", [96, 97])
def test_of_a_shrunk_image_the_same_is_made(size: tuple[int, int], longest_edge: int) -> None:
    rgb = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    applied = preprocessing(longest_edge=longest_edge)
    small = applied.shrink(rgb)
    assert np.array_equal(applied.apply(small), applied.apply(rgb))
    assert small.size <= rgb.size
    # 1000 x 7 becomes 96 x 1, of which a second resize would make 96 x 2.
    narrow = max(size) / min(size) > longest_edge
    assert max(small.shape[:2]) == max(size) if narrow else max(small.shape[:2]) <= longest_edge
