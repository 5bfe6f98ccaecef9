"""Variants of the exported graphs in fewer bits: fp16, int8, int4 and qdq.

``fp16`` (``NAME_fp16.onnx``) is the plain graph in half precision, inputs and outputs in float32: for GPUs, browsers.
``int8`` and ``int4`` (``NAME_int8.onnx``, ``NAME_q4.onnx``) are fused for ONNX Runtime first:

int8
    A product with a weight matrix is one of bytes: a scale for each output channel of the weight, and one for **each
    row** of what it is multiplied by, found as it comes. One scale for all rows would be faster still, but would make a
    label's score depend on what else is in the pass, and a calibrated probability cannot rest on that.
int4
    ``MatMulNBits``: weights in 4 bits with one scale for 32 of them, rows in bytes with one scale for 32 of them too.
    The vocabulary and the embedding table stay int8, and share their bytes.

Their kernels of convolutions become signed bytes with one scale an output channel, and are made float again when read.

``qdq`` (``NAME_quantized.onnx``) is the plain graph with ``QuantizeLinear`` and ``DequantizeLinear`` of constant scales
around every convolution and product with a weight matrix, for TensorRT and for providers that want such ranges; they
are found on images (`find_ranges`). The embedding table is that of int8: a CPU looks it up, whatever runs the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from emocaliber.runtime.bundle_recipe import graph_precisions
from emocaliber.runtime.engine import SIGNED_WEIGHTS
from emocaliber.runtime.errors import ConfigError, ExportError
from emocaliber.runtime.manifest import GraphFiles

from .external_data import graph_bytes, save_graph
from .fusion import Fusions, fuse_decoder, fuse_vision
from .graphs import DECODER, EMBED, VISION
from .quantized_nodes import (
    BLOCK_SIZE,
    BYTES_PRODUCTS,
    WeightBits,
    constants,
    quantize_convolutions,
    quantize_products,
    quantize_table,
)
from .static_nodes import quantize_statically
from .static_ranges import StaticRanges

SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "int4": "_q4", "qdq": "_quantized"}
"""What each precision adds to a graph's file name; the names are those that transformers.js looks for."""

NO_IMAGES = (
    "precision qdq has scales that are found on images, and no image is given; give 'emocaliber export bundle' "
    "--calibration-samples SAMPLES.jsonl, or choose int8, which finds its scales as it runs"
)

_FLOAT_OPERATORS = ["Pow", "ReduceMean", "Sqrt", "Reciprocal", "Cos", "Sin"]
"""Stay in single precision in fp16 graphs: squares of activations and angles of late positions leave its range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphQuantization:
    """What happened to one graph."""

    quantized: int
    """Weight matrices, tables and kernels now stored in fewer bits."""
    activation_products: int
    """Matrix products of two activations, which hold no weights and stay float; an attention that is one operator is
    none."""
    float_nodes: dict[str, int]
    """Nodes that hold weights of two axes or more and stay float, by operator (position embeddings)."""
    fusions: Fusions | None
    """What was fused before; None where nothing was tried."""
    bytes_before: int
    """Size of the float graph; weights that it shares count where they stand."""
    bytes_after: int
    """Size of the quantised graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """What happened to each graph, by the name of the file written, without its suffix."""

    block_size: int
    """Weights of an int4 graph that share one scale."""
    range_images: int
    """Images that the ranges of qdq were found on; 0 where there is none of it."""
    graphs: dict[str, GraphQuantization]
    """Per graph."""


def graph_files(precision: str) -> GraphFiles:
    """Returns the names of a precision's graph files.

    Raises:
        ConfigError: If there is no such precision.
    """
    vision, decoder = graph_precisions(precision)
    return GraphFiles(
        vision_encoder=f"{VISION}{SUFFIXES[vision]}.onnx",
        embed_tokens=f"{EMBED}{SUFFIXES[_table(decoder)]}.onnx",
        decoder=f"{DECODER}{SUFFIXES[decoder]}.onnx",
    )


def needs_ranges(precisions: Iterable[str]) -> bool:
    """Returns whether one of these precisions has static ranges, which are found on images.

    Raises:
        ConfigError: If there is no such precision.
    """
    return any("qdq" in graph_precisions(name) for name in precisions)


