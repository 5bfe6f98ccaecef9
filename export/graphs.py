"""The three ONNX graphs of an Idefics3-like vision-language model.

``vision_encoder``: ``pixel_values`` [N, 3, T, T] -> ``image_features`` [N, count, hidden].
``embed_tokens``: ``input_ids`` [B, S] -> ``inputs_embeds`` [B, S, hidden].
``decoder_model_merged``: embeddings, a boolean attention mask [B, 1, S, P + S], positions, the rows whose logits are
wanted, and the key/value cache -> logits of those rows and the grown cache.

The mask is four-dimensional so that a prefix tree of labels can be scored in one pass; ``logit_rows`` keeps the
vocabulary projection to the rows that are read.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils.fusion import fuse_conv_bn_eval

from emocaliber.evaluate.convolutional import ConvolutionalIdefics3Config, ConvolutionalTower
from emocaliber.evaluate.prompting import decoder_shape
from emocaliber.runtime.errors import ConfigError, ExportError

SUPPORTED_MODEL_TYPES = ("idefics3", "smolvlm", ConvolutionalIdefics3Config.model_type)
OPSETS = range(18, 22)
"""Opset 23 and later emit a native Attention operator that TensorRT refuses in single precision."""
MAX_INLINE_BYTES = 2_000_000_000
"""A protocol-buffer file holds at most 2 GiB; larger graphs would need external data."""

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


class VisionEncoder(nn.Module):
    """The vision tower and the connector for whole square tiles, without the padding logic of the original."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        base = model.model
        self.patch_embedding = base.vision_model.embeddings.patch_embedding
        self.position_embedding = base.vision_model.embeddings.position_embedding
        self.layers = base.vision_model.encoder.layers
        self.post_layernorm = base.vision_model.post_layernorm
        self.connector = base.connector
        self.register_buffer("position_ids", _tile_positions(base.vision_model), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns image features [N, count, hidden] of float32 pixels [N, 3, T, T]."""
        hidden = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = hidden + self.position_embedding(self.position_ids)
        for layer in self.layers:
            hidden = layer(hidden, None)
        features: torch.Tensor = self.connector(self.post_layernorm(hidden))
        return features


class ConvolutionalVisionEncoder(nn.Module):
    """A convolutional vision tower and the connector, batch normalisation folded into the convolutions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = copy.deepcopy(model.model.vision_model).eval()
        self.connector = model.model.connector
        for layers in [module for module in self.tower.modules() if isinstance(module, nn.Sequential)]:
            for place, norm in enumerate(layers):
                convolution = layers[place - 1]
                if isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
                    layers[place - 1] = fuse_conv_bn_eval(convolution, norm)
                    layers[place] = nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns image features [N, count, hidden] of float32 pixels [N, 3, T, T]."""
        features: torch.Tensor = self.connector(self.tower(pixel_values).last_hidden_state)
        return features


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

    def __init__(self, model: Any) -> None:
        super().__init__()
        text = model.model.text_model
        self.layers = text.layers
        self.norm = text.norm
        self.rotary_emb = text.rotary_emb
        self.lm_head = model.lm_head

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logit_rows: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Returns logits [B, K, vocab], then key and value [B, heads, P + S, D] of each layer.

        Args:
            inputs_embeds: float32 [B, S, hidden].
            attention_mask: bool [B, 1, S, P + S], True where a query may attend.
            position_ids: int64 [B, S].
            logit_rows: int64 [K], indices into S.
            past: key and value [B, heads, P, D] of each layer, alternating.
        """
        # The lowest finite number, not minus infinity: a padding row that attends to nothing stays finite.
        bias = torch.where(attention_mask, 0.0, torch.finfo(torch.float32).min)
        cache = _GrowingCache(past)
        rotary = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=bias,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=rotary,
            )
        logits = self.lm_head(self.norm(hidden.index_select(1, logit_rows)))
        return (logits, *cache.states)


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
    """Returns the paths of the three float32 graphs, written into ``folder`` with their weights inside.

    Args:
        model: A transformers model of a supported type. It is not changed; a half-precision or GPU model is copied.
        folder: Where to write; made if missing.
        opset: ONNX operator set, 18 to 21.

    Raises:
        ConfigError: If the opset is outside that range.
        ExportError: If the model is of another architecture, too large, or the exporter refuses it.
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
        _export_vision(plain, files.vision_encoder, opset)
        _export_embedder(plain, files.embed_tokens, opset)
        _export_decoder(plain, files.decoder, opset)
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


def _tile_positions(vision: Any) -> torch.Tensor:
    """Returns int64 [1, patches]: the position ids that the model itself gives to the patches of one full tile."""
    seen: list[torch.Tensor] = []
    table = vision.embeddings.position_embedding
    hook = table.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    size, side = vision.config.image_size, vision.config.image_size // vision.config.patch_size
    try:
        vision.embeddings(
            pixel_values=torch.zeros(1, vision.config.num_channels, size, size),
            patch_attention_mask=torch.ones(1, side, side, dtype=torch.bool),
        )
    finally:
        hook.remove()
    return seen[0]


def _export_vision(model: Any, path: Path, opset: int) -> None:
    vision = model.config.vision_config
    pixels = torch.zeros(2, vision.num_channels, vision.image_size, vision.image_size)
    names = _Names(inputs=["pixel_values"], outputs=["image_features"])
    convolutional = isinstance(model.model.vision_model, ConvolutionalTower)
    encoder = ConvolutionalVisionEncoder(model) if convolutional else VisionEncoder(model)
    _export(encoder, (pixels,), ({0: Dim("batch")},), names, path, opset)


def _export_embedder(model: Any, path: Path, opset: int) -> None:
    ids = torch.zeros(2, 5, dtype=torch.int64)
    names = _Names(inputs=["input_ids"], outputs=["inputs_embeds"])
    _export(TokenEmbedder(model), (ids,), ({0: Dim("batch"), 1: Dim("sequence")},), names, path, opset)


def _export_decoder(model: Any, path: Path, opset: int) -> None:
    # Sizes that differ from each other and from 0 and 1, so that the exporter takes none of them for a constant.
    batch, new, past, rows = 2, 5, 3, 4
    text = model.config.text_config
    shape = decoder_shape(model)
    states = [
        torch.zeros(batch, shape["num_kv_heads"], past, shape["head_dim"]) for _ in range(2 * shape["num_layers"])
    ]
    arguments = (
        torch.zeros(batch, new, text.hidden_size),
        torch.ones(batch, 1, new, past + new, dtype=torch.bool),
        torch.arange(past, past + new).expand(batch, new).contiguous(),
        torch.arange(rows),
        states,
    )
    batched, read, cached = Dim("batch"), Dim("sequence"), Dim("past")
    dynamic = (
        {0: batched, 1: read},
        {0: batched, 2: read, 3: Dim.AUTO},
        {0: batched, 1: read},
        {0: Dim("rows")},
        [{0: batched, 2: cached} for _ in states],
    )
    layers = range(shape["num_layers"])
    names = _Names(
        inputs=[
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            "logit_rows",
            *_cache_names("past_key_values", layers),
        ],
        outputs=["logits", *_cache_names("present", layers)],
    )
    _export(Decoder(model), arguments, dynamic, names, path, opset)


def _cache_names(prefix: str, layers: Sequence[int]) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]


@dataclass(frozen=True, slots=True)
class _Names:
    inputs: list[str]
    outputs: list[str]


def _export(
    module: nn.Module, arguments: tuple[Any, ...], dynamic: tuple[Any, ...], names: _Names, path: Path, opset: int
) -> None:
    """Writes one graph; the exporter's prints, log lines and warnings do not reach the caller.

    Raises:
        ExportError: If the exporter fails, or the result lacks an input or a dynamic size.
    """
    weight_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    if weight_bytes > MAX_INLINE_BYTES:
        raise ExportError(
            f"{path.name} would hold {weight_bytes / 1e9:.1f} GB of weights, more than the 2 GB of one ONNX file"
        )
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                input_names=names.inputs,
                output_names=names.outputs,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"{path.name}: the ONNX exporter failed: {error}") from error
    if program is None:
        raise ExportError(f"{path.name}: the ONNX exporter returned nothing")
    proto = program.model_proto
    _strip(proto)
    found = [value.name for value in proto.graph.input], [value.name for value in proto.graph.output]
    if found != (names.inputs, names.outputs):
        raise ExportError(f"{path.name}: exported with inputs and outputs {found}, expected {names}")
    onnx.save(proto, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: standard output belongs to the caller, and its warnings are about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(proto: onnx.ModelProto) -> None:
    """Removes stack traces and names of source files, which the exporter stores with every node."""
    graphs = [proto.graph, *proto.functions]
    proto.ClearField("metadata_props")
    proto.doc_string = ""
    for graph in graphs:
        graph.ClearField("metadata_props")
        graph.doc_string = ""
        for node in graph.node:
            node.ClearField("metadata_props")
            node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        value.ClearField("metadata_props")
        value.doc_string = ""
