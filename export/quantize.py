"""Weight-only 8-bit variants of the exported graphs.

Every product with a weight matrix becomes a ``MatMulNBits`` node: weights as unsigned bytes with one scale per block of
32 along the inner dimension, activations in float. Quantising activations per tensor would be faster, but would make a
label's score depend on what else is in the pass, and a calibrated probability cannot rest on that. Kernels of
convolutions become signed bytes with one scale an output channel, and are made float again when they are read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from emocaliber.runtime.errors import ExportError

from .external_data import graph_bytes, save_graph
from .graphs import DECODER, EMBED, GRAPHS, VISION

BITS = 8
BLOCK_SIZE = 32
ZERO_POINT = 128
MIN_TABLE_BYTES = 1 << 20
"""Embedding tables below this size stay float: quantising them would save less than it costs in accuracy."""
SUFFIX = "_int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphQuantization:
    """What happened to one graph."""

    quantized: int
    """Weight matrices and kernels now stored in 8 bits."""
    activation_products: int
    """Matrix products of two activations (attention), which hold no weights and stay float."""
    float_nodes: dict[str, int]
    """Nodes that hold weights and stay float, by operator (a small embedding table)."""
    bytes_before: int
    """Size of the float graph; weights that it shares count where they stand."""
    bytes_after: int
    """Size of the quantised graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """What happened to each graph, by graph name."""

    bits: int
    """Bits per weight."""
    block_size: int
    """Weights that share one scale."""
    graphs: dict[str, GraphQuantization]
    """Per graph."""


def quantize_int8(folder: Path) -> QuantizationReport:
    """Returns what was quantised after writing ``NAME_int8.onnx`` beside each of the three float graphs.

    Raises:
        ExportError: If a graph is missing, or a weight matrix would silently stay float.
    """
    graphs = {}
    for name in GRAPHS:
        source, target = folder / f"{name}.onnx", folder / f"{name}{SUFFIX}.onnx"
        if not source.is_file():
            raise ExportError(f"{source} is missing; export the float graphs first")
        model = onnx.load(source)
        quantized = _quantize_table(model) if name == EMBED else _quantize_products(model, name)
        quantized += _quantize_convolutions(model)
        if name in (VISION, DECODER) and quantized == 0:
            raise ExportError(f"{source.name} holds no weight matrix to quantise; is it an exported graph?")
        _drop_unused(model)
        _add_domain(model)
        table = folder / f"{EMBED}{SUFFIX}.onnx"
        save_graph(model, target, apart=name == EMBED, shared=table if name == DECODER else None)
        graphs[name] = GraphQuantization(
            quantized=quantized,
            activation_products=sum(node.op_type == "MatMul" for node in model.graph.node),
            float_nodes=_float_nodes(model),
            bytes_before=graph_bytes(source),
            bytes_after=graph_bytes(target),
        )
    return QuantizationReport(bits=BITS, block_size=BLOCK_SIZE, graphs=graphs)


def quantize_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Returns ``weight`` in blocks of 32 along its last axis: bytes [N, blocks, 32] and scales [N, blocks].

    ``weight[n, k] ~ (bytes - 128) * scale`` with ``scale = max |block| / 127``; the last block is padded with zeros.

    Args:
        weight: float32 [N, K], finite.

    Raises:
        ExportError: If a weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise ExportError("a weight matrix holds NaN or infinity; the model cannot be quantised")
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK_SIZE)
    padded = np.zeros((rows, blocks * BLOCK_SIZE), np.float32)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, blocks, BLOCK_SIZE)
    scales = (np.abs(grouped).max(axis=2) / 127.0).astype(np.float32)
    steps = np.where(scales > 0, scales, 1.0)
    levels = np.clip(np.rint(grouped / steps[:, :, None]), -127, 127)
    return (levels + ZERO_POINT).astype(np.uint8), scales


