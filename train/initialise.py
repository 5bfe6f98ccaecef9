"""A start for vision towers trained on few images: attention heads that look at the neighbouring patches.

Self-attention can express a convolution, one head a shift of its kernel (Cordonnier et al. 2020, arXiv 1911.03584), and
starting there helps where data are few (Zheng et al. 2024, arXiv 2404.01139). A tower that starts from small random
numbers first has to learn from its images which patches lie side by side.

Some channels of every token are reserved for its position, as cosines and sines of its row and column. Queries turn
these by a shift, keys leave them as they are: their product, a sum of cosines of the distance between the shifted and
the other patch, is largest where that distance is 0. No layer writes to the reserved channels at the start.
"""

from __future__ import annotations

import math
from typing import Any

import torch

SHIFTS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Rows and columns between a patch and the one that each of the first eight heads looks at; further ones look at it."""

_SHARPNESS = 4.5
"""Attention logit at the wanted neighbour, of each axis: e^9 for both, against at most some hundred patches."""
_NOISE = 0.02
"""Standard deviation of the weights and positions that are not set."""


@torch.no_grad()
def start_with_shifts(tower: Any, images: torch.Tensor) -> None:
    """Sets the weights of a vision tower, drawing what is random from torch's own random numbers.

    Args:
        tower: Idefics3 vision transformer with at least eight heads of at least sixteen channels; changed in place.
        images: (N, 3, side, side) normalised. Layer norm scales the positions by what an image adds to them; these
            images tell by how much, so that attention is equally sharp in every layer.
    """
    config, layers = tower.config, tower.encoder.layers
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    frequencies = head // 4
    reserved = 4 * frequencies
    grid = tower.embeddings.num_patches_per_side
    angles = 2 * math.pi * torch.arange(1, frequencies + 1) / max(2 * frequencies + 1, grid + 2)
    positions = _positions(grid, angles)
    _start_embeddings(tower.embeddings, positions)
    for layer in layers:
        _start_attention(layer.self_attn, angles, head)
        _draw(layer.self_attn.v_proj.weight, width**-0.5)
        layer.self_attn.v_proj.weight[:, :reserved] = 0
        depth = len(layers) ** -0.5
        for writing, scale in (
            (layer.self_attn.out_proj, width**-0.5),
            (layer.mlp.fc2, 1.5 * layer.mlp.fc2.in_features**-0.5),
        ):
            _draw(writing.weight, scale * depth)
            writing.weight[:reserved] = 0
        _draw(layer.mlp.fc1.weight, width**-0.5)
    hidden = tower.embeddings(images, torch.ones(len(images), grid, grid, dtype=torch.bool))
    for layer in layers:
        seen = layer.layer_norm1(hidden)[..., :reserved]
        scale = seen.square().mean().sqrt() / positions.square().mean().sqrt()
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight /= scale
        hidden = layer(hidden, None)


def _positions(grid: int, angles: torch.Tensor) -> torch.Tensor:
    """Returns (grid², 4 frequencies): cosines and sines of each patch's row, then of its column."""
    steps = torch.arange(grid)[:, None] * angles
    axis = torch.cat([steps.cos(), steps.sin()], dim=1)
    return torch.cat([axis.repeat_interleave(grid, dim=0), axis.repeat(grid, 1)], dim=1)


def _start_embeddings(embeddings: Any, positions: torch.Tensor) -> None:
    reserved = positions.shape[1]
    patch = embeddings.patch_embedding
    _draw(patch.weight, patch.weight[0].numel() ** -0.5)
    patch.weight[:reserved] = 0
    if patch.bias is not None:
        patch.bias[:reserved] = 0
    _draw(embeddings.position_embedding.weight, _NOISE)
    embeddings.position_embedding.weight[:, :reserved] = positions


def _start_attention(attention: Any, angles: torch.Tensor, head: int) -> None:
    reserved = 4 * len(angles)
    scale = math.sqrt(_SHARPNESS * math.sqrt(head) / len(angles))
    for projection in (attention.q_proj, attention.k_proj):
        _draw(projection.weight, _NOISE)
        projection.bias.zero_()
    for number in range(attention.num_heads):
        rows, columns = SHIFTS[number] if number < len(SHIFTS) else (0, 0)
        first = number * head
        turned = torch.block_diag(_turn(rows * angles), _turn(columns * angles))
        attention.q_proj.weight[first : first + reserved, :reserved] += scale * turned
        attention.k_proj.weight[first : first + reserved, :reserved] += scale * torch.eye(reserved)


def _turn(angles: torch.Tensor) -> torch.Tensor:
    """Returns the matrix that turns cosines and sines of x into those of x + angle."""
    cosines, sines = torch.diag(angles.cos()), torch.diag(angles.sin())
    return torch.cat([torch.cat([cosines, -sines], dim=1), torch.cat([sines, cosines], dim=1)])


def _draw(weight: torch.Tensor, deviation: float) -> None:
    weight.normal_(0.0, deviation)