def quantize_graphs(
    folder: Path, precisions: Iterable[str], *, ranges: StaticRanges | None = None
) -> QuantizationReport:
    """Returns what was quantised after writing the graphs of these precisions beside the float ones.

    Args:
        folder: Holds the three float graphs.
        precisions: Such as ``int8``, or ``int8-int4``: the vision encoder in the first, the decoder in the second.
        ranges: Of the float graphs, for ``qdq``.

    Raises:
        ConfigError: If there is no such precision, or it is ``qdq`` and there are no ranges.
        ExportError: If a graph is missing, or a weight matrix, an attention or a normalisation would stay as it was.
    """
    precisions = list(precisions)
    if ranges is None and needs_ranges(precisions):
        raise ConfigError(NO_IMAGES)
    names = {name for precision in precisions for name in graph_files(precision).names()}
    kinds = [(kind, suffix) for kind in (EMBED, VISION, DECODER) for suffix in SUFFIXES.items() if suffix[1]]
    graphs = {}
    for kind, (precision, suffix) in kinds:
        if f"{kind}{suffix}.onnx" in names:
            graphs[f"{kind}{suffix}"] = _write(folder, kind, precision, ranges)
    images = 0 if ranges is None else ranges.images
    return QuantizationReport(block_size=BLOCK_SIZE, range_images=images, graphs=graphs)


def _table(decoder: str) -> str:
    """Returns the precision of the embedding table beside a decoder."""
    return "int8" if decoder in ("int4", "qdq") else decoder


def _write(folder: Path, kind: str, precision: str, ranges: StaticRanges | None) -> GraphQuantization:
    source, target = folder / f"{kind}.onnx", folder / f"{kind}{SUFFIXES[precision]}.onnx"
    if not source.is_file():
        raise ExportError(f"{source} is missing; export the float graphs first")
    model = onnx.load(source)
    fusions = None
    if precision == "fp16":
        model, quantized = _half(model)
    elif precision == "qdq":
        assert ranges is not None  # checked before anything is written
        quantized = quantize_statically(model, kind, ranges.graphs[kind])
        _drop_unused(model)
    else:
        if kind != EMBED:
            model, fusions = (fuse_decoder if kind == DECODER else fuse_vision)(model)
        bits: WeightBits = "int8" if precision == "int8" else "int4"
        quantized = _quantize(model, kind, bits)
    if precision == "qdq" or any(node.op_type in BYTES_PRODUCTS for node in model.graph.node):
        onnx.helper.set_model_props(model, SIGNED_WEIGHTS)
    if quantized == 0:
        raise ExportError(f"{source.name} holds no weight matrix to quantise; is it an exported graph?")
    table = folder / f"{EMBED}{SUFFIXES[_table(precision)]}.onnx"
    save_graph(model, target, shared=table if kind == DECODER and table.is_file() else None)
    return GraphQuantization(
        quantized=quantized,
        activation_products=_activation_products(model),
        float_nodes={} if precision == "fp16" else _float_nodes(model),
        fusions=fusions,
        bytes_before=graph_bytes(source),
        bytes_after=graph_bytes(target),
    )


def _quantize(model: onnx.ModelProto, kind: str, bits: WeightBits) -> int:
    if kind == EMBED:
        count = quantize_table(model)
    else:
        products = quantize_products(model, kind, bits, many_rows=kind == VISION)
        count = products + quantize_convolutions(model)
    _drop_unused(model)
    return count


def _half(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Returns the plain graph in half precision, inputs and outputs in float32, and how many weights became smaller."""
    count = sum(t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1 for t in model.graph.initializer)
    half = convert_float_to_float16(model, keep_io_types=True, op_block_list=_FLOAT_OPERATORS, disable_shape_infer=True)
    left = [t.name for t in half.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    if left:
        raise ExportError(f"{len(left)} weights stayed in single precision, the first is {left[0]}")
    return half, count


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _activation_products(model: onnx.ModelProto) -> int:
    weights = constants(model)
    return sum(node.op_type == "MatMul" and not weights & set(node.input) for node in model.graph.node)


def _float_nodes(model: onnx.ModelProto) -> dict[str, int]:
    """Returns how many nodes of each operator still read a float weight of more than one dimension."""
    weights = {t.name for t in model.graph.initializer if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT}
    nodes = (node for node in model.graph.node if node.op_type != "MatMulNBits" and weights & set(node.input))
    return dict(Counter(node.op_type for node in nodes))
