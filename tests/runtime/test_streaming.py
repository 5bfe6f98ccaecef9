"""`EmotionModel.stream` and auto mode: the same answers as `predict`, sooner, and a time budget that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emocaliber.runtime import (
    BackendError,
    EmotionModel,
    Final,
    InputError,
    Prediction,
    Provisional,
    Section,
    StreamEvent,
    streaming,
)
from emocaliber.runtime.bundle import EMBEDDED_BUNDLE

PHOTO = Path(__file__).parents[2] / "docs" / "photo.jpg"


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[EmotionModel]:
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (30 + 7 * n, 50, 3), dtype=np.uint8) for n in range(6)]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every look at the clock find one millisecond more than the last."""
    ticks = count()
    monkeypatch.setattr(streaming, "perf_counter", lambda: next(ticks) / 1e3)


def last(events: Iterator[StreamEvent]) -> Prediction:
    *_, event = events
    assert isinstance(event, Final)
    return event.prediction


def same(found: Prediction, expected: Prediction) -> None:
    np.testing.assert_allclose(
        list(found.distribution.values()), list(expected.distribution.values()), atol=1e-5, rtol=0
    )
    assert (found.mode, found.label, found.reasoning) == (expected.mode, expected.label, expected.reasoning)
    if expected.verbalized_confidence is None:
        assert found.verbalized_confidence is None
    else:
        assert found.verbalized_confidence == pytest.approx(expected.verbalized_confidence, abs=1e-5)


def test_sections_come_one_by_one_and_add_up_to_the_reasoning() -> None:
    with EmotionModel.load(EMBEDDED_BUNDLE, engine="cpu", threads=1) as nano:
        first, *sections, final = nano.stream(PHOTO)
        expected = nano.predict(PHOTO, mode="reason")
    assert isinstance(first, Provisional)
    assert first.prediction.mode == "direct"
    told = [event for event in sections if isinstance(event, Section)]
    assert [event.tag for event in told] == ["element", "human", "context", "interaction", "analysis"]
    assert {event.tag: event.text for event in told} == expected.reasoning
    times = [event.elapsed_ms for event in told]
    assert times == sorted(times)
    assert times[0] < times[-1], "sections must come while the reasoning is still being written"
    assert isinstance(final, Final)
    same(final.prediction, expected)
    assert not final.prediction.out_of_time
    assert final.prediction.image == str(PHOTO)


@pytest.mark.parametrize("settings", [{}, {"samples": 3, "seed": 4}, {"temperature": 1.0, "top_p": 0.8}])
def test_the_end_is_what_predict_returns(
    model: EmotionModel, images: list[np.ndarray], settings: dict[str, Any]
) -> None:
    events = list(model.stream(images[0], **settings))
    assert isinstance(events[0], Provisional)
    same(events[0].prediction, model.predict(images[0]))
    same(last(iter(events)), model.predict(images[0], mode="reason", **settings))


def test_direct_mode_has_one_event(model: EmotionModel, images: list[np.ndarray]) -> None:
    [event] = model.stream(images[0], mode="direct", budget_ms=0.001)
    assert isinstance(event, Final)
    same(event.prediction, model.predict(images[0]))
    assert not event.prediction.out_of_time


@pytest.mark.usefixtures("ticking")
def test_a_budget_that_no_reasoning_fits_in_gives_the_direct_answer(
    model: EmotionModel, images: list[np.ndarray]
) -> None:
    # The clock says 1 ms when first looked at: the fifth look, after a few tokens, finds the budget spent.
    final = last(model.stream(images[0], budget_ms=5.0))
    same(final, model.predict(images[0]))
    assert final.mode == "direct"
    assert final.out_of_time
    assert "time budget ran out: no reasoning was complete" in final.describe()
    assert "out of time" in repr(final)
    timing = dict(final.timing_ms)
    assert timing.pop("total") == pytest.approx(sum(timing.values()), abs=0.01)


