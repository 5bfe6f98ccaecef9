"""The three ONNX graphs of a vision-language model. All floats are float32, all ids int64.

``vision_encoder``
    Idefics3, SmolVLM: ``pixel_values`` [N, 3, T, T] -> ``image_features`` [N, count, hidden].
    Qwen-VL families, one image: ``pixel_values`` [P, values], ``position_ids`` [P, 2], Qwen2.5-VL ``window_ids`` [P],
    Qwen3-VL ``interpolation_indices`` [P, 4] and ``interpolation_weights`` [P, 4] -> ``image_features``
    [count, hidden], Qwen3-VL ``deepstack_features`` [L, count, hidden].
``embed_tokens``
    ``input_ids`` [B, S] -> ``inputs_embeds`` [B, S, hidden].
``decoder_model_merged``
    ``inputs_embeds`` [B, S, hidden], ``attention_mask`` bool [B, 1, S, P + S], ``position_ids`` [B, S], of the Qwen-VL
    families [3, B, S] (time, height, width), ``logit_rows`` [K], ``past_key_values.I.key`` and ``.value``
    [B, heads, P, D] of each layer, Qwen3-VL ``deepstack_embeds`` [L, B, S, hidden] (zero where no image is) ->
    ``logits`` [B, K, vocab], ``present.I.key`` and ``.value`` [B, heads, P + S, D].

The mask is four-dimensional so that a prefix tree of labels can be scored in one pass; ``logit_rows`` keeps the
vocabulary projection to the rows that are read. Weights stand in the graph's file, or in ``NAME.onnx_data`` beside it
where they are large; an embedding table that the decoder shares stands in ``embed_tokens.onnx_data`` once.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from emocaliber.runtime.errors import ConfigError, ExportError

from .decoder import Decoder, TokenEmbedder
from .exporting import Ports, traced
from .external_data import save_graph
from .families import QWEN_MODEL_TYPES, SUPPORTED_MODEL_TYPES, decoder_of, patch_preprocessing_of
from .idefics3 import vision_encoder
from .qwen import MultimodalRotary, PatchVisionEncoder

OPSETS = range(18, 22)
"""Opset 23 and later emit a native Attention operator that TensorRT refuses in single precision."""

VISION, EMBED, DECODER = "vision_encoder", "embed_tokens", "decoder_model_merged"
GRAPHS = (VISION, EMBED, DECODER)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFiles:
    """Where the graphs were written."""

    vision_encoder: Path
    """Pixels to image features."""
    embed_tokens: Path
    """Token ids to embeddings."""
    decoder: Path
    """Embeddings to logits, with the key/value cache as input and output."""


def check_supported(model: Any) -> None:
    """Checks that the graphs of `export_graphs` describe this model.

    Raises:
        ExportError: Naming what is not supported, and the architectures that are.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in SUPPORTED_MODEL_TYPES:
        raise ExportError(f"cannot export a {kind!r} model; supported: {', '.join(SUPPORTED_MODEL_TYPES)}")
    text = model.config.text_config
    windowed = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if windowed or getattr(text, "use_sliding_window", False):
        raise ExportError(
            f"the language model uses {', '.join(sorted(windowed)) or 'sliding-window attention'}; "
            "only full attention can be exported"
        )


def export_graphs(model: Any, folder: Path, *, opset: int = 20) -> GraphFiles:
    """Returns the paths of the three float32 graphs, written into ``folder``.

    Args:
        model: A transformers model of a supported type. It is not changed; a half-precision or GPU model is copied.
        folder: Where to write; made if missing.
        opset: ONNX operator set, 18 to 21.

    Raises:
        ConfigError: If the opset is outside that range.
        ExportError: If the model is of another architecture, or the exporter refuses it.
    """
    if opset not in OPSETS:
        raise ConfigError(f"opset is {opset}, expected {OPSETS.start} to {OPSETS.stop - 1}")
    check_supported(model)
    files = GraphFiles(
        vision_encoder=folder / f"{VISION}.onnx",
        embed_tokens=folder / f"{EMBED}.onnx",
        decoder=folder / f"{DECODER}.onnx",
    )
    folder.mkdir(parents=True, exist_ok=True)
    with exportable(model) as plain:
        if plain.config.model_type in QWEN_MODEL_TYPES:
            _export_patch_vision(plain, files.vision_encoder, opset)
        else:
            _export_tile_vision(plain, files.vision_encoder, opset)
        _export_embedder(plain, files.embed_tokens, opset)
        _export_decoder(plain, files.decoder, opset, shared=files.embed_tokens)
    return files


