"""A transformers model in memory that answers in words; any image-text-to-text model will do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.images import decode_image

from .responders import Drawing, Request


class TransformersResponder:
    """Answers questions about images with a model in memory, several at a time."""

    def __init__(self, model: Any, processor: Any, *, name: str, batch_size: int) -> None:
        """Wraps ``model``, which must be in eval mode; it is not copied.

        Args:
            model: Image-text-to-text model.
            processor: Its processor.
            name: Which model, for the record.
            batch_size: Images in one call of ``generate``.

        Raises:
            ConfigError: If ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
        self.name = name
        self._model = model
        self._processor = processor
        self._batch_size = batch_size

    def respond(self, requests: Sequence[Request], drawing: Drawing) -> list[list[str]]:
        """Returns ``drawing.count`` responses for each request, in order, without end tokens.

        Tokens that stand for an image or a video are never written: the model could not read them again.

        Raises:
            InputError: If an image cannot be read.
        """
        responses: list[list[str]] = []
        starts = range(0, len(requests), self._batch_size)
        bar = tqdm(
            starts, desc="responses", unit="batch", file=sys.stderr, leave=False, disable=len(starts) < 2 or None
        )
        with torch.random.fork_rng():
            torch.manual_seed(drawing.seed)
            for start in bar:
                batch = requests[start : start + self._batch_size]
                texts = self._generate(batch, drawing)
                responses += [texts[i * drawing.count : (i + 1) * drawing.count] for i in range(len(batch))]
        return responses

    def _generate(self, batch: Sequence[Request], drawing: Drawing) -> list[str]:
        prompts = [
            self._processor.apply_chat_template(request.conversation(), add_generation_prompt=True, tokenize=False)
            for request in batch
        ]
        images = [[Image.fromarray(decode_image(request.image))] for request in batch]
        inputs = self._processor(
            text=prompts, images=images, return_tensors="pt", padding=True, padding_side="left",
            add_special_tokens=False,
        ).to(self._model.device)  # fmt: skip
        cold = drawing.temperature == 0.0
        sampling = {} if cold else {"temperature": drawing.temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                **sampling,
                do_sample=not cold,
                num_return_sequences=drawing.count,
                max_new_tokens=drawing.max_new_tokens,
                suppress_tokens=visual_token_ids(self._model.config),
                disable_compile=True,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self._processor.batch_decode(new, skip_special_tokens=True)
        return texts


def visual_token_ids(config: Any) -> list[int] | None:
    """Returns the ids of the tokens that stand for an image or a video in a prompt, or None where there are none."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {getattr(config, name, None) for name in names}
    return sorted(int(token) for token in ids if token is not None) or None
