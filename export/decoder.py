"""The two text graphs of any family: the embedding table, and the language model over embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class TokenEmbedder(nn.Module):
    """The input embedding table."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.table = model.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [B, S, hidden] of int64 ids [B, S]."""
        embeddings: torch.Tensor = self.table(input_ids)
        return embeddings


class _GrowingCache:
    """The part of a transformers cache that attention layers call: append and return keys and values [B, H, P, D]."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        self.states = list(past)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for offset, state in enumerate((key, value)):
            index = 2 * layer_idx + offset
            self.states[index] = torch.cat([self.states[index], state], dim=2)
        return self.states[2 * layer_idx], self.states[2 * layer_idx + 1]


class Decoder(nn.Module):
    """The language model over embeddings, with the attention mask and the positions given by the caller."""

    def __init__(self, text: Any, rotary: nn.Module, lm_head: nn.Module) -> None:
        """Takes the parts of a model.

        Args:
            text: Its language model, with ``layers`` and ``norm``.
            rotary: Embeddings and positions to cosines and sines [B, S, D].
            lm_head: The vocabulary projection.
        """
        super().__init__()
        self.layers = text.layers
        self.norm = text.norm
        self.rotary = rotary
        self.lm_head = lm_head

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logit_rows: torch.Tensor,
        past: list[torch.Tensor],
        deepstack_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Returns logits [B, K, vocab], then key and value [B, heads, P + S, D] of each layer.

        Args:
            inputs_embeds: float32 [B, S, hidden].
            attention_mask: bool [B, 1, S, P + S], True where a query may attend.
            position_ids: int64 [B, S], or [3, B, S] of time, height and width.
            logit_rows: int64 [K], indices into S.
            past: key and value [B, heads, P, D] of each layer, alternating.
            deepstack_embeds: float32 [L, B, S, hidden], added behind each of the first L layers.
        """
        # The lowest finite number, not minus infinity: a padding row that attends to nothing stays finite.
        bias = torch.where(attention_mask, 0.0, torch.finfo(torch.float32).min)
        cache = _GrowingCache(past)
        rotary = self.rotary(inputs_embeds, position_ids)
        hidden = inputs_embeds
        for place, layer in enumerate(self.layers):
            hidden = layer(
                hidden,
                attention_mask=bias,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=rotary,
            )
            if deepstack_embeds is not None and place < len(deepstack_embeds):
                hidden = hidden + deepstack_embeds[place]
        # Rows flat, so that the projection reads its weight as the embedding table has it: [vocab, hidden].
        rows = self.norm(hidden.index_select(1, logit_rows))
        logits = self.lm_head(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        return (logits, *cache.states)
