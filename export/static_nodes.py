"""``QuantizeLinear`` and ``DequantizeLinear`` with constant scales, as TensorRT wants them.

ONNX Runtime's ``QDQQuantizer`` lets every reader of a value read its bytes: in a residual tower the sums and poolings
beside the convolutions too. It also copies the graph twice, and takes weights channel by channel. Here only what has
weights reads bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from emocaliber.runtime.errors import ExportError

from .quantized_nodes import Weights, is_transposed, quantize_channels


def values_at_weights(model: onnx.ModelProto, name: str) -> list[str]:
    """Returns the values that meet weights: those whose ranges `quantize_statically` needs.

    Args:
        model: A plain graph, its weights in it.
        name: Of the graph, for messages.

    Raises:
        ExportError: If a weight would stay float.
    """
    weights = Weights(model, name)
    return list(dict.fromkeys(node.input[0] for node in model.graph.node if weights.of(node) is not None))


def quantize_statically(model: onnx.ModelProto, name: str, ranges: Mapping[str, float]) -> int:
    """Lets every convolution and product with a weight matrix read bytes; returns how many these are.

    Weights are signed bytes with one scale an output channel, what meets them signed bytes with one scale, the end of
    its range / 127. All zero points are 0. Biases, results, and products of two activations stay float.

    Args:
        model: A plain graph, changed in place; its weights in it.
        name: Of the graph, for messages.
        ranges: Magnitude at which the range of each value of `values_at_weights` ends.

    Raises:
        ExportError: If a weight would stay float, or a value has no finite range.
    """
    weights = Weights(model, name)
    made = _Made(model)
    count = 0
    for node in model.graph.node:
        tensor = weights.of(node)
        if tensor is not None:
            axis = int(node.op_type != "Conv" and not is_transposed(node))
            node.input[0] = made.rounded(node.input[0], _scale(node.input[0], ranges, name))
            node.input[1] = made.dequantized(tensor, axis)
            count += 1
        made.nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(made.nodes)
    return count


class _Made:
    """The nodes of a graph, others between them. What is made for one reader serves all."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._model = model
        self._known: set[str] = set()

    def rounded(self, value: str, scale: NDArray[np.float32]) -> str:
        """Returns a value that was in bytes."""
        levels = f"{value}_qdq"
        ports = [self._constant(f"{value}_qdq_scale", scale), self._constant("qdq_zero", np.int8(0))]
        self._add("QuantizeLinear", [value, *ports], levels)
        return self._add("DequantizeLinear", [levels, *ports], f"{value}_rounded")

    def dequantized(self, tensor: onnx.TensorProto, axis: int) -> str:
        """Returns a weight that is stored in bytes, with a scale for each place of ``axis``."""
        stem = f"{tensor.name}_qdq_{axis}"
        if stem in self._known:
            return stem
        levels, scales = quantize_channels(numpy_helper.to_array(tensor).astype(np.float32), axis)
        # Without them zeros are meant too, but session.x64quantprecision of ONNX Runtime 1.32 wants them, each its own.
        zeros = self._constant(f"{stem}_zeros", np.zeros(len(scales), np.int8))
        ports = [self._constant(f"{stem}_data", levels), self._constant(f"{stem}_scales", scales), zeros]
        return self._add("DequantizeLinear", ports, stem, axis=axis)

    def _constant(self, name: str, value: NDArray[Any] | np.int8) -> str:
        if name not in self._known:
            self._known.add(name)
            self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        if output not in self._known:
            self._known.add(output)
            self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output


def _scale(value: str, ranges: Mapping[str, float], name: str) -> NDArray[np.float32]:
    """Returns the scale of a value; 1 of one that was always zero."""
    end = ranges.get(value, np.nan)
    if not np.isfinite(end):
        raise ExportError(f"{name}: the range of {value} ends at {end}; ranges must be those of this very graph")
    return np.array(end / 127.0 if end > 0 else 1.0, np.float32)
