"""A transformers model as an engine of the runtime: teacher, student and exported graphs share one scoring code.

The only module of this layer that needs torch; it is imported by those who already have it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from emocaliber.runtime.engine import Floats32, KeyValues


class TorchEngine:
    """An Idefics3/SmolVLM model behind the `emocaliber.runtime.engine.Engine` protocol."""

    def __init__(self, model: Any) -> None:
        """Wraps ``model``, which must be in eval mode; it is not copied."""
        self.name = f"torch-{model.device.type}"
        self._model = model

    def encode_images(self, pixel_values: Floats32) -> Floats32:
        """Returns (N, count, hidden) image features for (N, 3, T, T) pixels."""
        with torch.inference_mode():
            pixels = self._tensor(pixel_values).to(self._model.dtype)[:, None]
            features = self._model.model.get_image_features(pixels).pooler_output
            return self._array(torch.stack(list(features)))

    def embed(self, ids: NDArray[np.int64]) -> Floats32:
        """Returns (B, S, hidden) embeddings for (B, S) token ids."""
        with torch.inference_mode():
            return self._array(self._model.get_input_embeddings()(self._tensor(ids)))

    def decode(
        self,
        embeds: Floats32,
        mask: NDArray[np.bool_],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        past: KeyValues,
    ) -> tuple[Floats32, KeyValues]:
        """Returns (B, R, vocab) logits of the wanted rows, and the keys and values of past and new tokens."""
        with torch.inference_mode():
            dtype = self._model.dtype
            cache = DynamicCache()
            for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
                cache.update(self._tensor(key).to(dtype), self._tensor(value).to(dtype), layer)
            hidden = self._model.model.text_model(
                inputs_embeds=self._tensor(embeds).to(dtype),
                attention_mask=self._tensor(mask),
                position_ids=self._tensor(positions),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            logits = self._model.lm_head(hidden[:, self._tensor(rows)])
            layers: list[Any] = list(cache.layers)
            present = [self._array(part) for layer in layers for part in (layer.keys, layer.values)]
            return self._array(logits), tuple(present)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        # A copy where the array is read-only: torch cannot mark a tensor so.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._model.device)

    def _array(self, tensor: torch.Tensor) -> Floats32:
        array: Floats32 = tensor.float().cpu().numpy()
        return array