@contextlib.contextmanager
def exportable(model: Any) -> Iterator[Any]:
    """Yields the model in float32, on the CPU, in evaluation mode and with eager attention; undone at the end."""
    parameters = list(model.parameters())
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters):
        model = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    attention, training = model.config._attn_implementation, model.training
    model.eval()
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            yield model
    finally:
        model.set_attn_implementation(attention)
        model.train(training)


def _export_tile_vision(model: Any, path: Path, opset: int) -> None:
    vision = model.config.vision_config
    pixels = torch.zeros(2, vision.num_channels, vision.image_size, vision.image_size)
    ports = Ports(inputs=["pixel_values"], outputs=["image_features"])
    graph = traced(vision_encoder(model), (pixels,), ({0: Dim("batch")},), ports, name=path.name, opset=opset)
    save_graph(graph, path)


def _export_patch_vision(model: Any, path: Path, opset: int) -> None:
    vision = model.config.vision_config
    preprocessing = patch_preprocessing_of(vision)
    merge, names = preprocessing.merge_size**2, preprocessing.grid_inputs
    rows, columns = 3, 5
    grid = {name: torch.from_numpy(array) for name, array in preprocessing.grid(rows, columns).items()}
    encoder = PatchVisionEncoder(model)
    every = ("position_ids", "window_ids", "interpolation_indices", "interpolation_weights")
    arguments = (
        torch.zeros(rows * columns * merge, encoder.patches.in_features),
        *(grid.get(name) for name in every),
    )
    patches = merge * Dim("count")
    dynamic = tuple(None if argument is None else {0: patches} for argument in arguments)
    deep = ["deepstack_features"] if encoder.deepstack else []
    ports = Ports(inputs=["pixel_values", *names], outputs=["image_features", *deep])
    save_graph(traced(encoder, arguments, dynamic, ports, name=path.name, opset=opset), path)


def _export_embedder(model: Any, path: Path, opset: int) -> None:
    ids = torch.zeros(2, 5, dtype=torch.int64)
    ports = Ports(inputs=["input_ids"], outputs=["inputs_embeds"])
    dynamic = ({0: Dim("batch"), 1: Dim("sequence")},)
    graph = traced(TokenEmbedder(model), (ids,), dynamic, ports, name=path.name, opset=opset)
    save_graph(graph, path)


def _export_decoder(model: Any, path: Path, opset: int, *, shared: Path) -> None:
    # Sizes that differ from each other and from 0 and 1, so that the exporter takes none of them for a constant.
    batch, new, past, rows = 2, 5, 3, 4
    qwen = model.config.model_type in QWEN_MODEL_TYPES
    shape, text = decoder_of(model), model.model.language_model if qwen else model.model.text_model
    states = [torch.zeros(batch, shape.num_kv_heads, past, shape.head_dim) for _ in range(2 * shape.num_layers)]
    positions = torch.arange(past, past + new).expand(batch, new)
    arguments = [
        torch.zeros(batch, new, shape.hidden_size),
        torch.ones(batch, 1, new, past + new, dtype=torch.bool),
        (positions.expand(shape.position_axes, batch, new) if qwen else positions).contiguous(),
        torch.arange(rows),
        states,
    ]
    batched, read, cached = Dim("batch"), Dim("sequence"), Dim("past")
    dynamic: list[Any] = [
        {0: batched, 1: read},
        {0: batched, 2: read, 3: Dim.AUTO},
        {1: batched, 2: read} if qwen else {0: batched, 1: read},
        {0: Dim("rows")},
        [{0: batched, 2: cached} for _ in states],
    ]
    layers = range(shape.num_layers)
    names = ["inputs_embeds", "attention_mask", "position_ids", "logit_rows", *_cache_names("past_key_values", layers)]
    if shape.deepstack_layers:
        arguments.append(torch.zeros(shape.deepstack_layers, batch, new, shape.hidden_size))
        dynamic.append({1: batched, 2: read})
        names.append("deepstack_embeds")
    ports = Ports(inputs=names, outputs=["logits", *_cache_names("present", layers)])
    rotary: nn.Module = MultimodalRotary(text.rotary_emb) if qwen else text.rotary_emb
    decoder = Decoder(text, rotary, model.lm_head)
    graph = traced(decoder, tuple(arguments), tuple(dynamic), ports, name=path.name, opset=opset)
    save_graph(graph, path, shared=shared)


def _cache_names(prefix: str, layers: Sequence[int]) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]
