"""Smoothing over time, by hand."""

from __future__ import annotations

import pytest

from emocaliber.runtime import InputError, Smoother

CALM, TENSE = {"calm": 1.0, "tense": 0.0}, {"calm": 0.0, "tense": 1.0}


def test_the_old_counts_half_after_one_half_life() -> None:
    smoother = Smoother(2.0)
    assert smoother.update(CALM, 10.0).distribution == CALM
    assert smoother.update(TENSE, 12.0).distribution == {"calm": 0.5, "tense": 0.5}
    quarter = smoother.update(TENSE, 14.0)
    assert quarter.distribution == {"calm": 0.25, "tense": 0.75}
    assert (quarter.label, quarter.confidence, quarter.time_s, quarter.frames) == ("tense", 0.75, 14.0, 3)


def test_the_frame_rate_does_not_matter() -> None:
    slow, fast = Smoother(1.5), Smoother(1.5)
    slow.update(CALM, 0.0)
    fast.update(CALM, 0.0)
    for time_s in (0.1, 0.15, 0.9, 2.0, 2.99):
        fast.update(TENSE, time_s)
    # What was there at 0 s still counts 2^(-3 / 1.5) = 1/4 at 3 s, however many frames came between.
    assert fast.update(TENSE, 3.0).distribution["calm"] == pytest.approx(0.25)
    assert slow.update(TENSE, 3.0).distribution["calm"] == pytest.approx(0.25)


def test_uneven_steps_and_soft_distributions() -> None:
    smoother = Smoother(1.0)
    smoother.update({"a": 0.6, "b": 0.3, "c": 0.1}, 0.0)
    # w = 2^-3 = 1/8: 0.6 / 8 + 0.2 * 7 / 8 = 0.25, 0.3 / 8 + 0.2 * 7 / 8 = 0.2125, 0.1 / 8 + 0.6 * 7 / 8 = 0.5375.
    mixed = smoother.update({"a": 0.2, "b": 0.2, "c": 0.6}, 3.0).distribution
    assert mixed == pytest.approx({"a": 0.25, "b": 0.2125, "c": 0.5375})
    assert list(mixed) == ["a", "b", "c"]
    # The same moment again adds nothing.
    assert smoother.update({"a": 1.0, "b": 0.0, "c": 0.0}, 3.0).distribution == mixed


def test_reset_forgets() -> None:
    smoother = Smoother(1.0)
    smoother.update(CALM, 5.0)
    smoother.reset()
    assert smoother.update({"joy": 0.5, "awe": 0.5}, 0.0).frames == 1


@pytest.mark.parametrize("half_life_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_half_lives(half_life_s: float) -> None:
    with pytest.raises(InputError, match="half_life_s is"):
        Smoother(half_life_s)


@pytest.mark.parametrize(
    ("distribution", "time_s", "message"),
    [
        (CALM, 0.5, r"at 0\.5 s comes after that at 1\.0 s"),
        ({"joy": 1.0, "awe": 0.0}, 2.0, "labels joy, awe, those before had calm, tense"),
        ({"calm": 0.5, "tense": 0.4}, 2.0, "do not sum to one"),
        ({"calm": 1.5, "tense": -0.5}, 2.0, "do not sum to one"),
        ({"calm": float("nan"), "tense": 1.0}, 2.0, "do not sum to one"),
        ({}, 2.0, "do not sum to one"),
        (CALM, float("nan"), "time_s is nan"),
    ],
)
def test_impossible_frames_are_refused_and_change_nothing(
    distribution: dict[str, float], time_s: float, message: str
) -> None:
    smoother = Smoother(1.0)
    smoother.update(CALM, 1.0)
    with pytest.raises(InputError, match=message):
        smoother.update(distribution, time_s)
    assert smoother.update(CALM, 1.0).distribution == CALM
