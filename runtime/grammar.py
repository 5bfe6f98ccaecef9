"""The response grammar: five reasoning parts, an answer, a confidence.

::

    <think><element>…</element><human>…</human><context>…</context><interaction>…</interaction><analysis>…</analysis></think>
    <answer>LABEL</answer><confidence>0.85</confidence>

*reason* mode produces all of it, *direct* mode starts at ``<answer>``. A model of stage 1, which has not yet learnt to
verbalise a confidence, stops after the answer. `parse_response` is strict and says what is wrong;
`parse_response_official` behaves as the published scripts do, quirks included, for comparisons only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import ResponseError

Mode = Literal["direct", "reason"]
MODES: tuple[Mode, ...] = ("direct", "reason")

AskedMode = Literal["direct", "reason", "auto"]
ASKED_MODES: tuple[AskedMode, ...] = (*MODES, "auto")
"""What a caller may ask for: ``auto`` answers in one of `MODES`, as each image needs."""

REASONING_TAGS = ("element", "human", "context", "interaction", "analysis")
"""The five parts of the reasoning, in order."""

TAGS = ("think", *REASONING_TAGS, "answer", "confidence")
"""Every tag of the grammar."""

TAG_TOKENS = tuple(token for tag in TAGS for token in (f"<{tag}>", f"</{tag}>"))
"""Opening and closing form of every tag."""

ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
CONFIDENCE_OPEN, CONFIDENCE_CLOSE = "<confidence>", "</confidence>"
THINK_CLOSE = "</think>"

CONFIDENCE_GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The values a model is taught to verbalise: 0.05, 0.10, … 0.95."""

