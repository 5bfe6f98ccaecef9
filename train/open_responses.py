"""Responses cut before the confidence they stated: on them the tokens of the confidence alone are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emocaliber.evaluate.responders import Drawing, Responder
from emocaliber.runtime.errors import InputError, ResponseError
from emocaliber.runtime.grammar import CONFIDENCE_OPEN, MODES, Mode, parse_response
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample

from .conversations import choose_modes, prompt_of
from .launch import processes
from .respond import shared_responses


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenResponse:
    """A response cut before the confidence it stated."""

    image: str
    """Path."""
    prompt: str
    """After the chat template."""
    text: str
    """What the model wrote, up to ``<confidence>``."""
    right: float
    """Probability that its answer is right: 0 or 1 for a single label, the vote share with votes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImage:
    """The responses drawn for one image."""

    mode: Mode
    responses: tuple[OpenResponse | None, ...]
    """None where one breaks the grammar."""


def draw_open_responses(
    responder: Responder,
    processor: Any,
    samples: Sequence[Sample],
    template: PromptTemplate,
    drawing: Drawing,
    folder: Path,
    *,
    direct_share: float,
    half: bool,
) -> list[DrawnImage]:
    """Returns the responses to each sample, those of one mode after those of the other.

    What the journals in ``folder`` hold is not drawn again; all processes share the work.

    Args:
        responder: What responds.
        processor: Of the model that is to be trained.
        samples: Samples with votes or answers.
        template: Instructions.
        drawing: How responses are drawn.
        folder: Where the journals are kept.
        direct_share: Share of the samples asked in direct mode.
        half: Whether to compute in bfloat16.

    Raises:
        InputError: If a sample has neither votes nor an answer.
    """
    for sample in samples:
        if sample.distribution() is None:
            raise InputError(f"sample {sample.id} has neither votes nor an answer; nothing can score a confidence")
    device = processes().device
    modes = choose_modes(len(samples), direct_share, drawing.seed)
    drawn: list[DrawnImage] = []
    for mode in MODES:
        asked = [sample for sample, its_mode in zip(samples, modes, strict=True) if its_mode == mode]
        path = folder / f"responses-{mode}.journal.jsonl"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            texts = shared_responses(responder, asked, template, mode, drawing, path)
        drawn += [
            DrawnImage(mode=mode, responses=tuple(_open(text, sample, mode, processor, template) for text in its_texts))
            for sample, its_texts in zip(asked, texts, strict=True)
        ]
    return drawn


def _open(text: str, sample: Sample, mode: Mode, processor: Any, template: PromptTemplate) -> OpenResponse | None:
    """Returns the response cut before its confidence, or None if it breaks the grammar."""
    try:
        answer = parse_response(text, sample.resolve().labels, mode).answer
    except ResponseError:
        return None
    truth = sample.distribution()
    assert truth is not None
    turns = prompt_of(sample, template, mode)
    return OpenResponse(
        image=str(sample.image),
        prompt=processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False),
        text=text[: text.index(CONFIDENCE_OPEN) + len(CONFIDENCE_OPEN)],
        right=truth[sample.resolve().index(answer)],
    )
