"""Confidence labels from success rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tiny_run import tiny_recipe

from emocaliber.evaluate.responders import Drawing, Request
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import REASONING_TAGS, render_response
from emocaliber.runtime.samples import Sample
from emocaliber.train.annotate import annotate_from_responses, annotate_from_votes, smoothed_rate
from emocaliber.train.recipe import Recipe

REASONING = dict.fromkeys(REASONING_TAGS, "x")
RECIPE = tiny_recipe(annotate={"samples": 4, "images": 3, "prior": 0.5})


def right(sample: Sample) -> str:
    assert sample.answer is not None
    return render_response(sample.answer, None, REASONING)


def wrong(sample: Sample) -> str:
    other = next(label for label in sample.resolve().labels if label != sample.answer)
    return render_response(other, None, REASONING)


@pytest.fixture
def samples() -> list[Sample]:
    answers = ("joy", "fear", "Anger", "joy")
    return [
        Sample(image=f"{i}.png", taxonomy="emotion6-7", answer=answer, reasoning=REASONING)
        for i, answer in enumerate(answers)
    ]


class Scripted:
    """Answers from a table of responses by image."""

    name = "scripted"

    def __init__(self, responses: dict[str, list[str]]) -> None:
        self.responses = responses
        self.drawings: list[Drawing] = []

    def respond(self, requests: Sequence[Request], drawing: Drawing) -> list[list[str]]:
        self.drawings.append(drawing)
        return [self.responses[str(request.image)] for request in requests]


def annotated(
    samples: Sequence[Sample], responses: dict[str, list[str]], recipe: Recipe = RECIPE
) -> dict[str, float | None]:
    """Returns confidences by image."""
    assert recipe.annotate is not None
    responder = Scripted(responses)
    with TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.jsonl"
        result = annotate_from_responses(responder, samples, recipe, journal, mode="reason", max_new_tokens=9)
    expected = Drawing(count=recipe.annotate.samples, temperature=1.0, max_new_tokens=9, seed=recipe.seed)
    assert responder.drawings == [expected]
    assert all(dataclasses.replace(s, confidence=None) in samples for s in result)
    return {sample.image: sample.confidence for sample in result}


def test_smoothed_rate_by_hand() -> None:
    assert smoothed_rate(3, 4, 0.5) == pytest.approx(3.5 / 5)
    assert smoothed_rate(0, 8, 1.0) == pytest.approx(0.1)
    assert smoothed_rate(5, 5, 0.5) == pytest.approx(5.5 / 6)


def test_confidences_are_smoothed_success_rates(samples: list[Sample]) -> None:
    first, second, third, _ = samples
    responses = {
        first.image: [right(first)] * 3 + [wrong(first)],
        # Broken grammar counts as wrong; a stated confidence is welcome.
        second.image: [right(second), "fear", right(second)[:-2], right(second) + "<confidence>0.50</confidence>"],
        third.image: [wrong(third)] * 4,
    }
    found = annotated(samples[:3], responses)
    assert found == {"0.png": pytest.approx(0.7), "1.png": pytest.approx(0.5), "2.png": pytest.approx(0.1)}


def test_confidences_stay_on_the_grid(samples: list[Sample]) -> None:
    recipe = tiny_recipe(annotate={"samples": 20, "images": 2, "prior": 0.01})
    responses = {"0.png": [right(samples[0])] * 20, "1.png": [wrong(samples[1])] * 20}
    found = annotated(samples[:2], responses, recipe=recipe)
    assert found == {"0.png": 0.95, "1.png": 0.05}


def test_no_more_images_than_asked_always_the_same(samples: list[Sample]) -> None:
    responses = {sample.image: [right(sample)] * 4 for sample in samples}
    found = annotated(samples, responses)
    assert len(found) == 3
    assert list(annotated(samples, responses)) == list(found)


def test_samples_without_an_answer_are_refused(samples: list[Sample]) -> None:
    samples[1] = dataclasses.replace(samples[1], answer=None, id="one")
    with pytest.raises(InputError, match="sample one has no answer"):
        annotate_from_responses(Scripted({}), samples, RECIPE, Path(), mode="reason", max_new_tokens=9)


def test_votes_give_the_share_of_the_answer() -> None:
    samples = [
        Sample(image="a.png", taxonomy="emotion6-7", answer="joy", votes={"joy": 3, "fear": 1}),
        Sample(image="b.png", taxonomy="emotion6-7", answer="fear", votes={"fear": 5}),
        Sample(image="c.png", taxonomy="emotion6-7", answer="anger", votes={"joy": 99, "anger": 1}),
    ]
    found = {sample.image: sample.confidence for sample in annotate_from_votes(samples, RECIPE)}
    assert found == {"a.png": pytest.approx(0.75), "b.png": 0.95, "c.png": 0.05}


def test_votes_are_needed_where_they_are_asked_for(samples: list[Sample]) -> None:
    with pytest.raises(InputError, match=r"has no votes, so annotate.source = 'votes' cannot be used"):
        annotate_from_votes(samples, RECIPE)
