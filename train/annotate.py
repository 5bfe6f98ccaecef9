"""Confidence labels for stage *verbalize*: how often the stage-1 model is right about an image."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from emocaliber.runtime.errors import InputError, ResponseError
from emocaliber.runtime.grammar import CONFIDENCE_GRID, Mode, parse_response
from emocaliber.runtime.samples import Sample

from .recipe import AnnotateRecipe, Recipe
from .sampling import sample_responses


def smoothed_rate(successes: int, trials: int, prior: float) -> float:
    """Returns the posterior mean of a success probability under a Beta(prior, prior) prior: (s + a) / (n + 2a)."""
    return (successes + prior) / (trials + 2.0 * prior)


def annotate_confidence(
    model: Any, processor: Any, samples: Sequence[Sample], recipe: Recipe, *, mode: Mode, max_new_tokens: int
) -> list[Sample]:
    """Returns some of the samples, each with a confidence for its answer.

    The confidence is the smoothed share of K sampled responses that reach the sample's answer; responses that break the
    grammar count as wrong.

    Args:
        model: The stage-1 model.
        processor: Its processor.
        samples: Samples with answers.
        recipe: The run; its ``annotate`` table says how many images and responses.
        mode: Response mode of the sampled responses.
        max_new_tokens: Longest response.

    Raises:
        InputError: If a sample has no answer.
    """
    table: AnnotateRecipe = recipe.stage("annotate")
    for sample in samples:
        if sample.answer is None:
            raise InputError(f"sample {sample.id} has no answer, so no success rate can be measured for it")
    chosen = list(samples)
    random.Random(recipe.seed + 1).shuffle(chosen)  # noqa: S311 - reproducible choice, not secrecy
    chosen = chosen[: table.images]
    responses = sample_responses(
        model, processor, chosen, recipe.prompt, mode, count=table.samples, temperature=table.temperature,
        batch_size=table.batch_size, seed=recipe.seed, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    annotated = []
    for sample, texts in zip(chosen, responses, strict=True):
        successes = sum(_answer_of(text, sample, mode) == sample.answer for text in texts)
        rate = smoothed_rate(successes, len(texts), table.prior)
        confidence = min(max(rate, CONFIDENCE_GRID[0]), CONFIDENCE_GRID[-1])
        annotated.append(dataclasses.replace(sample, confidence=confidence))
    return annotated


def _answer_of(text: str, sample: Sample, mode: Mode) -> str | None:
    try:
        return parse_response(text, sample.resolve().labels, mode, needs_confidence=False).answer
    except ResponseError:
        return None
