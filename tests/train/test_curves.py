"""Curves of a run: what stands in the event files, and what is drawn."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState

from emocaliber.train import curves
from emocaliber.train.curves import Curves
from emocaliber.train.curves_drawing import curves_svg
from emocaliber.train.stated import BINS, Stated

SVG = "{http://www.w3.org/2000/svg}"


def stated_at(*confidences: float) -> dict[str, list[float]]:
    ones = np.ones(len(confidences))
    return Stated(confidence=np.array(confidences), right=ones, weight=ones).tally()


class Run:
    """Logs to `Curves` as a trainer would."""

    def __init__(self, folder: Path, start: int = 0, history: list[dict[str, Any]] | None = None) -> None:
        self.curves = Curves("calibrate", folder)
        self.state = TrainerState(max_steps=8, global_step=start, log_history=history or [])
        self.curves.on_train_begin(None, self.state, TrainerControl())

    def log(self, **logs: Any) -> None:
        self.state.global_step += 1
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.curves.on_log(None, self.state, TrainerControl(), logs=logs)

    def end(self) -> None:
        self.curves.on_train_end(None, self.state, TrainerControl())


def accumulated(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0, "histograms": 0}).Reload()


def test_every_figure_is_written_and_so_is_the_histogram(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.log(loss=2.0, ece=0.3, stated=stated_at(0.3, 0.3, 0.9))
    run.log(loss=1.5, ece=0.2, stated=stated_at(0.5))
    # What is logged is there at once, not when the run has ended.
    events = accumulated(tmp_path)
    assert set(events.Tags()["scalars"]) == {"loss", "ece"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.5)]
    first, second = (event.histogram_value for event in events.Histograms("stated confidences"))
    assert (first.num, first.sum, second.num) == (3, pytest.approx(1.5), 1)
    counts = dict(zip((round(limit, 2) for limit in first.bucket_limit), first.bucket, strict=True))
    assert {limit: count for limit, count in counts.items() if count} == {0.3: 2.0, 0.9: 1.0}
    run.end()


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    broken = Run(tmp_path)
    for loss in (3.0, 2.0, 1.0):
        broken.log(loss=loss)
    # Interrupted after its third step, with a checkpoint of the second.
    resumed = Run(tmp_path, start=2, history=broken.state.log_history[:2])
    resumed.log(loss=1.25)
    resumed.end()
    events = accumulated(tmp_path).Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 3.0), (2, 2.0), (3, 1.25)]
    broken.end()


def test_the_drawing_is_kept_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e6
    monkeypatch.setattr(curves.time, "monotonic", lambda: now)
    drawing = tmp_path / "curves.svg"
    run = Run(tmp_path)
    run.log(loss=2.0)
    assert "step 1 of 8" in drawing.read_text(encoding="utf-8")
    run.log(loss=1.0)
    assert "step 1 of 8" in drawing.read_text(encoding="utf-8")
    now += 10.0
    run.log(loss=1.0)
    assert "step 3 of 8" in drawing.read_text(encoding="utf-8")
    run.log(loss=1.0)
    run.end()
    assert "step 4 of 8" in drawing.read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"curves.svg", "logs"}


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    run = Curves("calibrate", tmp_path)
    state = TrainerState(max_steps=8, is_world_process_zero=False)
    run.on_train_begin(None, state, TrainerControl())
    run.on_log(None, state, TrainerControl(), logs={"loss": 1.0})
    run.on_train_end(None, state, TrainerControl())
    assert not list(tmp_path.iterdir())


def parsed(history: list[dict[str, Any]], max_steps: int) -> Any:
    return ElementTree.fromstring(curves_svg("stage <3>", history, max_steps))  # noqa: S314 - our own text


def names(drawing: Any) -> list[str]:
    return [text.text for text in drawing.iter(f"{SVG}text") if text.get("class") == "name"]


def points(drawing: Any, kind: str) -> list[tuple[float, float]]:
    line = next(line for line in drawing.iter(f"{SVG}polyline") if line.get("class") == kind)
    pairs = [point.split(",") for point in line.get("points").split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_each_stage_shows_what_it_logs() -> None:
    supervised = [{"step": 1, "loss": 2.0, "mean_token_accuracy": 0.5, "learning_rate": 0.1, "epoch": 1.0}]
    assert names(parsed(supervised, 2)) == ["loss", "token accuracy", "learning rate"]
    calibrate = [{"step": 1, "loss": 0.0, "reward": 1.0, "brier": 0.2, "ece": 0.1, "parse_rate": 1.0,
                  "confidence_entropy": 1.5, "learning_rate": 0.1, "stated": stated_at(0.5)}]  # fmt: skip
    assert names(parsed(calibrate, 2)) == [
        "reward", "Brier score", "ECE, newest 1000 responses", "parse rate", "entropy of stated confidences, nats",
        "stated confidences",
    ]  # fmt: skip
    empty = parsed([], 2)
    assert names(empty) == []
    assert [text.text for text in empty.iter(f"{SVG}text")] == ["stage <3> · step 0 of 2"]


def test_a_curve_lies_where_its_values_are() -> None:
    drawing = parsed([{"step": step, "loss": loss} for step, loss in ((1, 1.0), (2, 0.5), (3, 0.0), (4, 0.25))], 4)
    raw = points(drawing, "raw")
    (x0, y0), (x1, y1), (x2, y2), (_, y3) = raw
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 < y1 < y3 < y2
    assert y2 - y3 == pytest.approx((y2 - y0) / 4, abs=0.11)
    # Both ends of the axis are written beside it.
    ticks = [text.text for text in drawing.iter(f"{SVG}text")]
    assert {"0", "1", "4"} <= set(ticks)


def test_a_constant_has_a_curve_too() -> None:
    for value in (0.0, 0.76, -3.0):
        ((x, y),) = points(parsed([{"step": 1, "loss": value}], 1), "raw")
        assert math.isfinite(x)
        assert 30 < y < 190


def test_a_long_run_is_drawn_in_means() -> None:
    history = [{"step": step, "loss": float(step % 2)} for step in range(1, 6001)]
    raw = points(parsed(history, 6000), "raw")
    assert len(raw) == 300
    # Means of twenty: all alike, and over the whole width.
    assert len({y for _, y in raw}) == 1
    assert raw[-1][0] - raw[0][0] > 250


def test_the_histogram_tells_the_start_from_now() -> None:
    history = [
        {"step": step, "stated": stated_at(*([0.9] * 4 if step < 11 else [0.3, 0.3, 0.3, 0.6]))}
        for step in range(1, 21)
    ]
    drawing = parsed(history, 20)
    bars = [bar for bar in drawing.iter(f"{SVG}rect") if bar.get("class") == "bar"]
    heights = [float(bar.get("height")) for bar in bars]
    assert len(bars) == BINS
    assert {place for place, height in enumerate(heights) if height} == {5, 11}
    assert heights[5] == pytest.approx(3 * heights[11], abs=0.3)
    tips = [re.sub(r".*: ", "", bar.find(f"{SVG}title").text) for bar in bars]
    assert (tips[5], tips[17]) == ("0.0% at the start, 75.0% now", "100.0% at the start, 0.0% now")
