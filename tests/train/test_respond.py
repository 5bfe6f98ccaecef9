"""Responses in a journal, and as lines for the evaluator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from emocaliber.evaluate.responders import Drawing, Request
from emocaliber.evaluate.responses import read_responses
from emocaliber.runtime.errors import BackendError, InputError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample
from emocaliber.train import respond
from emocaliber.train.respond import journaled_responses, write_responses

DRAWING = Drawing(count=2, temperature=1.0, seed=10)
SAMPLES = [Sample(image=f"/{number}.png", taxonomy="emoset-8", answer="awe") for number in range(5)]


class Echo:
    """Answers with what it was asked, and breaks down when told to."""

    name = "echo"

    def __init__(self, breakdown: int | None = None) -> None:
        self.asked: list[str] = []
        self._breakdown = breakdown

    def respond(self, requests: Sequence[Request], drawing: Drawing) -> list[list[str]]:
        if len(self.asked) == self._breakdown:
            raise BackendError("the power went out")
        self.asked += [str(request.image) for request in requests]
        return [[f"{request.image} {drawing.seed} {number}" for number in range(2)] for request in requests]


def collected(responder: Echo, path: Path) -> list[list[str]]:
    return journaled_responses(responder, SAMPLES, PromptTemplate(), "reason", DRAWING, path)


def test_interrupted_work_ends_as_uninterrupted_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "CHUNK", 2)
    whole = collected(Echo(), tmp_path / "whole.jsonl")
    assert whole == [[f"/{i}.png {10 + i // 2} {n}" for n in range(2)] for i in range(5)]
    with pytest.raises(BackendError, match="power"):
        collected(Echo(breakdown=4), tmp_path / "torn.jsonl")
    later = Echo()
    assert collected(later, tmp_path / "torn.jsonl") == whole
    assert later.asked == ["/4.png"]
    assert (tmp_path / "torn.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_evaluator_reads_the_lines(tmp_path: Path) -> None:
    texts = [["<answer>awe</answer><confidence>0.75</confidence>"]] * 5
    write_responses(SAMPLES, texts, tmp_path / "responses.jsonl")
    lines = read_responses(tmp_path / "responses.jsonl")
    assert [(line.task, line.ground_truth, line.image, line.response) for line in lines] == [
        ("EmoSet-8", "awe", f"/{number}.png", texts[0][0]) for number in range(5)
    ]
    assert lines[0].candidates == (
        "amusement",
        "anger",
        "awe",
        "contentment",
        "disgust",
        "excitement",
        "fear",
        "sadness",
    )
    assert json.loads((tmp_path / "responses.jsonl").read_text(encoding="utf-8").splitlines()[0])["id"] == "/0.png"


def test_a_response_without_a_truth_cannot_be_judged(tmp_path: Path) -> None:
    sample = Sample(image="a.png", taxonomy="fi-2")
    with pytest.raises(InputError, match=r"sample a\.png has no answer, so its response cannot be judged"):
        write_responses([sample], [["x"]], tmp_path / "responses.jsonl")
    assert not any(tmp_path.iterdir())
