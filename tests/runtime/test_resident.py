"""Keys and values that stay on a device are the ones that come back; the host's own memory plays the device here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.engine import GraphEngine
from emocaliber.runtime.engines import load_engine
from emocaliber.runtime.grammar import MODES, Mode
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.resident import ResidentArray, ResidentGraph


@pytest.fixture
def engines(tiny_bundle: Path) -> tuple[GraphEngine, GraphEngine]:
    """An engine, and the same one whose keys and values stay."""
    plain, resident = (load_engine(Bundle.open(tiny_bundle), "fp32", "cpu", threads=1) for _ in range(2))
    assert isinstance(plain, GraphEngine)
    assert isinstance(resident, GraphEngine)
    resident._decoder = ResidentGraph(resident._decoder, "cpu")
    return plain, resident


def test_they_go_from_pass_to_pass_without_a_copy(engines: tuple[GraphEngine, GraphEngine]) -> None:
    past = (np.zeros((1, 1, 0, 16), dtype=np.float32),) * 4
    embeds = engines[0].embed(np.array([[1, 2, 3]]))
    mask = np.tril(np.ones((1, 1, 3, 3), dtype=np.bool_))
    first = [engine.decode(embeds, mask, np.array([[0, 1, 2]]), np.array([2]), past) for engine in engines]
    for expected, found in zip(first[0][1], first[1][1], strict=True):
        assert isinstance(found, ResidentArray)
        assert (found.shape, found.nbytes) == (expected.shape, expected.nbytes)
        np.testing.assert_array_equal(np.asarray(found), expected)
    token, wide = engines[0].embed(np.array([[4]])), np.ones((1, 1, 1, 4), dtype=np.bool_)
    second = [
        engine.decode(token, wide, np.array([[3]]), np.array([0]), present)[0]
        for engine, (_, present) in zip(engines, first, strict=True)
    ]
    np.testing.assert_array_equal(second[1], second[0])


@pytest.mark.parametrize("mode", MODES)
def test_predictions_are_the_same(engines: tuple[GraphEngine, GraphEngine], tiny_bundle: Path, mode: Mode) -> None:
    images = [np.full((40, 40, 3), level, dtype=np.uint8) for level in (30, 200)]
    found = []
    for engine in engines:
        with EmotionModel(Bundle.open(tiny_bundle), precision="fp32", engine=engine) as model:
            found.append([(each.distribution, each.reasoning) for each in model.predict_batch(images, mode=mode)])
    assert found[1] == found[0]
