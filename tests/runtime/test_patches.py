"""Images of any size against transformers' own processor, and the grid against transformers' own bookkeeping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emocaliber.runtime.context import place_images
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.records import from_mapping, to_mapping

SIZES = [(64, 64), (37, 91), (91, 37), (200, 113), (2, 300), (300, 2), (5, 5), (127, 128), (1, 200)]


def preprocessing(**changes: Any) -> PatchPreprocessing:
    settings = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 50000}
    scale = {"mean": (0.481, 0.457, 0.408), "std": (0.268, 0.261, 0.275)}
    return PatchPreprocessing(**{"kind": "qwen_vl", **settings, **scale, **changes})


@pytest.mark.parametrize("changes", [{}, {"patch_size": 16, "max_pixels": 9216, "min_pixels": 1024}])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_reference_processor(size: tuple[int, int], changes: dict[str, int]) -> None:
    pil_module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    ours = preprocessing(**changes)
    reference = pil_module.Qwen2VLImageProcessorPil(
        size={"shortest_edge": ours.min_pixels, "longest_edge": ours.max_pixels},
        patch_size=ours.patch_size,
        image_mean=list(ours.mean),
        image_std=list(ours.std),
    )
    rgb = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    expected = reference(images=[rgb], input_data_format="channels_last", return_tensors="np")
    patches = ours.apply(rgb)
    rows, columns = patches.shape[:2]
    assert expected["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    assert patches.dtype == np.float32
    np.testing.assert_allclose(patches.reshape(-1, patches.shape[-1]), expected["pixel_values"], rtol=0, atol=1e-6)
    assert rows * columns <= ours.max_tokens
    assert np.array_equal(ours.apply(ours.shrink(rgb)), patches)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (4, 3), (5, 9), (8, 8), (1, 7)])
def test_the_grid_is_the_reference_s(rows: int, columns: int) -> None:
    torch = pytest.importorskip("torch")
    vision = pytest.importorskip("transformers.vision_utils")
    grid, shape = (
        preprocessing(window=4, position_table=6).grid(rows, columns),
        torch.tensor([[1, 2 * rows, 2 * columns]]),
    )
    assert np.array_equal(grid["position_ids"], vision.get_vision_position_ids(shape, 2).numpy())
    order, edges = vision.get_vision_window_index(shape, spatial_merge_size=2, window_size=112, patch_size=14)
    expected = np.empty(rows * columns, np.int64)
    expected[order.numpy()] = np.repeat(np.arange(len(edges) - 1), np.diff(edges.numpy()) // 4)
    windows = grid["window_ids"].reshape(-1, 4)
    assert (windows == windows[:, :1]).all()
    same = windows[:, 0]
    assert np.array_equal(same[:, None] == same, expected[:, None] == expected)
    indices, weights = vision.get_vision_interpolation_indices_and_weights(
        shape, 6, align_corners=True, spatial_merge_size=2
    )
    assert np.array_equal(grid["interpolation_indices"], indices.numpy())
    np.testing.assert_allclose(grid["interpolation_weights"], weights.numpy(), atol=1e-6)


def test_a_tower_gets_only_what_it_asks_for() -> None:
    for changes in ({}, {"window": 4}, {"position_table": 6}):
        made = preprocessing(**changes)
        assert tuple(made.grid(2, 3)) == made.grid_inputs


def test_images_are_placed_by_row_and_column() -> None:
    placed = place_images([(2, 3), (1, 2)])
    assert placed.shown.tolist() == [[True] * 6, [False] * 4 + [True] * 2]
    assert placed.offsets[:, 0].tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert placed.offsets[:, 1, 4:].tolist() == [[0, 0], [0, 0], [0, 1]]
    assert placed.spans.tolist() == [3, 2]


def test_survives_the_manifest() -> None:
    record = preprocessing(window=4)
    assert from_mapping(PatchPreprocessing, to_mapping(record), "bundle.json") == record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"window": 0}, "window is 0"),
        ({"max_pixels": 3000}, r"max_pixels is 3000, expected at least min_pixels \(3136\)"),
        ({"min_pixels": 1, "max_pixels": 783}, "the 784 of one visual token"),
        ({"std": (0.5, 0.0, 0.5)}, "std is"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preprocessing(**changes)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InputError, match="201 × 1 pixels; no side may be 200 times the other"):
        preprocessing().apply(np.zeros((1, 201, 3), np.uint8))
    with pytest.raises(InputError, match="expected uint8"):
        preprocessing().apply(np.zeros((4, 4), np.uint8))
