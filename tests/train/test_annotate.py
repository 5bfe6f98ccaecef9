"""Confidence labels from success rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from tiny_run import tiny_recipe

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import REASONING_TAGS, render_response
from emocaliber.runtime.samples import Sample
from emocaliber.train import annotate
from emocaliber.train.annotate import annotate_confidence, smoothed_rate

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


def annotated(
    monkeypatch: pytest.MonkeyPatch, samples: Sequence[Sample], responses: dict[str, list[str]], **arguments: Any
) -> dict[str, float | None]:
    """Annotates with a sampler that answers from a table of responses; returns confidences by image."""
    asked: dict[str, Any] = {}

    def sampler(model: Any, processor: Any, chosen: Sequence[Sample], *_: Any, **options: Any) -> list[list[str]]:
        asked.update(options)
        return [responses[sample.image] for sample in chosen]

    monkeypatch.setattr(annotate, "sample_responses", sampler)
    recipe = arguments.pop("recipe", RECIPE)
    result = annotate_confidence(None, None, samples, recipe, mode="reason", max_new_tokens=9)
    assert (asked["count"], asked["max_new_tokens"]) == (recipe.annotate.samples, 9)
    assert all(dataclasses.replace(s, confidence=None) in samples for s in result)
    return {sample.image: sample.confidence for sample in result}


def test_smoothed_rate_by_hand() -> None:
    assert smoothed_rate(3, 4, 0.5) == pytest.approx(3.5 / 5)
    assert smoothed_rate(0, 8, 1.0) == pytest.approx(0.1)
    assert smoothed_rate(5, 5, 0.5) == pytest.approx(5.5 / 6)


def test_confidences_are_smoothed_success_rates(monkeypatch: pytest.MonkeyPatch, samples: list[Sample]) -> None:
    first, second, third, _ = samples
    responses = {
        first.image: [right(first)] * 3 + [wrong(first)],
        # Broken grammar counts as wrong; a stated confidence is welcome.
        second.image: [right(second), "fear", right(second)[:-2], right(second) + "<confidence>0.50</confidence>"],
        third.image: [wrong(third)] * 4,
    }
    found = annotated(monkeypatch, samples[:3], responses)
    assert found == {"0.png": pytest.approx(0.7), "1.png": pytest.approx(0.5), "2.png": pytest.approx(0.1)}


def test_confidences_stay_on_the_grid(monkeypatch: pytest.MonkeyPatch, samples: list[Sample]) -> None:
    recipe = tiny_recipe(annotate={"samples": 20, "images": 2, "prior": 0.01})
    responses = {"0.png": [right(samples[0])] * 20, "1.png": [wrong(samples[1])] * 20}
    found = annotated(monkeypatch, samples[:2], responses, recipe=recipe)
    assert found == {"0.png": 0.95, "1.png": 0.05}


def test_no_more_images_than_asked_always_the_same(monkeypatch: pytest.MonkeyPatch, samples: list[Sample]) -> None:
    responses = {sample.image: [right(sample)] * 4 for sample in samples}
    found = annotated(monkeypatch, samples, responses)
    assert len(found) == 3
    assert list(annotated(monkeypatch, samples, responses)) == list(found)


def test_samples_without_an_answer_are_refused(samples: list[Sample]) -> None:
    samples[1] = dataclasses.replace(samples[1], answer=None, id="one")
    with pytest.raises(InputError, match="sample one has no answer"):
        annotate_confidence(None, None, samples, RECIPE, mode="reason", max_new_tokens=9)
