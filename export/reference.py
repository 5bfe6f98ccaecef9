"""The model's own outputs, computed by transformers without any of the exported code: what graphs are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Pixels = Floats | Sequence[Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedPrompts:
    """Prompts of different lengths in one batch, padded on the left."""

    ids: Ints
    """Token ids [B, S]; image tokens stand where image features go."""
    mask: npt.NDArray[np.bool_]
    """True for tokens, False for padding [B, S]."""
    pixels: Pixels
    """One image per prompt: [B, 3, T, T], or of each its patches [rows, columns, merge², values]."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], pixels: Pixels, pad: int) -> PaddedPrompts:
        """Returns the batch of these prompts and images."""
        longest = max(map(len, prompts))
        ids = np.full((len(prompts), longest), pad, np.int64)
        mask = np.zeros((len(prompts), longest), np.bool_)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = True
        return cls(ids=ids, mask=mask, pixels=pixels)

    def positions(self) -> Ints:
        """Returns positions [B, S] that count from 0 at the first token of each row; 0 on padding."""
        return np.maximum(np.cumsum(self.mask, axis=1, dtype=np.int64) - 1, 0)


def decoded_logits(model: Any, batch: PaddedPrompts, steps: int) -> Iterator[tuple[Floats, Ints]]:
    """Yields logits [B, vocab] after the prompt and after each of ``steps`` greedy tokens, with the next tokens [B].

    Args:
        model: The transformers model, in evaluation mode.
        batch: The prompts.
        steps: Number of decode steps with the key/value cache.
    """
    mask = torch.from_numpy(batch.mask.astype(np.int64))
    inputs = _inputs(model, torch.from_numpy(batch.ids), batch.pixels)
    tiles = isinstance(batch.pixels, np.ndarray)
    if tiles:
        inputs["position_ids"] = torch.from_numpy(batch.positions())
    cache = None
    with torch.no_grad():
        for _ in range(steps + 1):
            output = model(**inputs, attention_mask=mask, past_key_values=cache, use_cache=True)
            logits = output.logits[:, -1].float()
            cache = output.past_key_values
            tokens = logits.argmax(dim=-1)
            yield logits.numpy(), tokens.numpy()
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], dim=1)
            positions = mask.sum(dim=1, keepdim=True) - 1
            if not tiles:  # as `generate` continues, from what the model found out about the images
                positions = (positions + model.model.rope_deltas).expand(3, -1, -1)
            inputs = {"input_ids": tokens[:, None], "position_ids": positions}


def label_scores(
    model: Any, prompt: Sequence[int], answers: Sequence[Sequence[int]], pixels: Pixels
) -> npt.NDArray[np.float64]:
    """Returns each answer's log-likelihood [K] in nats, one whole pass of prompt and answer each.

    Args:
        model: The transformers model, in evaluation mode.
        prompt: Token ids up to where the answer starts, image tokens included.
        answers: Token ids of each answer, closing tag included.
        pixels: The image [1, 3, T, T], or a list of its patches [rows, columns, merge², values].
    """
    scores = np.empty(len(answers))
    with torch.no_grad():
        for place, answer in enumerate(answers):
            ids = torch.tensor([[*prompt, *answer]])
            logits = model(**_inputs(model, ids, pixels), use_cache=False).logits[0]
            predicted = torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)
            scores[place] = float(predicted.gather(1, torch.tensor(answer)[:, None]).sum())
    return scores


def cached_label_scores(
    model: Any, prompt: Sequence[int], answers: Sequence[Sequence[int]], pixels: Pixels
) -> npt.NDArray[np.float64]:
    """Returns what `label_scores` does, from one pass over the prompt and one over all answers: for many images."""
    rows, longest = len(answers), max(map(len, answers)) - 1
    with torch.no_grad():
        inputs = _inputs(model, torch.tensor([list(prompt)]), pixels)
        output = model(**inputs, use_cache=True)
        predicted = torch.log_softmax(output.logits[:, -1:].double(), dim=-1).expand(rows, -1, -1)
        if longest:
            cache = output.past_key_values
            cache.batch_repeat_interleave(rows)
            # Padded on the right: what an answer's own tokens see is not changed by it.
            ids = torch.tensor([[*answer[:-1], *[answer[0]] * (longest + 1 - len(answer))] for answer in answers])
            positions = (len(prompt) + torch.arange(longest)).expand(rows, -1)
            if not isinstance(pixels, np.ndarray):
                positions = (positions + model.model.rope_deltas[:1]).expand(3, -1, -1)
            mask = torch.ones(rows, len(prompt) + longest, dtype=torch.int64)
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
            predicted = torch.cat([predicted, torch.log_softmax(logits.double(), dim=-1)], dim=1)
    return np.array(
        [
            sum(float(predicted[row, step, token]) for step, token in enumerate(answer))
            for row, answer in enumerate(answers)
        ]
    )


def expected_pixels(image_processor: Any, image: npt.NDArray[np.uint8]) -> Floats:
    """Returns what the transformers image processor makes of uint8 (H, W, 3), in the shape of the runtime's.

    That is float32 [1, 3, T, T], or [rows, columns, merge², values] for images of any size.
    """
    merge = getattr(image_processor, "merge_size", None)
    if merge is None:
        output = image_processor(
            [[image]], do_image_splitting=False, input_data_format="channels_last", return_tensors="np"
        )
        return cast("Floats", output["pixel_values"][0].astype(np.float32))
    output = image_processor([Image.fromarray(image)], return_tensors="np")
    _, rows, columns = (int(size) for size in output["image_grid_thw"][0])
    patches: Floats = output["pixel_values"].astype(np.float32)
    return patches.reshape(rows // merge, columns // merge, merge**2, -1)


def _inputs(model: Any, ids: torch.Tensor, pixels: Pixels) -> dict[str, Any]:
    """Returns what the model takes of tokens [B, S] and their images; positions are its own affair."""
    if isinstance(pixels, np.ndarray):
        return {"input_ids": ids, "pixel_values": torch.from_numpy(pixels)[:, None]}
    merge = model.config.vision_config.spatial_merge_size
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        "pixel_values": torch.cat([torch.from_numpy(image).flatten(0, 2) for image in pixels]),
        "image_grid_thw": torch.tensor([[1, merge * image.shape[0], merge * image.shape[1]] for image in pixels]),
    }