@pytest.mark.usefixtures("ticking")
def test_a_budget_that_some_reasonings_fit_in_gives_their_mean(model: EmotionModel, images: list[np.ndarray]) -> None:
    # One reasoning alone, to see how many looks at the clock it takes; the budget then holds one and a half.
    looks = _looks(model, images[0], samples=1, temperature=1.0, seed=3)
    final = last(model.stream(images[0], samples=3, temperature=1.0, seed=3, budget_ms=1.5 * looks))
    same(final, model.predict(images[0], mode="reason", samples=1, temperature=1.0, seed=3))
    assert final.out_of_time
    assert "not all reasonings were complete" in final.describe()
    whole = last(model.stream(images[0], samples=3, temperature=1.0, seed=3, budget_ms=100.0 * looks))
    same(whole, model.predict(images[0], mode="reason", samples=3, temperature=1.0, seed=3))
    assert not whole.out_of_time


def _looks(model: EmotionModel, image: np.ndarray, **settings: Any) -> int:
    """Returns how many times the clock is looked at while one image is reasoned about, by the ticking clock."""
    before = streaming.perf_counter()
    last(model.stream(image, budget_ms=1e9, **settings))
    return round(1e3 * (streaming.perf_counter() - before))


@pytest.mark.parametrize("budget", [0, -5.0, float("nan"), float("inf")])
def test_impossible_budgets(model: EmotionModel, images: list[np.ndarray], budget: float) -> None:
    with pytest.raises(InputError, match="budget_ms is"):
        model.stream(images[0], budget_ms=budget)


def test_what_is_wrong_is_said_by_the_call_and_not_by_the_first_event(model: EmotionModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png"):
        model.stream(tmp_path / "none.png")
    with pytest.raises(InputError, match="mode is 'fast'"):
        model.stream(PHOTO, mode="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "share"), [(1, "some"), (5, "none")])
def test_auto_reasons_only_where_the_set_is_larger(
    model: EmotionModel, images: list[np.ndarray], limit: int, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"labels": ["joy", "sad", "bored", "mad", "odd"], "coverage": 0.8}
    direct = model.predict_batch(images, **asked)
    reasoned = model.predict_batch(images, mode="reason", **asked)
    large = [len(prediction.prediction_set()) > limit for prediction in direct]
    assert (share == "some") == (0 < sum(large) < 6), "the example must have sets of both kinds"
    seen = []
    encode = model._scorer._engine.encode_images
    monkeypatch.setattr(
        model._scorer._engine, "encode_images", lambda pixels: seen.append(len(pixels)) or encode(pixels)
    )
    found = model.predict_batch(images, mode="auto", max_set_size=limit, **asked)
    assert seen == [6], "the vision encoder sees each image once"
    for prediction, quick, slow, is_large in zip(found, direct, reasoned, large, strict=True):
        same(prediction, slow if is_large else quick)
    for image, prediction in zip(images, found, strict=True):
        same(last(model.stream(image, mode="auto", max_set_size=limit, **asked)), prediction)


def test_auto_needs_a_limit_that_makes_sense(model: EmotionModel, images: list[np.ndarray]) -> None:
    same(model.predict(images[0], mode="auto"), model.predict(images[0], mode="auto", max_set_size=1))
    with pytest.raises(InputError, match="max_set_size is 0"):
        model.predict(images[0], mode="auto", max_set_size=0)
    with pytest.raises(InputError, match="max_set_size is 2 in mode 'direct'"):
        model.predict(images[0], max_set_size=2)


def test_a_stream_that_has_begun_outlives_its_model(tiny_bundle: Path, images: list[np.ndarray]) -> None:
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as model:
        expected = model.predict(images[0], mode="reason")
        events = model.stream(images[0])
        next(events)
    same(last(events), expected)
    with pytest.raises(BackendError, match="was closed"):
        model.stream(images[0])


def test_a_batch_that_has_begun_outlives_its_model(
    tiny_bundle: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as model:
        expected = [model.predict(image) for image in images]
        monkeypatch.setattr(model._scorer, "batch_size", lambda *_: 1)

        def source() -> Iterator[np.ndarray]:
            yield images[0]
            model.close()
            yield from images[1:]

        for found, alone in zip(model.predict_batch(source()), expected, strict=True):
            same(found, alone)
