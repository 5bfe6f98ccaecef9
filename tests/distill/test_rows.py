"""From traces to training rows, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from emocaliber.distill.rows import student_rows
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.samples import Sample

VOTED = Sample(image="/a.png", taxonomy="sentiment-2", votes={"negative": 3.0, "positive": 1.0}, id="voted")
ANSWERED = Sample(image="/b.png", taxonomy="sentiment-2", answer="negative", id="answered")


def trace(**changes: Any) -> dict[str, Any]:
    return {
        "id": "voted",
        "image": "/a.png",
        "taxonomy": "sentiment-2",
        "labels": ["negative", "positive"],
        "mode": "direct",
        "sample": 0,
        "reasoning": "",
        "answer": "positive",
        "confidence": 0.72,
        "label_scores": [-5.0, -5.0 + math.log(3.0)],  # odds of 1 to 3: the teacher says (0.25, 0.75)
        "parsed": True,
        "fault": "",
        "teacher": "t",
        "seed": 0,
        "temperature": None,
        **changes,
    }


@pytest.mark.parametrize(("share", "negative"), [(0.0, 0.25), (0.4, 0.45), (1.0, 0.75)])
def test_targets_mix_teacher_and_votes(share: float, negative: float) -> None:
    rows, skipped = student_rows([trace()], [VOTED], votes_share=share)
    assert skipped == 0
    assert rows[0].target == pytest.approx((negative, 1.0 - negative))


def test_without_votes_the_target_is_the_teachers_own() -> None:
    rows, _ = student_rows([trace(id="answered")], [ANSWERED], votes_share=0.9)
    assert rows[0].target == pytest.approx((0.25, 0.75))


def test_rows_say_what_the_teacher_said() -> None:
    reasoned = trace(mode="reason", reasoning="<think>…</think>")
    first, second = student_rows([trace(), reasoned], [VOTED], votes_share=0.5)[0]
    assert (first.image, first.mode, first.reasoning, first.answer) == ("/a.png", "direct", "", "positive")
    assert first.response == "<answer>positive</answer><confidence>0.70</confidence>"
    assert (second.mode, second.reasoning) == ("reason", "<think>…</think>")


def test_traces_that_broke_the_grammar_are_left_out_and_counted() -> None:
    rows, skipped = student_rows([trace(parsed=False, fault="?"), trace(), trace(parsed=False)], [VOTED], votes_share=0)
    assert (len(rows), skipped) == (1, 2)


def test_foreign_traces_are_refused() -> None:
    with pytest.raises(InputError, match="trace other belongs to no sample given; collect the traces again"):
        student_rows([trace(id="other")], [VOTED], votes_share=0.5)
    with pytest.raises(InputError, match=r"trace voted has labels .'positive', 'negative'., its sample"):
        student_rows([trace(labels=["positive", "negative"])], [VOTED], votes_share=0.5)
