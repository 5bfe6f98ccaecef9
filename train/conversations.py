"""Samples as conversations: the prompt a model sees and the response it should give."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset
from datasets import Image as ImageFeature
from datasets import Sequence as SequenceFeature

from emocaliber.evaluate.responders import Request
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import Mode, render_response
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample

Item = TypeVar("Item")


def request_of(sample: Sample, template: PromptTemplate, mode: Mode) -> Request:
    """Returns the question that this sample's response answers."""
    return Request(
        image=sample.image,
        instruction=template.instruction(sample.resolve().labels, mode),
        system=template.system,
        image_first=template.image_first,
    )


def prompt_of(sample: Sample, template: PromptTemplate, mode: Mode) -> list[dict[str, Any]]:
    """Returns the turns before the response: the system's, where there is one, and the user's with the image."""
    return request_of(sample, template, mode).conversation()


def response_of(sample: Sample, mode: Mode, confidence: float | None) -> str:
    """Returns the response text that teaches this sample.

    Raises:
        InputError: If the sample lacks the answer or the reasoning that the mode needs.
    """
    if sample.answer is None or (mode == "reason" and sample.reasoning is None):
        missing = "answer" if sample.answer is None else "reasoning"
        raise InputError(f"sample {sample.id} has no {missing}; training in {mode} mode needs it")
    return render_response(sample.answer, confidence, sample.reasoning if mode == "reason" else None)


def passes(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Returns ``count`` items of one or more: passes over all of them, each in another order, which the seed fixes."""
    rng = random.Random(seed)  # noqa: S311 - reproducible order, not secrecy
    ordered: list[Item] = []
    while len(ordered) < count:
        order = list(items)
        rng.shuffle(order)
        ordered += order
    return ordered[:count]


def with_drawn_answers(samples: Sequence[Sample], modes: Sequence[Mode], seed: int) -> list[Sample]:
    """Returns the samples, those in direct mode that have votes with an answer drawn from them."""
    rng = random.Random(seed)  # noqa: S311 - reproducible draws, not secrecy
    drawn = []
    for sample, mode in zip(samples, modes, strict=True):
        votes = sample.distribution() if sample.votes is not None else None
        if mode == "direct" and votes is not None:
            (answer,) = rng.choices(sample.resolve().labels, votes)
            sample = replace(sample, answer=answer)
        drawn.append(sample)
    return drawn


def choose_modes(count: int, direct_share: float, seed: int) -> list[Mode]:
    """Returns a mode for each of ``count`` samples, a ``direct_share`` of them direct, in an order the seed fixes."""
    direct = round(count * direct_share)
    modes: list[Mode] = ["direct" if i < direct else "reason" for i in range(count)]
    random.Random(seed).shuffle(modes)  # noqa: S311 - reproducible order, not secrecy
    return modes


def supervised_dataset(
    samples: Sequence[Sample], template: PromptTemplate, modes: Sequence[Mode], *, with_confidence: bool
) -> Dataset:
    """Returns rows ``prompt, completion, images`` as TRL's `SFTTrainer` reads them.

    Args:
        samples: Samples with answer, reasoning and, where ``with_confidence``, a confidence.
        template: Instructions.
        modes: One mode per sample.
        with_confidence: Whether the response states the sample's confidence (stage *verbalize*) or stops after the
            answer (stage *reason*).

    Raises:
        InputError: If a sample lacks what it has to teach.
    """
    rows = []
    for sample, mode in zip(samples, modes, strict=True):
        if with_confidence and sample.confidence is None:
            raise InputError(f"sample {sample.id} has no confidence; run 'emocaliber train annotate' first")
        response = response_of(sample, mode, sample.confidence if with_confidence else None)
        completion = [{"role": "assistant", "content": [{"type": "text", "text": response}]}]
        rows.append({"prompt": prompt_of(sample, template, mode), "completion": completion, "images": [sample.image]})
    return with_images(rows)


def prompt_dataset(samples: Sequence[Sample], template: PromptTemplate, modes: Sequence[Mode]) -> Dataset:
    """Returns rows ``prompt, images, mode, candidates, truth`` for reinforcement.

    ``truth`` is the probability that each candidate is right: the votes, or the answer as one-hot.

    Raises:
        InputError: If a sample has neither votes nor an answer.
    """
    rows = []
    for sample, mode in zip(samples, modes, strict=True):
        truth = sample.distribution()
        if truth is None:
            raise InputError(f"sample {sample.id} has neither votes nor an answer; nothing can reward a response")
        rows.append(
            {
                "prompt": prompt_of(sample, template, mode),
                "images": [sample.image],
                "mode": mode,
                "candidates": list(sample.resolve().labels),
                "truth": truth,
            }
        )
    return with_images(rows)


def with_images(rows: Iterable[dict[str, Any]]) -> Dataset:
    """Returns rows whose ``images`` are paths as a data set that opens them.

    Raises:
        InputError: If an image does not exist.
    """
    rows = list(rows)
    for row in rows:
        for path in row["images"]:
            if not Path(path).is_file():
                raise InputError(f"image {path} does not exist")
    return Dataset.from_list(rows).cast_column("images", SequenceFeature(ImageFeature()))
