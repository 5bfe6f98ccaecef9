"""Nodes with weights of fewer bits in place of those with float ones."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from emocaliber.runtime.errors import ExportError

WeightBits = Literal["int8", "int4"]

BYTES_PRODUCTS = {"MatMulInteger": 3, "MatMulIntegerToFloat": 5}
"""Products of bytes, and how many inputs they have where the weights are signed."""
BLOCK_SIZE = 32
ZERO_POINT = 128
_INT8_ACTIVATIONS = 4
"""``accuracy_level`` of MatMulNBits: rows are read as bytes, which is many times faster for a single one."""
_TINY = 1e-30
"""Least largest magnitude of a row: a row of zeros has no scale of its own."""


def quantize_channels(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns ``weight`` as signed bytes of the same shape, and one scale for each place of ``axis``.

    ``weight ~ bytes * scale`` with ``scale = max |weights of the place| / 127``; 1 where all of them are zero.

    Args:
        weight: float32, finite.
        axis: Of the output channels.

    Raises:
        ExportError: If a weight is not finite.
    """
    _check_finite(weight)
    others = tuple(other for other in range(weight.ndim) if other != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / 127.0, 1.0).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales.ravel()


def quantize_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Returns ``weight`` in blocks of 32 along its last axis: two levels a byte [N, blocks, 16], scales [N, blocks].

    ``weight[n, k] ~ (level - 8) * scale``, levels 0 to 15; the largest magnitude of a block is level 0, so that all
    sixteen are used. The last block is padded with zeros; the first of two levels is the lower half of a byte.

    Args:
        weight: float32 [N, K], finite.

    Raises:
        ExportError: If a weight is not finite.
    """
    _check_finite(weight)
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK_SIZE)
    padded = np.zeros((rows, blocks * BLOCK_SIZE), np.float32)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, blocks, BLOCK_SIZE)
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2)[..., None], axis=2)[..., 0]
    scales = (largest / -8.0).astype(np.float32)
    steps = np.where(scales != 0, scales, 1.0)
    levels = np.clip(np.rint(grouped / steps[..., None]) + 8, 0, 15).astype(np.uint8)
    return levels[..., 0::2] | (levels[..., 1::2] << 4), scales


def quantize_products(model: onnx.ModelProto, name: str, bits: WeightBits, *, many_rows: bool = False) -> int:
    """Replaces every product with a weight matrix; returns how many.

    Args:
        model: Changed in place; its weights in it.
        name: Of the graph, for messages.
        bits: Of the weights; a Gemm that reads its weight as [N, K] is the vocabulary, and int8 in any case.
        many_rows: Whether it reads hundreds of rows: then it is quicker to round them with fewer, larger operators. For
            a single row, as a decoder reads it, that was slower in ONNX Runtime 1.32.

    Raises:
        ExportError: If a weight would stay float.
    """
    weights = Weights(model, name)
    products = _Products(model, many_rows=many_rows)
    count = 0
    for node in list(model.graph.node):
        tensor = weights.of(node) if node.op_type in ("MatMul", "Gemm") else None
        if tensor is None:
            products.nodes.append(node)
            continue
        transposed = is_transposed(node)
        if bits == "int8" or transposed:
            products.bytes_product(node, tensor, transposed=transposed)
        else:
            products.blocks_product(node, tensor)
        count += 1
    del model.graph.node[:]
    model.graph.node.extend(products.nodes)
    return count


class Weights:
    """The weights of a graph, by what reads them."""

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        """Takes a graph, its weights in it, and its name for messages."""
        self._name = name
        self._stored: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._constant = constants(model)

    def of(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """Returns the weight that a convolution or a product reads; None for any other node.

        Raises:
            ExportError: If it depends on weights in a way that would leave it float.
        """
        if node.op_type not in ("Conv", "MatMul", "Gemm") or not (set(node.input[:2]) & self._constant):
            return None
        tensor = self._stored.get(node.input[1])
        if tensor is None or (node.op_type != "Conv" and len(tensor.dims) != 2):
            raise ExportError(
                f"{self._name}: {node.op_type} {node.name!r} multiplies by a weight that is not a plain matrix "
                f"({node.input[1]!r}); it would stay float without a word"
            )
        return tensor


class _Products:
    """The nodes of a graph as they are replaced. Rows that are quantised once are used by all that read them."""

    def __init__(self, model: onnx.ModelProto, *, many_rows: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._model = model
        self._many_rows = many_rows
        self._rows: dict[str, tuple[str, str]] = {}
        self._uses: Counter[tuple[str, bool]] = Counter()
        self._known: set[str] = set()

    def bytes_product(self, node: onnx.NodeProto, tensor: onnx.TensorProto, *, transposed: bool) -> None:
        """Adds a product of bytes, rows with a scale each and columns with a scale each."""
        rows, row_scales = self._quantized_rows(node.input[0], int(tensor.dims[1 if transposed else 0]))
        data, scales = quantize_channels(numpy_helper.to_array(tensor).astype(np.float32), 0 if transposed else 1)
        # Of two products each has its own: session.x64quantprecision of ONNX Runtime 1.32 cannot convert one twice.
        number = self._uses[tensor.name, transposed]
        self._uses[tensor.name, transposed] += 1
        stem = f"{tensor.name}_q8{'_t' if transposed else ''}{f'_{number}' if number else ''}"
        data_name, scales_name = self._constant(f"{stem}_data", data), self._constant(f"{stem}_scales", scales)
        if transposed:  # ONNX Runtime turns it once, when it loads
            self._add("Transpose", [data_name], f"{stem}_columns", perm=[1, 0])
            data_name = f"{stem}_columns"
        zero, output = self._constant("q8_zero", np.uint8(ZERO_POINT)), node.output[0]
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        one, product = self._constant("q8_one", np.float32(1)), f"{output}_product" if bias else output
        inputs = [rows, data_name, one, scales_name, zero]
        self._add("MatMulIntegerToFloat", inputs, f"{output}_columns", domain="com.microsoft")
        self._add("Mul", [f"{output}_columns", row_scales], product)
        if bias:
            self._add("Add", [product, bias], output)

    def blocks_product(self, node: onnx.NodeProto, tensor: onnx.TensorProto) -> None:
        """Adds a product with a weight in blocks of 4 bits."""
        stem, output = f"{tensor.name}_q4", node.output[0]
        if f"{stem}_data" not in self._known:
            data, scales = quantize_blocks(numpy_helper.to_array(tensor).astype(np.float32).T)
            self._constant(f"{stem}_data", data)
            self._constant(f"{stem}_scales", scales)
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        self._add(
            "MatMulNBits",
            [node.input[0], f"{stem}_data", f"{stem}_scales"],
            f"{output}_product" if bias else output,
            domain="com.microsoft",
            K=int(tensor.dims[0]),
            N=int(tensor.dims[1]),
            bits=4,
            block_size=BLOCK_SIZE,
            accuracy_level=_INT8_ACTIVATIONS,
        )
        if bias:
            self._add("Add", [f"{output}_product", bias], output)

    def _quantized_rows(self, value: str, width: int) -> tuple[str, str]:
        """Returns the names of a value's rows as bytes, and of their scales."""
        if value not in self._rows:
            self._add("Abs", [value], f"{value}_abs")
            last = self._constant("q8_last_axis", np.array([-1], np.int64))
            self._add("ReduceMax", [f"{value}_abs", last], f"{value}_max", keepdims=1)
            tiny = self._constant("q8_tiny", np.float32(_TINY))
            self._add("Max", [f"{value}_max", tiny], f"{value}_top")
            step = self._constant("q8_step", np.float32(1 / 127))
            self._add("Mul", [f"{value}_top", step], f"{value}_scale")
            zero = self._constant("q8_zero", np.uint8(ZERO_POINT))
            if self._many_rows:
                self._add("Shape", [f"{value}_scale"], f"{value}_shape")
                self._add("Expand", [zero, f"{value}_shape"], f"{value}_zeros")
                inputs = [value, f"{value}_scale", f"{value}_zeros"]
                self._add("QuantizeLinear", inputs, f"{value}_q8", axis=-1, block_size=width)
            else:
                one = self._constant("q8_one", np.float32(1))
                self._add("Div", [value, f"{value}_scale"], f"{value}_levels")
                self._add("QuantizeLinear", [f"{value}_levels", one, zero], f"{value}_q8")
            self._rows[value] = f"{value}_q8", f"{value}_scale"
        return self._rows[value]

    def _constant(self, name: str, value: Any) -> str:
        if name not in self._known:
            self._known.add(name)
            self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))