def _quantize_products(model: onnx.ModelProto, name: str) -> int:
    """Replaces every product with a weight matrix; returns how many."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    constant = _constants(model)
    nodes: list[onnx.NodeProto] = []
    done: dict[tuple[str, bool], tuple[str, str, tuple[int, int]]] = {}
    count = 0
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or not (set(node.input[:2]) & constant):
            nodes.append(node)
            continue
        key = node.input[1], _is_transposed(node)
        if key[0] not in weights or len(weights[key[0]].dims) != 2:
            raise ExportError(
                f"{name}: {node.op_type} {node.name!r} multiplies by a weight that is not a plain matrix "
                f"({node.input[1]!r}); it would stay float without a word"
            )
        if key not in done:
            done[key] = _store_weight(model, weights[key[0]], transposed=key[1])
        nodes += _product_nodes(node, *done[key])
        count += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def _constants(model: onnx.ModelProto) -> set[str]:
    """Returns the names of all values that depend on weights only."""
    known = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if all(name in known for name in node.input if name):
            known.update(node.output)
    return known


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _is_transposed(node: onnx.NodeProto) -> bool:
    """Returns whether the weight is stored [N, K]; refuses Gemm forms that are not a plain linear layer."""
    if node.op_type == "MatMul":
        return False
    alpha, beta = _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)
    if alpha != 1.0 or beta != 1.0 or _attribute(node, "transA", 0):
        raise ExportError(f"Gemm {node.name!r} scales or transposes its input; only plain linear layers are handled")
    return bool(_attribute(node, "transB", 0))


def _store_weight(
    model: onnx.ModelProto, tensor: onnx.TensorProto, *, transposed: bool
) -> tuple[str, str, tuple[int, int]]:
    """Adds the quantised weight; returns the names of its bytes and scales, and (K, N)."""
    weight = numpy_helper.to_array(tensor).astype(np.float32)
    weight = weight if transposed else weight.T
    data, scales = quantize_blocks(weight)
    stem = f"{tensor.name}_q8{'_t' if transposed else ''}"
    model.graph.initializer.extend(
        [numpy_helper.from_array(data, f"{stem}_data"), numpy_helper.from_array(scales, f"{stem}_scales")]
    )
    return f"{stem}_data", f"{stem}_scales", (weight.shape[1], weight.shape[0])


def _product_nodes(node: onnx.NodeProto, data: str, scales: str, shape: tuple[int, int]) -> list[onnx.NodeProto]:
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
    output = f"{node.output[0]}_product" if bias else node.output[0]
    nodes = [
        helper.make_node(
            "MatMulNBits",
            [node.input[0], data, scales],
            [output],
            name=f"{node.name or node.output[0]}_q8",
            domain="com.microsoft",
            K=shape[0],
            N=shape[1],
            bits=BITS,
            block_size=BLOCK_SIZE,
        )
    ]
    if bias:
        nodes.append(helper.make_node("Add", [output, bias], [node.output[0]], name=f"{node.name}_bias"))
    return nodes


def _quantize_convolutions(model: onnx.ModelProto) -> int:
    """Stores the kernels of convolutions as signed bytes with one scale an output channel; returns how many.

    They are made float again when they are read: the convolution itself, its input and its bias stay as they are.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            kernel = numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)
            if not np.isfinite(kernel).all():
                raise ExportError("a convolution holds NaN or infinity; the model cannot be quantised")
            scales = (np.abs(kernel).reshape(len(kernel), -1).max(axis=1) / 127.0).astype(np.float32)
            steps = np.where(scales > 0, scales, 1.0).reshape(-1, *(1,) * (kernel.ndim - 1))
            stem = f"{node.input[1]}_q8"
            model.graph.initializer.extend(
                [
                    numpy_helper.from_array(np.rint(kernel / steps).astype(np.int8), f"{stem}_data"),
                    numpy_helper.from_array(scales, f"{stem}_scales"),
                ]
            )
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{stem}_data", f"{stem}_scales"], [stem], name=stem, axis=0)
            )
            node.input[1] = stem
            count += 1
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def _quantize_table(model: onnx.ModelProto) -> int:
    """Quantises the embedding table where it is large and its width is a multiple of the block; returns how many."""
    (gather,) = (node for node in model.graph.node if node.op_type == "Gather")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == gather.input[0])
    table = numpy_helper.to_array(tensor)
    if table.nbytes < MIN_TABLE_BYTES or table.shape[1] % BLOCK_SIZE:
        return 0
    data, scales = quantize_blocks(table.astype(np.float32))
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(data.reshape(table.shape), f"{tensor.name}_q8_data"),
            numpy_helper.from_array(scales, f"{tensor.name}_q8_scales"),
        ]
    )
    node = helper.make_node(
        "GatherBlockQuantized",
        [f"{tensor.name}_q8_data", gather.input[1], f"{tensor.name}_q8_scales"],
        list(gather.output),
        name=f"{gather.name or 'gather'}_q8",
        domain="com.microsoft",
        bits=BITS,
        block_size=BLOCK_SIZE,
        gather_axis=0,
        quantize_axis=1,
    )
    index = list(model.graph.node).index(gather)
    model.graph.node.remove(gather)
    model.graph.node.insert(index, node)
    return 1


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _add_domain(model: onnx.ModelProto) -> None:
    uses = any(node.domain == "com.microsoft" for node in model.graph.node)
    if uses and all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _float_nodes(model: onnx.ModelProto) -> dict[str, int]:
    """Returns how many nodes of each operator still read a float weight of more than one dimension."""
    weights = {t.name for t in model.graph.initializer if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT}
    quantized = ("MatMulNBits", "GatherBlockQuantized")
    nodes = (node for node in model.graph.node if node.op_type not in quantized and weights & set(node.input))
    return dict(Counter(node.op_type for node in nodes))
