"""Reading ahead: in order, bounded, and over when the run is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime import EmotionModel
from emocaliber.runtime.commands import pipeline
from emocaliber.runtime.commands.inference import Question
from emocaliber.runtime.commands.inputs import Item

QUESTION = Question(taxonomy=None, labels=None, mode="direct", coverage=0.9, samples=1, seed=0)


class Reader:
    """Notes what it was asked to read; the first waits until another was read."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.overtaken = threading.Event()

    def __call__(self, item: Any) -> Any:
        self.begun.append(item)
        if item == 0:
            assert self.overtaken.wait(60)
        self.overtaken.set()
        return item


def test_images_are_read_side_by_side_in_order_and_a_chunk_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CHUNK", 4)
    reader = Reader()
    results: Any = pipeline._ahead(reader, range(100), 2)  # type: ignore[arg-type]
    for number in range(50):
        assert next(results) == number
        assert max(reader.begun) <= number + 4
    results.close()
    assert max(reader.begun) <= 49 + 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.fixture
def items(tmp_path: Path) -> Callable[[int], list[Item]]:
    def make(count: int) -> list[Item]:
        made = []
        for number in range(count):
            path = tmp_path / f"{number}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (9, 200, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            made.append(Item(image=str(path), question=QUESTION))
        return made

    return make


def test_images_wait_no_larger_than_the_model_needs_them(
    tiny_bundle: Path, items: Callable[[int], list[Item]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmotionModel.load(tiny_bundle, threads=1) as model:
        sizes: list[tuple[int, ...]] = []
        predict_batch = model.predict_batch

        def noted(images: Any, **rest: Any) -> Any:
            sizes.extend(image.shape for image in images)
            return predict_batch(images, **rest)

        monkeypatch.setattr(model, "predict_batch", noted)
        [result] = pipeline.predict_chunks(model, [items(3)], readers=2)
        edge = model.manifest.preprocessing.longest_edge
    assert edge < 200
    assert [size[1] for size in sizes] == [edge] * 3
    assert (len(result.lines), result.failed) == (3, 0)
