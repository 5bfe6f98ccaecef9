"""Rewards of stage *calibrate*: what a response earns, given how probable each candidate is to be right.

Both rewards are proper in the stated confidence: for an answer that is right with probability q, the expected reward is
highest at c = q. They differ in what they do to the *answer* and to the *format*: the paper's can pay more for a surely
wrong answer with c near 0 than for an honest guess, and more for a broken format than for a wrong answer.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from emocaliber.runtime.errors import ResponseError
from emocaliber.runtime.grammar import Mode, parse_response, parse_response_official

BAD_FORMAT_PAPER = -5.0

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

RewardFunction = Callable[..., list[float | None]]


def bounded_reward(confidence: float, right: float) -> float:
    """Returns ``1 + q − E[(c − i)²]`` for a well-formed response, in [0, 2].

    q = ``right`` is the probability that the answer is right and i the event that it is, so E[(c − i)²] =
    q(1 − c)² + (1 − q)c². A response that breaks the format earns 0, never more than a well-formed one.
    After RLCR (Damani et al. 2025, arXiv 2507.16806): correctness minus the Brier score.

    Args:
        confidence: Stated confidence c in (0, 1).
        right: Probability in [0, 1] that the answer is right: 0 or 1 for a single label, the vote share with votes.
    """
    brier = right * (1.0 - confidence) ** 2 + (1.0 - right) * confidence**2
    return 1.0 + right - brier


def paper_reward(confidence: float, right: float) -> float:
    """Returns the paper's reward ``1 + i + 2(i ln c + (1 − i) ln(1 − c))``, in expectation over i (arXiv 2512.15528).

    Unbounded below. The published script clips nothing; 0 < c < 1 is required for the format.
    """
    return 1.0 + right + 2.0 * (right * math.log(confidence) + (1.0 - right) * math.log(1.0 - confidence))


def reward_of(text: str, candidates: Sequence[str], truth: Sequence[float], mode: Mode, kind: str) -> float:
    """Returns what one response earns under the reward ``kind`` (``bounded`` or ``paper``).

    Args:
        text: The response.
        candidates: Labels it had to choose from.
        truth: Probability that each candidate is right.
        mode: Response mode; ``bounded`` demands its exact grammar.
        kind: Reward's name.
    """
    if kind == "bounded":
        try:
            response = parse_response(text, candidates, mode)
        except ResponseError:
            return 0.0
        assert response.confidence is not None
        return bounded_reward(response.confidence, truth[list(candidates).index(response.answer)])
    loose = parse_response_official(text, candidates)
    needed = ("answer", "confidence", *(("think",) if mode == "reason" else ()))
    tagged = all(f"<{tag}>" in text and f"</{tag}>" in text for tag in needed)
    if loose is None or loose.confidence is None or not tagged or not 0.0 < loose.confidence < 1.0:
        return BAD_FORMAT_PAPER
    return paper_reward(loose.confidence, _right_by_word(text, candidates, truth))


def _right_by_word(text: str, candidates: Sequence[str], truth: Sequence[float]) -> float:
    """Returns how probable the answer is to be right; as in the paper, it is one word, but for case and punctuation."""
    found = _ANSWER.search(text)
    word = found.group(1).strip(string.punctuation + string.whitespace).lower() if found else ""
    return next((p for candidate, p in zip(candidates, truth, strict=True) if candidate.lower() == word), 0.0)


def make_reward(kind: str) -> RewardFunction:
    """Returns the reward as TRL's `GRPOTrainer` calls it.

    It logs the share of responses that follow the grammar (``parse_rate``), and for each response the confidence it
    states and how probable its answer is to be right (columns ``confidence`` and ``right``; None where it does not
    parse).
    """

    def reward(
        completions: Sequence[Any], candidates: Sequence[Sequence[str]], truth: Sequence[Sequence[float]],
        mode: Sequence[Mode], log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[float | None]], None] | None = None, **columns: Any,
    ) -> list[float | None]:  # fmt: skip
        texts = [completion if isinstance(completion, str) else _text_of(completion) for completion in completions]
        rows = list(zip(texts, candidates, truth, mode, strict=True))
        stated = [_stated(*row) for row in rows]
        if log_metric is not None:
            log_metric("parse_rate", sum(pair is not None for pair in stated) / len(stated))
        if log_extra is not None:
            for place, name in enumerate(("confidence", "right")):
                log_extra(name, [None if pair is None else pair[place] for pair in stated])
        return [reward_of(*row, kind) for row in rows]

    reward.__name__ = f"{kind}_reward"
    return reward


def _text_of(completion: Sequence[dict[str, Any]]) -> str:
    content = completion[0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _stated(text: str, candidates: Sequence[str], truth: Sequence[float], mode: Mode) -> tuple[float, float] | None:
    """Returns the stated confidence and the probability that the answer is right, or None if the grammar is broken."""
    try:
        response = parse_response(text, candidates, mode)
    except ResponseError:
        return None
    assert response.confidence is not None
    return response.confidence, truth[list(candidates).index(response.answer)]
