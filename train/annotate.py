"""Confidence labels for stage *verbalize*: how often the stage-1 model is right about an image, or what votes say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from emocaliber.evaluate.responders import Drawing, Responder
from emocaliber.runtime.errors import InputError, ResponseError
from emocaliber.runtime.grammar import CONFIDENCE_GRID, Mode, parse_response
from emocaliber.runtime.samples import Sample

from .choosing import choose_samples
from .recipe import Recipe
from .respond import shared_responses
from .stage_recipes import AnnotateRecipe


def smoothed_rate(successes: float, trials: int, prior: float) -> float:
    """Returns the posterior mean of a success probability under a Beta(prior, prior) prior: (s + a) / (n + 2a)."""
    return (successes + prior) / (trials + 2.0 * prior)


def annotate_from_responses(
    responder: Responder, samples: Sequence[Sample], recipe: Recipe, journal: Path, *, mode: Mode, max_new_tokens: int
) -> list[Sample]:
    """Returns some of the samples, each with a confidence for its answer.

    The confidence is the smoothed share of K sampled responses that reach the sample's answer; responses that break the
    grammar count as wrong. All processes of the run share the images.

    Args:
        responder: The stage-1 model.
        samples: Samples with answers.
        recipe: The run; its ``annotate`` table says how many images and responses.
        journal: Where responses are kept, so that an interrupted draw goes on.
        mode: Response mode of the sampled responses.
        max_new_tokens: Longest response.

    Raises:
        InputError: If a sample has no answer.
    """
    table: AnnotateRecipe = recipe.stage("annotate")
    for sample in samples:
        if sample.answer is None:
            raise InputError(f"sample {sample.id} has no answer, so no success rate can be measured for it")
    chosen = _chosen(samples, recipe)
    drawing = Drawing(
        count=table.samples, temperature=table.temperature, max_new_tokens=max_new_tokens, seed=recipe.seed
    )
    responses = shared_responses(responder, chosen, recipe.prompt, mode, drawing, journal)
    annotated = []
    for sample, texts in zip(chosen, responses, strict=True):
        successes = sum(_answer_of(text, sample, mode) == sample.answer for text in texts)
        annotated.append(_with_confidence(sample, smoothed_rate(successes, len(texts), table.prior)))
    return annotated


def annotate_from_votes(samples: Sequence[Sample], recipe: Recipe) -> list[Sample]:
    """Returns some of the samples, each with the share of the votes that its answer got as its confidence.

    Raises:
        InputError: If a sample has no answer or no votes.
    """
    annotated = []
    for sample in _chosen(samples, recipe):
        distribution = sample.distribution()
        if sample.answer is None or sample.votes is None or distribution is None:
            missing = "answer" if sample.answer is None else "votes"
            raise InputError(f"sample {sample.id} has no {missing}, so annotate.source = 'votes' cannot be used")
        annotated.append(_with_confidence(sample, distribution[sample.resolve().index(sample.answer)]))
    return annotated


def _chosen(samples: Sequence[Sample], recipe: Recipe) -> list[Sample]:
    """Returns the samples that are annotated, in an order the seed fixes."""
    table: AnnotateRecipe = recipe.stage("annotate")
    return choose_samples(samples, table.images, recipe.data.balance, recipe.seed + 1)


def _with_confidence(sample: Sample, confidence: float) -> Sample:
    """Returns the sample with a confidence that lies within the grid a model can state."""
    return dataclasses.replace(sample, confidence=min(max(confidence, CONFIDENCE_GRID[0]), CONFIDENCE_GRID[-1]))


def _answer_of(text: str, sample: Sample, mode: Mode) -> str | None:
    try:
        return parse_response(text, sample.resolve().labels, mode, needs_confidence=False).answer
    except ResponseError:
        return None