_NUMBER = re.compile(r"(?:0?\.\d{1,6}|[01]\.\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A parsed response."""

    answer: str
    """The candidate the response chose, as the candidate list spells it."""
    confidence: float | None
    """Verbalised probability that the answer is right, in (0, 1); None where the response states none."""
    reasoning: dict[str, str] | None
    """Text of each of the five parts; None in direct mode."""


def render_response(answer: str, confidence: float | None, reasoning: Mapping[str, str] | None) -> str:
    """Returns the response text for these parts: the inverse of `parse_response`.

    Raises:
        ResponseError: If a reasoning part is missing or holds a tag, or the confidence is outside (0, 1).
    """
    parts = []
    if reasoning is not None:
        parts.append(render_reasoning(reasoning))
    parts.append(f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}")
    if confidence is not None:
        parts.append(f"{CONFIDENCE_OPEN}{format_confidence(confidence)}{CONFIDENCE_CLOSE}")
    return "".join(parts)


def render_reasoning(reasoning: Mapping[str, str]) -> str:
    """Returns the ``<think>…</think>`` block.

    Raises:
        ResponseError: If a part is missing, unknown, or holds an angle bracket.
    """
    if set(reasoning) != set(REASONING_TAGS):
        raise ResponseError(f"reasoning has parts {sorted(reasoning)}, expected {list(REASONING_TAGS)}")
    for tag, text in reasoning.items():
        if "<" in text or ">" in text:
            raise ResponseError(f"reasoning part {tag} holds an angle bracket: {text!r}")
    return "<think>" + "".join(f"<{tag}>{reasoning[tag]}</{tag}>" for tag in REASONING_TAGS) + "</think>"


def format_confidence(confidence: float) -> str:
    """Returns the confidence as the grammar writes it: the nearest value of `CONFIDENCE_GRID`, two decimals.

    Raises:
        ResponseError: If it is not a probability in [0, 1].
    """
    if not 0.0 <= confidence <= 1.0:
        raise ResponseError(f"confidence {confidence!r} is not in [0, 1]")
    return f"{min(CONFIDENCE_GRID, key=lambda value: abs(value - confidence)):.2f}"


def parse_response(text: str, candidates: Sequence[str], mode: Mode, *, needs_confidence: bool = True) -> Response:
    """Returns the parts of a response that follows the grammar exactly.

    White space around tags is allowed; nothing else may stand between, before or after them.

    Args:
        text: What the model wrote, special end tokens removed.
        candidates: The labels it had to choose from; compared after case folding.
        mode: Whether the five-part reasoning is required (``reason``) or refused (``direct``).
        needs_confidence: Whether the confidence is required; without, it is accepted where present.

    Raises:
        ResponseError: Saying which rule was broken.
    """
    for tag in TAGS:
        opened, closed = text.count(f"<{tag}>"), text.count(f"</{tag}>")
        if tag in REASONING_TAGS or tag == "think":
            expected = int(mode == "reason")
        elif tag == "answer" or needs_confidence:
            expected = 1
        else:
            expected = min(opened, 1)
        if opened != expected or closed != expected:
            counts = f"opened {opened} and closed {closed} times"
            raise ResponseError(f"<{tag}> is {counts}, expected {expected} in {mode} mode")
    names = [*(("think", *REASONING_TAGS) if mode == "reason" else ()), "answer"]
    if "<confidence>" in text:
        names.append("confidence")
    rest, found = text, {}
    if mode == "reason":
        rest = _take_literal(rest, "<think>")
        for tag in REASONING_TAGS:
            found[tag], rest = _take_element(rest, tag)
        rest = _take_literal(rest, "</think>")
    for tag in names[names.index("answer") :]:
        found[tag], rest = _take_element(rest, tag)
    if rest.strip():
        raise ResponseError(f"text after the last tag: {rest.strip()[:40]!r}")
    return Response(
        answer=_match_candidate(found["answer"], candidates),
        confidence=_parse_confidence(found["confidence"]) if "confidence" in found else None,
        reasoning={tag: found[tag].strip() for tag in REASONING_TAGS} if mode == "reason" else None,
    )


def _take_literal(text: str, literal: str) -> str:
    stripped = text.lstrip()
    if not stripped.startswith(literal):
        raise ResponseError(f"expected {literal} but found {stripped[:30]!r}")
    return stripped[len(literal) :]


def _take_element(text: str, tag: str) -> tuple[str, str]:
    rest = _take_literal(text, f"<{tag}>")
    inner, closing, rest = rest.partition(f"</{tag}>")
    if not closing:
        raise ResponseError(f"<{tag}> is not closed before the next part")
    if "<" in inner or ">" in inner:
        raise ResponseError(f"<{tag}> holds an angle bracket: {inner[:40]!r}")
    return inner, rest


def _match_candidate(answer: str, candidates: Sequence[str]) -> str:
    folded = answer.strip().casefold()
    for candidate in candidates:
        if candidate.casefold() == folded:
            return candidate
    raise ResponseError(f"answer {answer!r} is not one of {', '.join(candidates)}")


def _parse_confidence(text: str) -> float:
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped):
        raise ResponseError(f"confidence {text!r} is not a decimal number between 0 and 1")
    value = float(stripped)
    if not 0.0 < value < 1.0:
        raise ResponseError(f"confidence {text!r} is not strictly between 0 and 1")
    return value


_OFFICIAL_ANSWER = re.compile(r"<answer>(.*?)</answer>")
_OFFICIAL_CONFIDENCE = re.compile(r"<confidence>(.*?)</confidence>")


def parse_response_official(text: str, candidates: Sequence[str]) -> Response | None:
    """Returns what the published scripts read from a response, or None where they drop the line.

    The answer is lower-cased: the first candidate *in list order* that occurs as a substring of the first one-line
    ``<answer>`` element of the lower-cased text, or of the whole lower-cased text where that element is missing or
    empty (white space is not empty), else ``unknown``. The confidence is the first one-line ``<confidence>`` element,
    tags in lower case, without braces, as a float of any size, ``nan`` and ``inf`` included; a text that is no float
    drops the line; no element leaves it None.
    """
    confidence: float | None = None
    stated = _OFFICIAL_CONFIDENCE.search(text)
    if stated:
        try:
            confidence = float(stated.group(1).replace("{", "").replace("}", ""))
        except ValueError:
            return None
    return Response(answer=official_answer(text, candidates), confidence=confidence, reasoning=None)


def official_answer(text: str, candidates: Sequence[str]) -> str:
    """Returns the answer of `parse_response_official`, whatever the confidence is."""
    lowered = text.lower()
    answered = _OFFICIAL_ANSWER.search(lowered)
    searched = answered.group(1) if answered and answered.group(1) else lowered
    return next((candidate.lower() for candidate in candidates if candidate.lower() in searched), "unknown")
