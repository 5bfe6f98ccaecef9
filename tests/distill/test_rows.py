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
    with pytest.raises(
        InputError,
        match=r"trace voted lists awe, which its sample's taxonomy sentiment-2 \(negative, positive\) does not",
    ):
        student_rows([trace(labels=["positive", "awe"])], [VOTED], votes_share=0.5)


@pytest.mark.parametrize(("share", "negative"), [(0.0, 0.25), (0.4, 0.45), (1.0, 0.75)])
def test_votes_follow_the_order_in_which_the_trace_lists_the_labels(share: float, negative: float) -> None:
    turned = trace(labels=["positive", "negative"], label_scores=[-5.0 + math.log(3.0), -5.0])
    (row,), _ = student_rows([turned], [VOTED], votes_share=share)
    assert row.labels == ("positive", "negative")
    assert row.target == pytest.approx((1.0 - negative, negative))


def test_targets_of_some_of_the_labels_sum_to_one() -> None:
    votes = {"anger": 5.0, "awe": 3.0, "fear": 1.0, "sadness": 1.0}
    sample = Sample(image="/c.png", taxonomy="emoset-8", votes=votes, id="part")
    asked = trace(id="part", labels=["sadness", "awe"], answer="awe", label_scores=[math.log(0.3), math.log(0.1)])
    (row,), _ = student_rows([asked], [sample], votes_share=0.5)
    # The teacher says 3 to 1, the four votes that are left 1 to 3.
    assert row.target == pytest.approx((0.5, 0.5))
    (row,), _ = student_rows([asked], [sample], votes_share=1.0)
    assert row.target == pytest.approx((0.25, 0.75))


def test_votes_for_other_labels_alone_leave_the_teachers_word() -> None:
    sample = Sample(image="/c.png", taxonomy="emoset-8", votes={"anger": 5.0}, id="part")
    asked = trace(id="part", labels=["sadness", "awe"], answer="awe", label_scores=[math.log(0.3), math.log(0.1)])
    (row,), _ = student_rows([asked], [sample], votes_share=0.9)
    assert row.target == pytest.approx((0.75, 0.25))
