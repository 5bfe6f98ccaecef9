from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from emocaliber.export import quantize
from emocaliber.export.quantize import quantize_blocks, quantize_int8
from emocaliber.runtime.errors import ExportError


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
    """Writes three graphs: the given node as the vision encoder, a plain product, and a table."""
    rng = np.random.default_rng(0)
    save(folder, "vision_encoder", [node], weights, 40, 6)
    plain = {"w": rng.normal(size=(40, 6)).astype(np.float32)}
    save(folder, "decoder_model_merged", [helper.make_node("MatMul", ["x", "w"], ["y"])], plain, 40, 6)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "embed_tokens",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(rng.normal(size=(50, 64)).astype(np.float32), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "embed_tokens.onnx")


def run(path: Path, feed: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_blocks_by_hand() -> None:
    weight = np.zeros((1, 33), np.float32)
    weight[0, :3] = [1.27, -0.64, 0.014]
    weight[0, 32] = -25.4
    data, scales = quantize_blocks(weight)
    # First block: scale 1.27 / 127 = 0.01, levels 127, -64, 1; second: scale 25.4 / 127 = 0.2, level -127, padding 0.
    np.testing.assert_allclose(scales, [[0.01, 0.2]], rtol=1e-6)
    assert data.shape == (1, 2, 32)
    assert data[0, 0, :4].tolist() == [255, 64, 129, 128]
    assert data[0, 1, :2].tolist() == [1, 128]


def test_a_block_of_zeros_stays_zero() -> None:
    data, scales = quantize_blocks(np.zeros((2, 32), np.float32))
    assert (data == 128).all()
    assert (scales == 0).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ExportError, match="NaN or infinity"):
        quantize_blocks(np.array([[1.0, np.nan]], np.float32))


def test_every_linear_layer_of_the_model_is_quantised(written: Path) -> None:
    vision, decoder = (onnx.load(written / f"{name}_int8.onnx") for name in ("vision_encoder", "decoder_model_merged"))
    # Vision: 2 layers of q, k, v, out, fc1, fc2, and the connector. Decoder: 2 layers of q, k, v, o, gate, up, down,
    # and the vocabulary. Attention is two products of activations a layer.
    for model, count in ((vision, 2 * 6 + 1), (decoder, 2 * 7 + 1)):
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("MatMulNBits") == count
        # Four attention products; the decoder's rotary embedding multiplies no weights.
        assert kinds.count("MatMul") == 4
        assert "Gemm" not in kinds
    assert {tensor.data_type for tensor in decoder.graph.initializer if len(tensor.dims) == 3} <= {
        TensorProto.UINT8,
        TensorProto.FLOAT,
        TensorProto.INT64,
    }


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_becomes_a_quantised_product_and_a_sum(tmp_path: Path, transposed: bool) -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(6, 40) if transposed else (40, 6)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=int(transposed))
    graphs(tmp_path, node, {"w": weight, "b": bias})
    report = quantize_int8(tmp_path)
    assert report.graphs["vision_encoder"].quantized == 1
    x = rng.normal(size=(5, 40)).astype(np.float32)
    exact = x @ (weight.T if transposed else weight) + bias
    found = run(tmp_path / "vision_encoder_int8.onnx", {"x": x})
    # Each weight is off by at most half a step: |error| <= sum |x| * max |w| / 127 / 2.
    bound = np.abs(x).sum(axis=1, keepdims=True) * np.abs(weight).max() / 254
    assert (np.abs(found - exact) <= bound + 1e-5).all()
    assert not np.array_equal(found, exact)


def test_weights_behind_other_nodes_are_refused_not_skipped(tmp_path: Path) -> None:
    nodes = helper.make_node("MatMul", ["x", "w"], ["y"])
    graphs(tmp_path, nodes, {"w": np.ones((40, 6), np.float32)})
    hidden = [helper.make_node("Transpose", ["wt"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")]
    save(tmp_path, "vision_encoder", hidden, {"wt": np.ones((6, 40), np.float32)}, 40, 6)
    with pytest.raises(ExportError, match="MatMul 'fc' multiplies by a weight that is not a plain matrix"):
        quantize_int8(tmp_path)
    assert not (tmp_path / "vision_encoder_int8.onnx").exists()


def test_scaled_gemm_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)
    graphs(tmp_path, node, {"w": np.ones((40, 6), np.float32)})
    with pytest.raises(ExportError, match="only plain linear layers"):
        quantize_int8(tmp_path)


def test_graph_without_weights_is_refused(tmp_path: Path) -> None:
    graphs(tmp_path, helper.make_node("Relu", ["x"], ["y"]), {})
    with pytest.raises(ExportError, match=r"vision_encoder.onnx holds no weight matrix"):
        quantize_int8(tmp_path)


def test_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"vision_encoder.onnx is missing"):
        quantize_int8(tmp_path)


def test_small_tables_stay_float_and_large_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs(tmp_path, helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": np.ones((40, 6), np.float32)})
    assert quantize_int8(tmp_path).graphs["embed_tokens"].float_nodes == {"Gather": 1}
    monkeypatch.setattr(quantize, "MIN_TABLE_BYTES", 0)
    report = quantize_int8(tmp_path).graphs["embed_tokens"]
    assert (report.quantized, report.float_nodes) == (1, {})
    ids = {"ids": np.arange(50)}
    exact, found = (run(tmp_path / f"embed_tokens{suffix}.onnx", ids) for suffix in ("", "_int8"))
    steps = np.repeat(np.abs(exact.reshape(50, 2, 32)).max(axis=2) / 127, 32, axis=1)
    assert (np.abs(found - exact) <= steps / 2 + 1e-6).all()


def test_rows_do_not_depend_on_their_neighbours(written: Path) -> None:
    """Activations stay float: an image's features are the same alone and beside an image of extreme values."""
    rng = np.random.default_rng(5)
    image = rng.normal(size=(1, 3, 32, 32)).astype(np.float32)
    path = written / "vision_encoder_int8.onnx"
    alone = run(path, {"pixel_values": image})
    beside = run(path, {"pixel_values": np.concatenate([image, 50 * image[:, ::-1]])})[:1]
    np.testing.assert_allclose(beside, alone, atol=1e-5)
