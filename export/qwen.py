"""The vision graph and the rotary positions of the Qwen-VL families: one image of any size.

What depends on the grid alone comes in as arrays, from `emocaliber.runtime.patches.PatchPreprocessing.grid`. Attention
over windows is one attention with a mask in which a patch sees its own window: patches keep the order in which they
come, and no size depends on the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from emocaliber.runtime.errors import ExportError

_CHANGING_ROTARY = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies depend on the length of the sequence."""


class PatchVisionEncoder(nn.Module):
    """The vision tower and the merger of patches into visual tokens, for the patches of one image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.model.visual
        kernels = tower.patch_embed.proj
        self.patches = nn.Linear(kernels.weight[0].numel(), len(kernels.weight), bias=kernels.bias is not None)
        # A kernel as large as what it reads is a row of a matrix.
        self.patches.weight = nn.Parameter(kernels.weight.detach().flatten(1), requires_grad=False)
        if kernels.bias is not None:
            self.patches.bias = nn.Parameter(kernels.bias.detach(), requires_grad=False)
        self.positions = getattr(tower, "pos_embed", None)
        self.rotary = tower.rotary_pos_emb
        self.blocks = tower.blocks
        self.merger = tower.merger
        self.whole = set(getattr(tower, "fullatt_block_indexes", range(len(tower.blocks))))
        self.deepstack = list(getattr(tower, "deepstack_visual_indexes", ()))
        self.deepstack_mergers = getattr(tower, "deepstack_merger_list", nn.ModuleList())

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        window_ids: torch.Tensor | None = None,
        interpolation_indices: torch.Tensor | None = None,
        interpolation_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Returns image features [count, hidden] and, where there are any, deep-stack features [L, count, hidden].

        Args:
            pixel_values: float32 [P, values], merge² patches a visual token.
            position_ids: int64 [P, 2], row and column.
            window_ids: int64 [P], where attention has windows.
            interpolation_indices: int64 [P, 4], where positions are learned.
            interpolation_weights: float32 [P, 4], likewise.
        """
        hidden = self.patches(pixel_values)
        if self.positions is not None:
            assert interpolation_indices is not None
            assert interpolation_weights is not None
            hidden = hidden + (self.positions(interpolation_indices) * interpolation_weights[:, :, None]).sum(1)
        cosines, sines = self.rotary(hidden, position_ids)
        windows = None
        if window_ids is not None:
            same = window_ids[:, None] == window_ids[None]
            windows = torch.where(same, 0.0, torch.finfo(torch.float32).min)
        deep = []
        for place, block in enumerate(self.blocks):
            bias = None if place in self.whole else windows
            hidden = hidden + _attention(block.attn, block.norm1(hidden), cosines, sines, bias)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if place in self.deepstack:
                deep.append(self.deepstack_mergers[self.deepstack.index(place)](hidden))
        features: torch.Tensor = self.merger(hidden)
        return (features, torch.stack(deep)) if deep else (features,)


class MultimodalRotary(nn.Module):
    """Rotary positions in time, height and width: each frequency turns by one of the three.

    Which one that is differs between the families (blocks in Qwen2.5-VL, interleaved in Qwen3-VL); it is read off the
    model's own module.
    """

    frequencies: torch.Tensor
    axes: torch.Tensor

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        if rotary.rope_type in _CHANGING_ROTARY:
            raise ExportError(f"rotary positions of the kind {rotary.rope_type!r} change with the length of a sequence")
        self.scaling = float(rotary.attention_scaling)
        self.register_buffer("frequencies", rotary.inv_freq.float(), persistent=False)
        self.register_buffer("axes", _axes(rotary), persistent=False)

    def forward(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cosines and sines [B, S, D] for int64 positions [3, B, S]."""
        turned = position_ids.index_select(0, self.axes).to(inputs_embeds.dtype).permute(1, 2, 0) * self.frequencies
        angles = torch.cat([turned, turned], dim=-1)
        return angles.cos() * self.scaling, angles.sin() * self.scaling


def _axes(rotary: Any) -> torch.Tensor:
    """Returns int64 [D / 2]: by which of the three positions the model turns each frequency."""
    one = torch.eye(3, dtype=torch.int64)[:, :, None]  # sequence i has position 1 on axis i, and 0 elsewhere
    _, sines = rotary(torch.zeros(3, 1, 1), one)
    turned: torch.Tensor = sines[:, 0, : len(rotary.inv_freq)] != 0
    if not bool((turned.sum(0) == 1).all()):
        raise ExportError(
            "a rotary frequency of the language model does not turn by exactly one of the three positions"
        )
    return turned.int().argmax(0)


def _attention(
    attention: Any, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Returns [P, hidden]: every patch attends to all of them, or to those whose bias [P, P] is 0."""
    heads = attention.num_heads
    query, key, value = attention.qkv(hidden).unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
    scores = _turned(query, cosines, sines) @ _turned(key, cosines, sines).transpose(2, 3) * attention.scaling
    shares = (scores if bias is None else scores + bias).softmax(-1)
    seen: torch.Tensor = attention.proj((shares @ value).squeeze(0).transpose(0, 1).flatten(1))
    return seen


def _turned(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Returns queries or keys [1, heads, P, D] turned by their positions."""
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-second, first], dim=-1) * sines
