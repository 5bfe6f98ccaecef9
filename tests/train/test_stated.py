"""What a step stated: its figures, how steps are pooled, and the alarm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

from emocaliber.runtime.errors import ConfigError
from emocaliber.train.stage_recipes import AlarmRecipe
from emocaliber.train.stated import CollapseAlarm, Stated, calibration_error, newest, pooled


def stated(confidence: Sequence[float], right: Sequence[float], weight: Sequence[float] | None = None) -> Stated:
    return Stated(
        confidence=np.array(confidence),
        right=np.array(right),
        weight=np.ones(len(confidence)) if weight is None else np.array(weight),
    )


def test_the_figures_of_a_step_by_hand() -> None:
    # Brier 0.04, 0.16 and 0.25 · 0.36 + 0.75 · 0.16 = 0.21; entropy -(1/3 ln 1/3 + 2/3 ln 2/3).
    figures = stated([0.8, 0.4, 0.4], [1.0, 0.0, 0.25]).figures()
    assert figures == {
        "brier": pytest.approx((0.04 + 0.16 + 0.21) / 3),
        "confidence": pytest.approx(1.6 / 3),
        "confidence_entropy": pytest.approx(0.636514, abs=1e-6),
    }
    # A weight of two is the same response twice.
    assert stated([0.8, 0.4], [1.0, 0.0], [1.0, 2.0]).figures() == stated([0.8, 0.4, 0.4], [1.0, 0.0, 0.0]).figures()
    assert stated([0.5, 0.5], [1.0, 0.0]).figures()["confidence_entropy"] == 0.0


def test_the_values_of_the_grid_each_have_a_bin() -> None:
    grid = [round(0.05 * step, 2) for step in range(1, 20)]
    assert stated(grid, [0.0] * 19).tally()["count"] == [1.0] * 19 + [0.0]
    assert stated([0.0, 0.99, 1.0], [0.0] * 3).tally()["count"] == [1.0] + [0.0] * 18 + [2.0]


def test_steps_are_pooled_as_if_they_were_one() -> None:
    rng = np.random.default_rng(0)
    confidence = np.round(0.05 * rng.integers(1, 20, 300), 2)
    right = rng.random(300)
    parts = [stated(confidence[i : i + 100], right[i : i + 100]).tally() for i in (0, 100, 200)]
    assert pooled(parts) == {
        name: pytest.approx(sums, abs=1e-3) for name, sums in stated(confidence, right).tally().items()
    }
    # The ECE over ten bins (0, 0.1], (0.1, 0.2], …: 0.05 and 0.10 share one.
    bins = np.ceil(np.round(confidence * 10, 6))
    expected = sum(abs((right - confidence)[bins == place].sum()) for place in range(1, 11)) / 300
    assert calibration_error(pooled(parts)) == pytest.approx(expected, abs=1e-5)


def test_the_newest_steps_are_enough_responses() -> None:
    history: list[dict[str, Any]] = [
        {"stated": stated([value] * 4, [1.0] * 4).tally()} if value else {"loss": 1.0} for value in (0.1, 0.5, 0.0, 0.9)
    ]
    counts = [newest(history, responses) for responses in (1, 4, 5, 99)]
    assert [sum(tally["count"]) for tally in counts if tally] == [4.0, 4.0, 8.0, 12.0]
    assert counts[0] == history[3]["stated"]
    assert newest([{"loss": 1.0}], 4) is None


class Run:
    """Feeds a series of entropies to an alarm, as a trainer would."""

    def __init__(self, alarm: AlarmRecipe) -> None:
        self.alarm = CollapseAlarm(alarm)
        self.state = TrainerState(max_steps=50)
        self.control = TrainerControl()
        self.saved: list[bool] = []

    def log(self, *series: float | None) -> Run:
        for entropy in series:
            self.state.global_step += 1
            self.control.should_save = True
            logs = {} if entropy is None else {"confidence_entropy": entropy}
            self.alarm.on_log(None, self.state, self.control, logs=logs)
            self.saved.append(self.control.should_save)
        return self

    def end(self) -> None:
        self.alarm.on_train_end(None, self.state, self.control)


def test_the_alarm_goes_off_after_so_many_collapsed_steps_in_a_row() -> None:
    run = Run(AlarmRecipe(entropy=0.05, patience=3)).log(1.2, 0.04, 0.0, 0.05, 0.01, 0.02)
    assert not run.control.should_training_stop
    run.log(0.03)
    assert run.control.should_training_stop
    # No checkpoint while it is low, so that the last one is from before.
    assert run.saved == [True, False, False, True, False, False, False]
    with pytest.raises(ConfigError) as caught:
        run.end()
    message = str(caught.value)
    assert "at step 7 of 50 the entropy of the stated confidences is 0.030 nats" in message
    for setting in ("--resume", "calibrate.kl", "calibrate.learning_rate", "calibrate.temperature"):
        assert setting in message


def test_steps_that_state_nothing_neither_help_nor_harm() -> None:
    run = Run(AlarmRecipe(patience=2)).log(0.0, None, None)
    assert not run.control.should_training_stop
    assert run.log(0.0).control.should_training_stop


def test_a_healthy_run_ends_well() -> None:
    run = Run(AlarmRecipe(patience=2)).log(1.4, 0.0, 1.3, 0.0, math.log(2))
    run.end()
    assert not run.control.should_training_stop


def test_a_warning_is_one_line_and_lets_the_run_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(AlarmRecipe(patience=2, action="warn")).log(*[0.0] * 9)
    run.end()
    assert all(run.saved)
    assert not run.control.should_training_stop
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("warning: stage calibrate has collapsed to one confidence: at step 2 of 50")
