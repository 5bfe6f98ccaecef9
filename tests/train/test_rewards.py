"""Rewards against hand-worked numbers, and what each of them pays for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq

from emocaliber.runtime.grammar import REASONING_TAGS
from emocaliber.train.rewards import BAD_FORMAT_PAPER, bounded_reward, make_reward, paper_reward, reward_of

LABELS = ("anger", "fear", "joy")
GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)
THINK = "<think>" + "".join(f"<{tag}>x</{tag}>" for tag in REASONING_TAGS) + "</think>"


def response(answer: str, confidence: object) -> str:
    return f"<answer>{answer}</answer><confidence>{confidence}</confidence>"


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        (0.8, 1.0, 1.96),  # 1 + 1 - 0.2²
        (0.8, 0.0, 0.36),  # 1 + 0 - 0.8²
        (0.5, 0.5, 1.25),  # 1 + 0.5 - 0.25
        (0.6, 0.3, 1.0),  # 1 + 0.3 - (0.3 · 0.16 + 0.7 · 0.36)
    ],
)
def test_bounded_reward_by_hand(confidence: float, right: float, expected: float) -> None:
    assert bounded_reward(confidence, right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        (0.8, 1.0, 1.553713),  # 2 + 2 ln 0.8
        (0.8, 0.0, -2.218876),  # 1 + 2 ln 0.2
        (0.5, 0.5, 0.113706),  # 1.5 + 2 ln 0.5
    ],
)
def test_paper_reward_by_hand(confidence: float, right: float, expected: float) -> None:
    assert paper_reward(confidence, right) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reward", [bounded_reward, paper_reward])
@pytest.mark.parametrize("right", [0.02, 0.1, 0.33, 0.5, 0.77, 0.98])
def test_the_honest_confidence_earns_most(reward: Any, right: float) -> None:
    earned = [reward(confidence, right) for confidence in GRID]
    assert GRID[int(np.argmax(earned))] == right


@pytest.mark.parametrize("reward", [bounded_reward, paper_reward])
def test_a_soft_truth_earns_the_expectation_over_labels(reward: Any) -> None:
    assert reward(0.7, 0.4) == pytest.approx(0.4 * reward(0.7, 1.0) + 0.6 * reward(0.7, 0.0))


def test_the_paper_pays_more_for_a_surely_wrong_answer_than_for_an_honest_guess() -> None:
    # 80 % sure: 1.8 - 2 · 0.5004 = 0.799 for the honest guess, 1 + 2 ln 0.99 = 0.980 for naming a wrong label.
    honest = reward_of(response("joy", 0.8), LABELS, (0.0, 0.2, 0.8), "direct", "paper")
    gamed = reward_of(response("anger", 0.01), LABELS, (0.0, 0.2, 0.8), "direct", "paper")
    assert (honest, gamed) == (pytest.approx(0.7992, abs=1e-4), pytest.approx(0.9799, abs=1e-4))
    # The hole closes where q = 2 H(q), which is at 0.849.
    best = {right: max(paper_reward(c, right) for c in GRID) for right in (0.83, 0.86)}
    assert best[0.83] < 1.0 < best[0.86]


def test_the_paper_pays_more_for_a_broken_format_than_for_a_sure_error() -> None:
    broken = reward_of("joy!", LABELS, (1.0, 0.0, 0.0), "direct", "paper")
    sure = reward_of(response("joy", 0.96), LABELS, (1.0, 0.0, 0.0), "direct", "paper")
    less_sure = reward_of(response("joy", 0.95), LABELS, (1.0, 0.0, 0.0), "direct", "paper")
    assert broken == -5.0
    assert sure < broken < less_sure


def test_the_bounded_reward_has_no_such_holes() -> None:
    broken = reward_of("joy!", LABELS, (1.0, 0.0, 0.0), "direct", "bounded")
    assert broken == 0.0
    for right in np.linspace(0.0, 1.0, 21):
        assert min(bounded_reward(c, right) for c in GRID) > broken
    # Every way to split the truth between three labels: the likeliest label at its own probability earns most.
    for first in range(0, 101, 5):
        for second in range(0, 101 - first, 5):
            truth = np.array([first, second, 100 - first - second]) / 100
            honest = bounded_reward(truth.max(), truth.max())
            others = [bounded_reward(c, right) for right in truth if right < truth.max() for c in (0.0, *GRID)]
            assert honest > max(others, default=-math.inf)


HONEST, SURELY_WRONG, BROKEN = response("joy", "{q}"), response("anger", 0.01), "joy!"


@pytest.mark.parametrize(
    ("q", "paper", "bounded"),
    [
        # Honest 1 + q - 2 H(q), named surely wrong 1 + 2 ln 0.99, broken; then 1 + q - q(1 - q), 1 - 0.01², broken.
        (0.30, (0.0783, 0.9799, -5.0), (1.09, 0.9999, 0.0)),
        (0.50, (0.1137, 0.9799, -5.0), (1.25, 0.9999, 0.0)),
        (0.70, (0.4783, 0.9799, -5.0), (1.49, 0.9999, 0.0)),
        (0.80, (0.7992, 0.9799, -5.0), (1.64, 0.9999, 0.0)),
        (0.90, (1.2498, 0.9799, -5.0), (1.81, 0.9999, 0.0)),
        (0.97, (1.7005, 0.9799, -5.0), (1.9409, 0.9999, 0.0)),
    ],
)
def test_what_honesty_and_games_earn(q: float, paper: tuple[float, ...], bounded: tuple[float, ...]) -> None:
    """Expected rewards where the best label is right with probability q, and one label is surely wrong."""
    truth = (0.0, 1.0 - q, q)
    for kind, expected in (("paper", paper), ("bounded", bounded)):
        earned = [reward_of(text, LABELS, truth, "direct", kind) for text in (HONEST.format(q=q), SURELY_WRONG, BROKEN)]
        assert earned == pytest.approx(expected, abs=1e-4)
    assert bounded[0] > max(bounded[1:])
    assert (paper[0] > max(paper[1:])) == (q > 0.849)


def test_where_the_holes_of_the_paper_begin() -> None:
    def honest(q: float) -> float:
        return q + 2.0 * (q * math.log(q) + (1.0 - q) * math.log(1.0 - q))

    # A surely wrong answer at c -> 0 earns 1: as much as the honest one where q = 2 H(q).
    assert brentq(honest, 0.5, 0.99) == pytest.approx(0.8490, abs=1e-4)
    # An error at c earns 1 + 2 ln(1 - c), which is the -5 of a broken format where c = 1 - e^-3.
    costs = [paper_reward(c, 0.0) for c in (0.9502, 0.9503)]
    assert costs[0] > BAD_FORMAT_PAPER > costs[1]
    assert 1.0 - math.exp(-3.0) == pytest.approx(0.9502, abs=1e-4)


def test_soft_correctness_follows_the_votes() -> None:
    truth = (0.1, 0.3, 0.6)
    # 1 + 0.6 - (0.6 · 0.25 + 0.4 · 0.25), and 1 + 0.3 - 0.25.
    assert reward_of(response("joy", 0.5), LABELS, truth, "direct", "bounded") == pytest.approx(1.35)
    assert reward_of(response("FEAR", 0.5), LABELS, truth, "direct", "bounded") == pytest.approx(1.05)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "joy",
        "<answer>joy</answer>",
        response("joy", 1.0),
        response("joy", "high"),
        response("love", 0.5),
        response("joy", 0.5) + " indeed",
        response("joy", 0.5) * 2,
        THINK + response("joy", 0.5),
        "<confidence>0.5</confidence><answer>joy</answer>",
    ],
)
def test_whatever_breaks_the_grammar_earns_nothing(text: str) -> None:
    assert reward_of(text, LABELS, (0.0, 0.0, 1.0), "direct", "bounded") == 0.0


def test_reason_mode_demands_the_reasoning() -> None:
    truth = (0.0, 0.0, 1.0)
    assert reward_of(response("joy", 0.8), LABELS, truth, "reason", "bounded") == 0.0
    assert reward_of(THINK + response("joy", 0.8), LABELS, truth, "reason", "bounded") == pytest.approx(1.96)
    assert reward_of(response("joy", 0.8), LABELS, truth, "reason", "paper") == -5.0
    # The paper asks for the tags, not for what stands in them.
    loose = "<think>hm</think>" + response("joy", 0.8)
    assert reward_of(loose, LABELS, truth, "reason", "paper") == pytest.approx(1.553713, abs=1e-6)


@pytest.mark.parametrize("confidence", ["0", "1", "1.5", "-0.2", "high", "nan", ""])
def test_the_paper_punishes_confidences_outside_the_open_interval(confidence: str) -> None:
    assert reward_of(response("joy", confidence), LABELS, (0.0, 0.0, 1.0), "direct", "paper") == -5.0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("joy", 1.0),
        (" Joy. ", 1.0),
        ("{joy}", 1.0),
        ("joyful", 0.0),
        ("joy or love", 0.0),
        ("fear or joy", 0.0),
        ("love", 0.0),
        ("", 0.0),
    ],
)
def test_the_paper_takes_exactly_the_one_word_as_right(answer: str, right: float) -> None:
    earned = reward_of(response(answer, 0.5), LABELS, (0.0, 0.0, 1.0), "direct", "paper")
    assert earned == pytest.approx(1.0 + right + 2.0 * math.log(0.5))


def test_the_trainer_gets_one_reward_a_completion_and_what_was_stated() -> None:
    reward = make_reward("bounded")
    logged: dict[str, Any] = {}
    turn = [{"role": "assistant", "content": response("anger", 0.8)}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "<answer>"}, {"type": "text", "text": "?"}]}]
    earned = reward(
        completions=[turn, parts, response("joy", 0.4), response("joy", 0.4)],
        candidates=[LABELS] * 4,
        truth=[(0.75, 0.0, 0.25)] * 4,
        mode=["direct"] * 4,
        prompts=["ignored"] * 4,
        log_metric=logged.__setitem__,
        log_extra=logged.__setitem__,
    )
    # 1 + 0.75 - (0.75 · 0.04 + 0.25 · 0.64), and 1 + 0.25 - (0.25 · 0.36 + 0.75 · 0.16).
    assert earned == pytest.approx([1.56, 0.0, 1.04, 1.04])
    assert reward.__name__ == "bounded_reward"
    assert logged == {
        "parse_rate": 0.75,
        "confidence": [0.8, None, 0.4, 0.4],
        "right": [0.75, None, 0.25, 0.25],
    }
