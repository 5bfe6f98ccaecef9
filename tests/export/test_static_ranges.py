"""Precision qdq: what reads bytes, where its scales come from, and what they do to a prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_run import scene_samples

from emocaliber.export import bundle as bundle_module
from emocaliber.export import static_ranges
from emocaliber.export.bundle import BundleSpec, write_bundle
from emocaliber.export.quantize import quantize_graphs
from emocaliber.export.static_nodes import quantize_statically, values_at_weights
from emocaliber.export.static_ranges import StaticRanges, find_ranges
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.engine import _EXACT_WITH, SIGNED_WEIGHTS, _session, processor_flags
from emocaliber.runtime.errors import ConfigError, ExportError, InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.parity import parity_of
from emocaliber.runtime.samples import Sample, write_samples

GRAPHS = ("vision_encoder", "decoder_model_merged")
SPEC = BundleSpec(
    name="static", version="1", license="MIT", taxonomies=("emotion6-7",), precisions=("int8", "qdq"),
    default_precision="qdq", max_kl_drift=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return scene_samples(tmp_path_factory.mktemp("scenes"), 3)


@pytest.fixture(scope="module")
def ranges(written: Path, samples: list[Sample]) -> StaticRanges:
    with Bundle.open(written) as bundle:
        return find_ranges(bundle, written, samples)


@pytest.fixture(scope="module")
def static(
    written: Path, model: Any, processor: Any, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle with qdq, its float graphs those of the session's bundle."""

    def copy_graphs(_model: Any, folder: Path, *, opset: int) -> None:
        for name in ("embed_tokens", *GRAPHS):
            shutil.copy2(written / f"{name}.onnx", folder)

    target = tmp_path_factory.mktemp("bundles") / "static"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_graphs", copy_graphs)
        write_bundle(target, model, processor, SPEC, calibration_samples=samples, steps=2)
    return target


def graph(nodes: list[Any], weights: dict[str, Any], width: int = 2) -> Any:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value, np.float32), key) for key, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: Any, x: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array(x, np.float32)})[0]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_by_hand(transposed: bool) -> None:
    # Columns: scales 0.01 and 0.02. Values: 12.7 / 127 = 0.1 a level.
    weight = np.array([[1.27, 0.5], [-0.64, 2.54]])
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transB=int(transposed))
    model = graph([node], {"w": weight.T if transposed else weight})
    assert values_at_weights(model, "g") == ["x"]
    assert quantize_statically(model, "g", {"x": 12.7}) == 1
    # 1.04 is level 10, 2.0 level 20, 100 beyond the range; 0.5 is exactly 25 levels of 0.02.
    found = run(model, [[1.04, 2.0], [100.0, 0.0]])
    np.testing.assert_allclose(found, [[1.27 - 1.28, 0.5 + 5.08], [12.7 * 1.27, 12.7 * 0.5]], rtol=1e-5, atol=1e-6)


def test_what_has_no_weights_reads_no_bytes() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Sub", ["x", "p"], ["y"])]
    model = graph(nodes, {"w": np.eye(2)})
    quantize_statically(model, "g", {"x": 12.7})
    np.testing.assert_allclose(run(model, [[1.04, 100.0]]), [[0.04, 87.3]], rtol=1e-4)


