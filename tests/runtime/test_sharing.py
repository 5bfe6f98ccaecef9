"""One model in an app: several threads, a warm start, an end, and memory that stays flat."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emocaliber.runtime import BackendError, EmotionModel, InputError, Prediction
from emocaliber.runtime.bundle import EMBEDDED_BUNDLE

STATM = Path("/proc/self/statm")


@pytest.fixture
def model(tiny_bundle: Path) -> Iterator[EmotionModel]:
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(6)
    return [rng.integers(0, 256, (30 + 7 * n, 50, 3), dtype=np.uint8) for n in range(4)]


def test_threads_get_what_one_thread_gets(tiny_bundle: Path, images: list[np.ndarray]) -> None:
    questions: list[dict[str, Any]] = [
        {},
        {"mode": "reason"},
        {"mode": "auto", "max_set_size": 5},
        {"mode": "reason", "samples": 2, "seed": 7},
        *({"labels": [f"mood {n}", "joy", "grief"]} for n in range(20)),
    ]
    jobs = [(image, question) for question in questions for image in images]

    def run(model: EmotionModel, workers: int) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(lambda job: model.predict(job[0], **job[1]), jobs))
        return [_without_times(prediction) for prediction in found]

    # Each starts with nothing cached, and more label sets are asked than are kept: the threads meet in the planner.
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as alone:
        expected = run(alone, 1)
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as shared:
        assert run(shared, 8) == expected


def _without_times(prediction: Prediction) -> dict[str, Any]:
    line = prediction.to_dict(details=True)
    del line["timing_ms"]
    return line


@pytest.mark.parametrize("mode", ["direct", "reason", "auto"])
def test_a_warm_model_has_nothing_left_to_prepare(
    model: EmotionModel, images: list[np.ndarray], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    make = model._scorer._planner._make
    monkeypatch.setattr(model._scorer._planner, "_make", lambda *key: made.append(key) or make(*key))
    model.warm_up(labels=["calm", "tense"], mode=mode)
    assert len(made) == (2 if mode == "auto" else 1)
    model.predict(images[0], labels=["calm", "tense"], mode=mode)
    assert len(made) == (2 if mode == "auto" else 1)
    with pytest.raises(InputError, match="unknown taxonomy 'moods'"):
        model.warm_up(taxonomy="moods")


def test_a_closed_model_refuses_all_work(tiny_bundle: Path, tmp_path: Path, images: list[np.ndarray]) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tiny_bundle, "tiny")
    model = EmotionModel.load(tmp_path / "b.tar", engine="cpu", threads=1)
    folder = model.bundle.folder
    assert repr(model) == "<EmotionModel tiny-random 0.0.1, int8, onnxruntime-cpu>"
    with model as entered:
        assert entered is model
    model.close()
    assert not folder.exists()
    assert repr(model) == "<EmotionModel tiny-random 0.0.1, int8, onnxruntime-cpu, closed>"
    for work in (
        lambda: model.predict(images[0]),
        lambda: model.predict_batch([]),
        lambda: model.stream(images[0]),
        lambda: model.score([]),
        lambda: model.warm_up(),
        lambda: model.__enter__(),
    ):
        with pytest.raises(BackendError, match="this model was closed; load it again"):
            work()


@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("predictions", [pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_memory_stays_flat(predictions: int) -> None:
    """Ten thousand predictions of the embedded bundle: sizes, modes and label sets change all the time."""
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (40 + 13 * n, 300 - 11 * n, 3), dtype=np.uint8) for n in range(16)]
    with EmotionModel.load(EMBEDDED_BUNDLE, engine="cpu", threads=1) as model:

        def predict(number: int) -> None:
            photo = photos[number % 16]
            if number % 50 == 0:
                model.predict(photo, mode="reason")
            elif number % 10 == 0:
                model.predict(photo, labels=["joy", f"mood {number}"])
            else:
                model.predict(photo)

        for number in range(1000):
            predict(number)
        before = _resident_pages()
        for number in range(1000, 1000 + predictions):
            predict(number)
        grown = _resident_pages() / before - 1.0
    assert grown < 0.02, f"resident memory grew by {grown:.1%} in {predictions} predictions"


def _resident_pages() -> int:
    return int(STATM.read_text(encoding="ascii").split()[1])
