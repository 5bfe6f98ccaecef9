from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from emocaliber.export.quantize import graph_files, quantize_graphs
from emocaliber.export.quantized_nodes import quantize_blocks, quantize_channels, quantize_products
from emocaliber.runtime.engine import SIGNED_WEIGHTS, _session
from emocaliber.runtime.errors import ConfigError, ExportError


def save(folder: Path, name: str, nodes: list[Any], weights: dict[str, Any], width: int, out: int) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / f"{name}.onnx")


def graphs(folder: Path, node: Any, weights: dict[str, Any]) -> None:
    """Writes two graphs: the given node as the vision encoder, and a table."""
    rng = np.random.default_rng(0)
    save(folder, "vision_encoder", [node], weights, 40, 6)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "embed_tokens",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "n", 64])],
        [numpy_helper.from_array(rng.normal(size=(50, 64)).astype(np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "embed_tokens.onnx")


def run(path: Path, feed: dict[str, Any]) -> Any:
    return _session(path, "cpu", 1).run(None, feed)[0]


def quantize_vision(folder: Path) -> Any:
    """Quantises a folder that holds no decoder; returns what became of the vision encoder."""
    with pytest.raises(ExportError, match=r"decoder_model_merged.onnx is missing"):
        quantize_graphs(folder, ["int8"])
    return folder / "vision_encoder_int8.onnx"


def test_channels_by_hand() -> None:
    # First column: scale 1.27 / 127 = 0.01, levels 127, -64; second: zeros, of any scale.
    data, scales = quantize_channels(np.array([[1.27, 0.0], [-0.64, 0.0]], np.float32), 1)
    np.testing.assert_allclose(scales, [0.01, 1.0], rtol=1e-6)
    assert data.tolist() == [[127, 0], [-64, 0]]


def test_blocks_by_hand() -> None:
    weight = np.zeros((1, 33), np.float32)
    weight[0, :3] = [1.6, -0.8, 0.21]
    weight[0, 32] = -4.0
    data, scales = quantize_blocks(weight)
    # First block: scale 1.6 / -8 = -0.2, levels 0, 12, 7, then 8 for zero; second: scale 0.5, level 0, then padding.
    np.testing.assert_allclose(scales, [[-0.2, 0.5]], rtol=1e-6)
    assert data.shape == (1, 2, 16)
    assert data[0, 0, :3].tolist() == [0 | 12 << 4, 7 | 8 << 4, 8 | 8 << 4]
    assert data[0, 1, :2].tolist() == [0 | 8 << 4, 8 | 8 << 4]


@pytest.mark.parametrize("quantize", [quantize_blocks, lambda weight: quantize_channels(weight, 1)])
def test_weights_that_are_not_finite_are_refused(quantize: Any) -> None:
    with pytest.raises(ExportError, match="NaN or infinity"):
        quantize(np.array([[1.0, np.nan]], np.float32))


def test_every_linear_layer_of_the_model_is_quantised(written: Path) -> None:
    vision, decoder = (onnx.load(written / f"{name}_int8.onnx") for name in ("vision_encoder", "decoder_model_merged"))
    # Vision: 2 layers of q, k, v, out, fc1, fc2, and the connector. Decoder:
    # 2 layers of q, k, v, o, gate, up, down, and the vocabulary. Attention is one operator a layer in both.
    for model, products in ((vision, 2 * 6 + 1), (decoder, 2 * 7 + 1)):
        kinds = Counter(node.op_type for node in model.graph.node)
        assert (kinds["MatMulIntegerToFloat"], kinds["MatMul"], kinds["Gemm"]) == (products, 0, 0)
    # q, k and v read the same rows, and so do gate and up: each is quantised once.
    assert Counter(node.op_type for node in decoder.graph.node)["QuantizeLinear"] == 2 * 4 + 1
    weights = {tensor.data_type for tensor in decoder.graph.initializer if len(tensor.dims) == 2}
    assert weights == {TensorProto.INT8}


@pytest.mark.parametrize("kind", ["MatMul", "Gemm", "Gemm, transposed"])
def test_bytes_do_not_overflow(tmp_path: Path, kind: str) -> None:
    # Pairs of products of the largest bytes do not fit into 16 bits, in which some processors would add them.
    weight = np.full((40, 6), 1.0, np.float32) * np.array([1, -1, 1, -1, 1, -1])
    transposed = kind.endswith("transposed")
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    name, *_ = kind.split(",")
    node = helper.make_node(name, ["x", "w"], ["y"], **({"transB": 1} if transposed else {}))
    graphs(tmp_path, node, {"w": stored.astype(np.float32)})
    path = quantize_vision(tmp_path)
    x = np.stack([np.ones(40, np.float32), -np.ones(40, np.float32)])
    np.testing.assert_allclose(run(path, {"x": x}), x @ weight, rtol=1e-5)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_weight_of_two_products_loads(tmp_path: Path, kind: str) -> None:
    weight = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    nodes = [helper.make_node(kind, [source, "w"], [name], name=name) for source, name in (("x", "a"), ("a", "y"))]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert quantize_products(model, "g", "int8") == 2
    helper.set_model_props(model, SIGNED_WEIGHTS)
    onnx.save(model, tmp_path / "g.onnx")
    x = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
    expected = x @ weight @ weight
    assert np.abs(run(tmp_path / "g.onnx", {"x": x}) - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_becomes_a_quantised_product_and_a_sum(tmp_path: Path, transposed: bool) -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(6, 40) if transposed else (40, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=int(transposed))
    graphs(tmp_path, node, {"w": weight, "b": bias})
    path = quantize_vision(tmp_path)
    assert "Gemm" not in {found.op_type for found in onnx.load(path).graph.node}
    x = rng.normal(size=(5, 40)).astype(np.float32)
    matrix = weight.T if transposed else weight
    found = run(path, {"x": x})
    # Weights and inputs are each off by at most half a step, of their column and of their row.
    columns, rows = np.abs(matrix).max(axis=0) / 254, np.abs(x).max(axis=1, keepdims=True) / 254
    bound = np.abs(x).sum(axis=1, keepdims=True) * columns + rows * np.abs(matrix).sum(axis=0) + 40 * rows * columns
    assert (np.abs(found - x @ matrix - bias) <= bound + 1e-5).all()
    assert not np.array_equal(found, x @ matrix + bias)


def test_a_row_of_zeros_is_zero_and_nothing_overflows(tmp_path: Path) -> None:
    weight = np.full((40, 6), -1.0, np.float32)
    graphs(tmp_path, helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weight})
    x = np.array([[0.0] * 40, [3.0] * 40, [-1e6] * 40], np.float32)
    np.testing.assert_allclose(run(quantize_vision(tmp_path), {"x": x})[:, 0], [0.0, -120.0, 4e7], rtol=1e-5)


def test_weights_behind_other_nodes_are_refused_not_skipped(tmp_path: Path) -> None:
    nodes = helper.make_node("MatMul", ["x", "w"], ["y"])
    graphs(tmp_path, nodes, {"w": np.ones((40, 6), np.float32)})
    hidden = [helper.make_node("Transpose", ["wt"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")]
    save(tmp_path, "vision_encoder", hidden, {"wt": np.ones((6, 40), np.float32)}, 40, 6)
    with pytest.raises(ExportError, match="MatMul 'fc' multiplies by a weight that is not a plain matrix"):
        quantize_graphs(tmp_path, ["int8"])
    assert not (tmp_path / "vision_encoder_int8.onnx").exists()


def test_scaled_gemm_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)
    graphs(tmp_path, node, {"w": np.ones((40, 6), np.float32)})
    with pytest.raises(ExportError, match="only plain linear layers"):
        quantize_graphs(tmp_path, ["int8"])


def test_graph_without_weights_is_refused(tmp_path: Path) -> None:
    graphs(tmp_path, helper.make_node("Relu", ["x"], ["y"]), {})
    with pytest.raises(ExportError, match=r"vision_encoder.onnx holds no weight matrix"):
        quantize_graphs(tmp_path, ["int8"])


def test_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"embed_tokens.onnx is missing"):
        quantize_graphs(tmp_path, ["int8"])


def test_the_table_is_off_by_half_a_step_of_each_entry(tmp_path: Path) -> None:
    graphs(tmp_path, helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": np.ones((40, 6), np.float32)})
    quantize_vision(tmp_path)
    ids = {"ids": np.arange(50)[None]}
    exact, found = (run(tmp_path / f"embed_tokens{suffix}.onnx", ids) for suffix in ("", "_int8"))
    assert (np.abs(found - exact) <= np.abs(exact).max(axis=-1, keepdims=True) / 254 + 1e-6).all()


def test_a_precision_names_its_graphs() -> None:
    assert graph_files("fp32").names() == ("vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx")
    # The table stays int8 beside a decoder in 4 bits, whose vocabulary does too.
    assert graph_files("int4").names() == (
        "vision_encoder_q4.onnx", "embed_tokens_int8.onnx", "decoder_model_merged_q4.onnx"
    )  # fmt: skip
    assert graph_files("fp16-int8").vision_encoder == "vision_encoder_fp16.onnx"
    # Beside static ranges it is int8 too.
    assert graph_files("fp16-qdq").names() == (
        "vision_encoder_fp16.onnx", "embed_tokens_int8.onnx", "decoder_model_merged_quantized.onnx"
    )  # fmt: skip
    assert graph_files("qdq-fp16").names()[:2] == ("vision_encoder_quantized.onnx", "embed_tokens_fp16.onnx")
    for wrong in ("int3", "int8-int8", "int8-", "int8-int4-fp16", ""):
        with pytest.raises(ConfigError, match=f"no precision '{wrong}'"):
            graph_files(wrong)


def test_rows_do_not_depend_on_their_neighbours(written: Path) -> None:
    """Every row has a scale of its own: features are the same alone and beside an image of extreme values."""
    rng = np.random.default_rng(5)
    image = rng.normal(size=(1, 3, 32, 32)).astype(np.float32)
    path = written / "vision_encoder_int8.onnx"
    alone = run(path, {"pixel_values": image})
    beside = run(path, {"pixel_values": np.concatenate([image, 50 * image[:, ::-1]])})[:1]
    np.testing.assert_allclose(beside, alone, atol=1e-5)