def make_unsigned(model: onnx.ModelProto) -> None:
    """Makes the weights of products of bytes unsigned, for who might add products of signed ones up in 16 bits."""
    turned = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    # Only unsigned weights say what their middle is, in an input of their own behind these.
    products = [node for node in model.graph.node if len(node.input) == BYTES_PRODUCTS.get(node.op_type)]
    signed = {turned.get(node.input[1], node.input[1]) for node in products}
    for tensor in model.graph.initializer:
        if tensor.name in signed:
            levels = numpy_helper.to_array(tensor).astype(np.int16) + ZERO_POINT
            tensor.CopyFrom(numpy_helper.from_array(levels.astype(np.uint8), tensor.name))
    if products:
        middle = numpy_helper.from_array(np.array(ZERO_POINT, np.uint8), "q8_middle")
        model.graph.initializer.append(middle)
        for node in products:
            node.input.append(middle.name)
        del model.metadata_props[:]


def quantize_table(model: onnx.ModelProto) -> int:
    """Stores the embedding table in bytes, one scale an entry; returns how many tables that are.

    It stays [vocab, hidden], as the vocabulary's weight in `quantize_products`, so that the decoder can share it, and
    so that an entry lies in one place: of a table mapped into memory, only what is asked for is ever read.
    """
    (gather,) = (node for node in model.graph.node if node.op_type == "Gather")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == gather.input[0])
    data, scales = quantize_channels(numpy_helper.to_array(tensor).astype(np.float32), 0)
    ids, output = gather.input[1], gather.output[0]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(data, f"{tensor.name}_q8_data"),
            numpy_helper.from_array(scales, f"{tensor.name}_q8_scales"),
            numpy_helper.from_array(np.array([-1], np.int64), "q8_last_axis"),
        ]
    )
    nodes = [
        helper.make_node("Gather", [f"{tensor.name}_q8_data", ids], ["q8_bytes"]),
        helper.make_node("Cast", ["q8_bytes"], ["q8_levels"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{tensor.name}_q8_scales", ids], ["q8_found_scales"]),
        helper.make_node("Unsqueeze", ["q8_found_scales", "q8_last_axis"], ["q8_scale"]),
        helper.make_node("Mul", ["q8_levels", "q8_scale"], [output]),
    ]
    index = list(model.graph.node).index(gather)
    model.graph.node.remove(gather)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(index + offset, node)
    return 1


def quantize_convolutions(model: onnx.ModelProto) -> int:
    """Stores the kernels of convolutions as signed bytes with one scale an output channel; returns how many.

    They are made float again when they are read: the convolution itself, its input and its bias stay as they are.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            levels, steps = quantize_channels(numpy_helper.to_array(weights[node.input[1]]).astype(np.float32), 0)
            stem = f"{node.input[1]}_q8"
            # Zeros are meant without them too, but session.x64quantprecision of ONNX Runtime 1.32 wants them.
            zeros = np.zeros(len(steps), np.int8)
            values: dict[str, NDArray[Any]] = {"data": levels, "scales": steps, "zeros": zeros}
            names = [f"{stem}_{name}" for name in values]
            model.graph.initializer.extend(map(numpy_helper.from_array, values.values(), names))
            nodes.append(helper.make_node("DequantizeLinear", names, [stem], name=stem, axis=0))
            node.input[1] = stem
            count += 1
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def _check_finite(weight: NDArray[np.float32]) -> None:
    if not np.isfinite(weight).all():
        raise ExportError("a weight holds NaN or infinity; the model cannot be quantised")


def constants(model: onnx.ModelProto) -> set[str]:
    """Returns the names of all values that depend on weights only."""
    known = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if all(name in known for name in node.input if name):
            known.update(node.output)
    return known


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def is_transposed(node: onnx.NodeProto) -> bool:
    """Returns whether the weight is stored [N, K]; refuses Gemm forms that are not a plain linear layer."""
    if node.op_type == "MatMul":
        return False
    alpha, beta = _attribute(node, "alpha", 1.0), _attribute(node, "beta", 1.0)
    if alpha != 1.0 or beta != 1.0 or _attribute(node, "transA", 0):
        raise ExportError(f"Gemm {node.name!r} scales or transposes its input; only plain linear layers are handled")
    return bool(_attribute(node, "transB", 0))
