"""Arithmetic that training Qwen2.5-VL takes, by formula.

A matrix product of (n, a) and (a, b) is 2·n·a·b operations, and its two gradients as many each: 6 per weight and token
for training, 2 for a forward pass (Kaplan et al. 2020, arXiv 2001.08361, §2.1). Attention adds scores and sums,
4·d per pair of positions and layer (Chowdhery et al. 2022, arXiv 2204.02311, appendix B); of a causal decoder's pairs
half are needed, of the vision tower's those within a window. Embeddings are looked up; norms and activations are left
out. What gradient checkpointing computes again is not counted, so that utilisation rewards finishing, not being busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PEAK_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.2,
}  # fmt: skip
"""bf16 without sparsity, as the vendor states it; the first name that a device's name holds counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one sample holds."""

    prompt_tokens: int
    """With the image's tokens."""
    response_tokens: int
    patches: int
    """Of the image, before they are merged into tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Operations of one forward pass of one sample."""

    vision: int
    decoder: int
    head: int
    """Of the output layer, at the positions that are learnt."""

    @property
    def total(self) -> int:
        """Operations of all parts."""
        return self.vision + self.decoder + self.head


def forward_flops(config: Any, batch: Batch) -> Forward:
    """Returns the operations of a forward pass.

    Args:
        config: A Qwen2.5-VL configuration of transformers.
        batch: One sample.
    """
    text, vision = config.text_config, config.vision_config
    length = batch.prompt_tokens + batch.response_tokens
    attention = text.num_hidden_layers * 4 * text.hidden_size * (length * length // 2)
    window = (vision.window_size // vision.patch_size) ** 2
    full = len(vision.fullatt_block_indexes)
    seen = full * batch.patches + (vision.depth - full) * min(window, batch.patches)
    tower = 2 * batch.patches * _tower_weights(vision) + 4 * vision.hidden_size * batch.patches * seen
    merged = batch.patches // vision.spatial_merge_size**2
    return Forward(
        vision=tower + 2 * merged * _merger_weights(vision),
        decoder=2 * length * _decoder_weights(text) + attention,
        head=2 * batch.response_tokens * text.hidden_size * text.vocab_size,
    )


def training_flops(config: Any, batch: Batch, *, adapter_weights: int | None = None) -> int:
    """Returns the operations of one sample's forward and backward pass.

    Args:
        config: A Qwen2.5-VL configuration of transformers.
        batch: One sample.
        adapter_weights: Number of weights of the adapters that are trained alone; the frozen ones need no gradient, so
            that a third of the work falls away. None where all weights are trained.
    """
    forward = forward_flops(config, batch).total
    if adapter_weights is None:
        return 3 * forward
    return 2 * forward + 6 * adapter_weights * (batch.prompt_tokens + batch.response_tokens)


def adapter_weights(config: Any, rank: int) -> int:
    """Returns how many weights adapters of a rank on every linear layer have."""
    text, vision = config.text_config, config.vision_config
    sides = text.num_hidden_layers * sum(a + b for a, b in _decoder_layers(text))
    sides += vision.depth * sum(a + b for a, b in _tower_layers(vision))
    sides += sum(a + b for a, b in _merger_layers(vision))
    return rank * sides


def weights(config: Any) -> int:
    """Returns how many weights the matrices of a model have; biases and norms, a thousandth of them, are left out."""
    text, vision = config.text_config, config.vision_config
    tables = 1 if config.tie_word_embeddings else 2
    return (
        _decoder_weights(text)
        + tables * text.hidden_size * text.vocab_size
        + _tower_weights(vision)
        + _merger_weights(vision)
    )


def peak_tflops(device: str) -> float | None:
    """Returns the peak of the device of this name in TFLOP/s, or None where it is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


def _decoder_layers(text: Any) -> list[tuple[int, int]]:
    width, inner = text.hidden_size, text.intermediate_size
    keys = width // text.num_attention_heads * text.num_key_value_heads
    return [(width, width)] * 2 + [(width, keys)] * 2 + [(width, inner)] * 3


def _tower_layers(vision: Any) -> list[tuple[int, int]]:
    width, inner = vision.hidden_size, vision.intermediate_size
    return [(width, 3 * width), (width, width)] + [(width, inner)] * 3


def _merger_layers(vision: Any) -> list[tuple[int, int]]:
    wide = vision.hidden_size * vision.spatial_merge_size**2
    return [(wide, wide), (wide, vision.out_hidden_size)]


def _decoder_weights(text: Any) -> int:
    return text.num_hidden_layers * sum(a * b for a, b in _decoder_layers(text))


def _tower_weights(vision: Any) -> int:
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return patch * vision.hidden_size + vision.depth * sum(a * b for a, b in _tower_layers(vision))


def _merger_weights(vision: Any) -> int:
    return sum(a * b for a, b in _merger_layers(vision))
