"""OpenVINO below the vision encoder: the same features as ONNX Runtime, or an error that says what is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from emocaliber.runtime import EmotionModel
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.engine import available_engines
from emocaliber.runtime.errors import ArtifactError, BackendError, DependencyError
from emocaliber.runtime.openvino_graph import OpenVINOGraph
from emocaliber.runtime.prepared import prepare

IMAGES = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8) for seed in range(8)]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[EmotionModel]:
    pytest.importorskip("openvino")
    with EmotionModel.load(tiny_bundle, precision="fp32", engine="openvino", threads=1) as loaded:
        yield loaded


def test_float_graphs_are_multiplied_in_float32(model: EmotionModel, tiny_bundle: Path) -> None:
    assert model.engine == "openvino"
    with EmotionModel.load(tiny_bundle, precision="fp32", engine="cpu", threads=1) as reference:
        for batch in (IMAGES[:1], IMAGES[:3]):
            found, expected = (each.score(batch).label_scores for each in (model, reference))
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_threads_take_turns(model: EmotionModel) -> None:
    alone = [model.predict(image).distribution for image in IMAGES]
    with ThreadPoolExecutor(8) as pool:
        assert [found.distribution for found in pool.map(model.predict, IMAGES)] == alone


def test_an_encoder_it_cannot_read_is_refused_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    message = (
        "engine 'openvino' does not take precision int8: of vision encoders it reads fp16, fp32, qdq; this bundle "
        "has fp32; 'emocaliber export bundle --precision qdq-int8' makes the one that is fastest with it"
    )
    with pytest.raises(BackendError) as refused:
        EmotionModel.load(tiny_bundle, precision="int8", engine="openvino")
    assert str(refused.value) == message
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"OpenVINO cannot take broken\.onnx: .+"):
        OpenVINOGraph(tmp_path / "broken.onnx", 1, in_bytes=False)


def test_what_is_prepared_for_the_cpu_is_passed_over(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = shutil.copytree(tiny_bundle, tmp_path / "tiny")
    with Bundle.open(folder) as bundle:
        made = prepare(bundle, "fp32").folder
    (made / "decoder.onnx").write_bytes(b"damaged")
    EmotionModel.load(folder, precision="fp32", engine="openvino").predict(IMAGES[0])
    with pytest.raises(ArtifactError, match=r"decoder\.onnx is missing or does not match its SHA-256"):
        EmotionModel.load(folder, precision="fp32", engine="cpu")


def test_without_the_package_it_says_how_to_get_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"needs the package openvino .*pip install 'emocaliber\[openvino\]'"):
        EmotionModel.load(tiny_bundle, precision="fp32", engine="openvino")
    photo = Path(__file__).parents[2] / "docs" / "photo.jpg"
    words = ["predict", str(photo), "--bundle", str(tiny_bundle), "--precision", "fp32", "--engine", "openvino"]
    assert main(words) == 1
    assert "pip install 'emocaliber[openvino]'" in capsys.readouterr().err


def test_it_is_named_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    assert "openvino" in available_engines()
    monkeypatch.setattr("emocaliber.runtime.engine.find_spec", lambda name: None)
    assert "openvino" not in available_engines()


def test_a_port_that_is_cast_at_once_keeps_its_name(tmp_path: Path) -> None:
    """In half precision a tower of Qwen's casts its pixels first; compiled, the port has two names."""
    pytest.importorskip("openvino")
    pixels, features = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, 4])
        for name in ("pixel_values", "features")
    )
    half = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float16), "half")
    nodes = [
        onnx.helper.make_node("Cast", ["pixel_values"], ["graph_input_cast_0"], to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("MatMul", ["graph_input_cast_0", "half"], ["graph_output_cast_0"]),
        onnx.helper.make_node("Cast", ["graph_output_cast_0"], ["features"], to=onnx.TensorProto.FLOAT),
    ]
    graph = onnx.helper.make_graph(nodes, "half", [pixels], [features], [half])
    path = tmp_path / "half.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    loaded = OpenVINOGraph(path, 1, in_bytes=False)
    names = [[port.name for port in ports] for ports in (loaded.get_inputs(), loaded.get_outputs())]
    assert names == [["pixel_values"], ["features"]]
    feed = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(loaded.run(["features"], {"pixel_values": feed})[0], feed)