def test_what_would_stay_float_is_refused() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    hidden = graph([helper.make_node("Transpose", ["wt"], ["w"]), product], {"wt": np.eye(2)})
    with pytest.raises(ExportError, match="g: MatMul 'fc' multiplies by a weight that is not a plain matrix"):
        values_at_weights(hidden, "g")
    for wrong in ({}, {"x": np.inf}):
        with pytest.raises(ExportError, match=r"g: the range of x ends at (nan|inf)"):
            quantize_statically(graph([product], {"w": np.eye(2)}), "g", wrong)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_is_read_in_bytes(static: Path, written: Path, name: str) -> None:
    exact, found = onnx.load(written / f"{name}.onnx"), onnx.load(static / f"{name}_quantized.onnx")
    weights = {tensor.name for tensor in exact.graph.initializer if len(tensor.dims) > 1}
    expected = [n.name for n in exact.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and weights & set(n.input)]
    report = json.loads((static / "bundle.json").read_text())["provenance"]["quantization"]
    assert report["range_images"] == 3
    assert report["graphs"][f"{name}_quantized"]["quantized"] == len(expected) > 0
    assert report["graphs"][f"{name}_quantized"]["activation_products"] == 4

    makers = {output: node for node in found.graph.node for output in node.output}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    for node in (node for node in found.graph.node if node.name in expected):
        value, weight = (makers[port] for port in node.input[:2])
        assert (value.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert makers[value.input[0]].op_type == "QuantizeLinear"
        assert makers[value.input[0]].input[1:] == value.input[1:]
        for place, sizes in ((value, ()), (weight, (stored[weight.input[0]].shape[weight.attribute[0].i],))):
            scale, zero = (stored[port] for port in place.input[1:])
            assert (scale.shape, zero.shape, zero.dtype) == (sizes, sizes, np.int8)
            assert (scale > 0).all()
            assert not zero.any()
        assert stored[weight.input[0]].dtype == np.int8


def test_ranges_are_of_what_the_runtime_feeds(
    written: Path, samples: list[Sample], ranges: StaticRanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: set[tuple[bool, bool]] = set()
    whole = static_ranges._Watched.run

    def recorded(self: Any, outputs: Any, feed: Any) -> Any:
        if "inputs_embeds" in feed:
            passes.add((feed["inputs_embeds"].shape[1] > 1, feed["past_key_values.0.key"].shape[2] > 0))
        return whole(self, outputs, feed)

    monkeypatch.setattr(static_ranges._Watched, "run", recorded)
    with Bundle.open(written) as bundle:
        pixels = [bundle.manifest.preprocessing.apply(decode_image(sample.image)) for sample in samples]
        again = find_ranges(bundle, written, samples)
    # The prompt, the image with the label tree behind it, and one token after another.
    assert passes == {(True, False), (True, True), (False, True)}
    assert again == ranges
    top = float(np.abs(pixels).max())
    assert ranges.graphs["vision_encoder"]["pixel_values"] == pytest.approx(top, rel=1e-3)
    assert ranges.images == 3


def test_the_same_ranges_make_the_same_bytes(static: Path, written: Path, ranges: StaticRanges, tmp_path: Path) -> None:
    for name in ("embed_tokens", *GRAPHS):
        shutil.copy2(written / f"{name}.onnx", tmp_path)
    quantize_graphs(tmp_path, ["qdq-fp16", "int8-qdq"], ranges=ranges)
    quantize_graphs(tmp_path, ["qdq"], ranges=ranges)
    for name in GRAPHS:
        made, shipped = ((folder / f"{name}_quantized.onnx").read_bytes() for folder in (tmp_path, static))
        assert made == shipped


def test_bytes_do_not_overflow(tmp_path: Path, static: Path) -> None:
    """The written graphs say that their weights are signed, and the runtime then sees to it that sums are exact."""
    for name in ("vision_encoder", "decoder_model_merged"):
        written = onnx.load(static / f"{name}_quantized.onnx")
        assert {entry.key: entry.value for entry in written.metadata_props} == SIGNED_WEIGHTS
    weight = np.where(np.arange(6) % 2, -1.0, 1.0) * np.ones((40, 1))
    made = graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weight}, width=40)
    assert quantize_statically(made, "g", {"x": 1.0}) == 1
    helper.set_model_props(made, SIGNED_WEIGHTS)
    onnx.save(made, tmp_path / "g.onnx")
    x = np.stack([np.ones(40, np.float32), -np.ones(40, np.float32)])
    (found,) = _session(tmp_path / "g.onnx", "cpu", 1).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weight, rtol=1e-5)


def test_a_bundle_predicts_drifts_little_and_asks_each_label_alone(static: Path, samples: list[Sample]) -> None:
    with EmotionModel.load(static) as model:
        prediction = model.predict(samples[0].image)
    assert prediction.bundle["precision"] == "qdq"
    assert sum(prediction.distribution.values()) == pytest.approx(1.0)
    with Bundle.open(static) as bundle:
        parity = parity_of(bundle)
        assert bundle.manifest.precisions["qdq"].embed_tokens == "embed_tokens_int8.onnx"
    assert parity is not None
    found = parity.precisions["qdq"]
    assert 0 < found.kl_drift < SPEC.max_kl_drift
    assert found.max_neighbour_effect < 1e-3
    assert found.max_tree_difference < 1e-3


def test_without_images_nothing_is_begun(
    model: Any, processor: Any, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="found on images, and no image is given; give 'emocaliber export bundle'"):
        write_bundle(tmp_path / "out", model, processor, SPEC)
    with pytest.raises(ConfigError, match="found on images, and no image is given"):
        quantize_graphs(tmp_path, ["fp16-qdq"])
    lost = Sample(image=str(tmp_path / "lost.png"), taxonomy="emotion6-7", answer="joy", split="train")
    write_samples([lost], tmp_path / "samples.jsonl")
    words = ["export", "bundle", str(model_folder), "--out", str(tmp_path / "out"), "--license", "MIT"]
    words += ["--precision", "qdq"]
    assert main(words) == 1
    assert "--calibration-samples SAMPLES.jsonl" in capsys.readouterr().err
    assert main(["export", "onnx", str(model_folder), "--out", str(tmp_path / "out"), "--precision", "int8-qdq"]) == 1
    assert "--calibration-samples SAMPLES.jsonl" in capsys.readouterr().err
    assert main([*words, "--calibration-samples", str(tmp_path / "samples.jsonl")]) == 1
    assert "is of split 'calibration', or of none" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_an_image_that_cannot_be_read_is_named(written: Path, samples: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    wrong = Sample(image=str(broken), taxonomy="emotion6-7", answer="joy")
    with Bundle.open(written) as bundle, pytest.raises(InputError, match=r"broken\.png"):
        find_ranges(bundle, written, [*samples, wrong])


@pytest.mark.skipif(not _EXACT_WITH & processor_flags(), reason="OpenVINO's bytes were never tried without VNNI")
def test_openvino_reads_the_same_bytes(static: Path, samples: list[Sample]) -> None:
    """In bfloat16 where it is neither bytes nor the decoder: no further off than the bytes themselves."""
    pytest.importorskip("openvino")
    images = [decode_image(Path(sample.image)) for sample in samples]
    scores = {}
    for engine in ("cpu", "openvino"):
        with EmotionModel.load(static, precision="qdq", engine=engine) as model:
            scores[engine] = model.score(images).label_scores
    np.testing.assert_allclose(scores["openvino"], scores["cpu"], atol=0.1)
    assert not np.array_equal(scores["openvino"], scores["cpu"])
