"""Sampled responses of a transformers model, many images and several samples at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample

from .conversations import prompt_of


def sample_responses(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    template: PromptTemplate,
    mode: Mode,
    *,
    count: int,
    temperature: float,
    batch_size: int,
    seed: int,
    max_new_tokens: int,
) -> list[list[str]]:
    """Returns ``count`` responses for every sample, in order, end tokens removed.

    Args:
        model: Image-text-to-text model in eval mode.
        processor: Its processor.
        samples: Images and candidates.
        template: Instructions.
        mode: Response mode.
        count: Responses per image.
        temperature: Sampling temperature, > 0.
        batch_size: Images in one call of ``generate``.
        seed: Makes the draw reproducible.
        max_new_tokens: Longest response.
    """
    torch.manual_seed(seed)
    responses: list[list[str]] = []
    starts = range(0, len(samples), batch_size)
    for start in tqdm(starts, desc=f"sampling ({mode})", unit="batch", file=sys.stderr, leave=False):
        batch = samples[start : start + batch_size]
        texts = _generate(model, processor, batch, template, mode, count, temperature, max_new_tokens)
        responses += [texts[i * count : (i + 1) * count] for i in range(len(batch))]
    return responses


def _generate(
    model: Any, processor: Any, batch: Sequence[Sample], template: PromptTemplate, mode: Mode, count: int,
    temperature: float, max_new_tokens: int,
) -> list[str]:  # fmt: skip
    prompts = [
        processor.apply_chat_template(prompt_of(sample, template, mode), add_generation_prompt=True, tokenize=False)
        for sample in batch
    ]
    images = [[Image.fromarray(decode_image(sample.image))] for sample in batch]
    inputs = processor(
        text=prompts, images=images, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    image_token = getattr(model.config, "image_token_id", None)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            num_return_sequences=count,
            max_new_tokens=max_new_tokens,
            suppress_tokens=None if image_token is None else [image_token],
            disable_compile=True,
        )
    new = output[:, inputs["input_ids"].shape[1] :]
    texts: list[str] = processor.batch_decode(new, skip_special_tokens=True)
    return texts
