"""The ONNX Runtime engine: it is what was asked for, and foreign errors come out as ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emocaliber.runtime import engine as engine_module
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.engine import OnnxEngine
from emocaliber.runtime.errors import ArtifactError, BackendError, InputError
from emocaliber.runtime.model import EmotionModel

CPU = "CPUExecutionProvider"


def load(folder: Path, **changes: Any) -> OnnxEngine:
    arguments: dict[str, Any] = {
        "vision_encoder": folder / "vision_encoder.onnx",
        "embed_tokens": folder / "embed_tokens.onnx",
        "decoder": folder / "decoder_model_merged.onnx",
        "shape": Bundle.open(folder).manifest.decoder,
        "engine": "cpu",
        "threads": 1,
    }
    return OnnxEngine(**{**arguments, **changes})


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that makes ONNX Runtime claim to offer these providers."""

    def claim(*providers: str) -> None:
        monkeypatch.setattr(engine_module.onnxruntime, "get_available_providers", lambda: [*providers])

    return claim


def test_shapes(tiny_bundle: Path) -> None:
    engine = load(tiny_bundle)
    assert engine.name == "onnxruntime-cpu"
    assert engine.encode_images(np.zeros((2, 3, 32, 32), dtype=np.float32)).shape == (2, 4, 32)
    embeds = engine.embed(np.array([[1, 2, 3]]))
    assert embeds.shape == (1, 3, 32)
    past = (np.zeros((1, 1, 0, 16), dtype=np.float32),) * 4
    mask = np.tril(np.ones((1, 1, 3, 3), dtype=np.bool_))
    logits, present = engine.decode(embeds, mask, np.array([[0, 1, 2]]), np.array([2, 0]), past)
    assert logits.shape == (1, 2, 416)
    assert [part.shape for part in present] == [(1, 1, 3, 16)] * 4


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_named_engine_that_is_not_built_in_is_an_error(tiny_bundle: Path, offers: Any, name: str) -> None:
    offers(CPU)
    with pytest.raises(BackendError, match=f"engine '{name}' did not come up: onnxruntime.* offers cpu; to get it: "):
        load(tiny_bundle, engine=name)


@pytest.mark.parametrize(
    ("name", "provider"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_a_named_engine_that_silently_falls_back_is_an_error(
    tiny_bundle: Path, offers: Any, monkeypatch: pytest.MonkeyPatch, name: str, provider: str
) -> None:
    offers(provider, CPU)
    real = engine_module._session
    monkeypatch.setattr(engine_module, "_session", lambda path, engine, threads, **_: real(path, "cpu", threads))
    with pytest.raises(BackendError, match=f"engine '{name}' did not come up"):
        load(tiny_bundle, engine=name)
    assert load(tiny_bundle, engine="auto").name == "onnxruntime-cpu"


def test_the_graph_that_proves_an_engine_is_not_loaded_again(
    tiny_bundle: Path, offers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    offers("CUDAExecutionProvider", CPU)
    real, loads = engine_module._session, []

    class OnCuda:
        def __init__(self, session: Any) -> None:
            self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", CPU]

    def session(path: Path, engine: str, threads: int | None, *, ready: bool = False) -> Any:
        loads.append((path.name, engine, threads))
        return OnCuda(real(path, "cpu", threads))

    monkeypatch.setattr(engine_module, "_session", session)
    assert load(tiny_bundle, engine="auto").name == "onnxruntime-cuda"
    on_cuda = [("decoder_model_merged.onnx", "cuda", 1), ("vision_encoder.onnx", "cuda", 1)]
    assert sorted(loads) == sorted([*on_cuda, ("embed_tokens.onnx", "cpu", 1)])


def test_auto_takes_the_cpu_without_cuda(tiny_bundle: Path, offers: Any) -> None:
    offers(CPU)
    assert load(tiny_bundle, engine="auto").name == "onnxruntime-cpu"


def test_the_libraries_of_cuda_are_loaded_without_a_word(
    tiny_bundle: Path, offers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offers("CUDAExecutionProvider", CPU)
    calls: list[Any] = []

    def preload(**options: Any) -> None:
        calls.append(options)
        sys.stdout.write("Failed to load libcublas")

    monkeypatch.setattr(engine_module.onnxruntime, "preload_dlls", preload)
    load(tiny_bundle, engine="cpu")
    assert not calls
    with pytest.raises(BackendError, match="did not come up"):
        load(tiny_bundle, engine="cuda")
    assert len(calls) == 1
    assert capsys.readouterr().out == ""


def test_float32_stays_float32_on_cuda(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        engine_module.onnxruntime, "InferenceSession", lambda path, **options: asked.append(options["providers"])
    )
    engine_module._session(tiny_bundle / "decoder_model_merged.onnx", "cuda", None)
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"}), CPU]]


@pytest.mark.parametrize(
    ("graph", "flags", "converted"),
    [
        ("signed", {"avx2"}, True),
        ("signed", {"avx2", "avx512_vnni"}, False),
        ("signed", set(), True),
        ("unsigned", {"avx2"}, False),
    ],
)
def test_weights_become_unsigned_where_products_would_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str, flags: set[str], converted: bool
) -> None:
    # A ModelProto of nothing but an empty graph and its metadata: fields 7 and 14.
    entry = b"".join(
        bytes([tag, len(text)]) + text for tag, text in ((10, b"emocaliber.weights"), (18, graph.encode()))
    )
    path = tmp_path / "graph.onnx"
    path.write_bytes(bytes([58, 0, 114, len(entry)]) + entry)
    asked: list[Any] = []
    monkeypatch.setattr(engine_module, "processor_flags", lambda: flags)
    monkeypatch.setattr(
        engine_module.onnxruntime, "InferenceSession", lambda path, **options: asked.append(options["sess_options"])
    )
    engine_module._session(path, "cpu", None)
    if converted:
        assert asked[0].get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            asked[0].get_session_config_entry("session.x64quantprecision")


@pytest.mark.gpu
def test_cuda_comes_up(tiny_bundle: Path) -> None:
    assert load(tiny_bundle, engine="cuda").name == "onnxruntime-cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_predictions_on_cuda_are_those_of_the_cpu(tiny_bundle: Path, mode: Any) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8) for seed in range(3)]
    with EmotionModel.load(tiny_bundle, precision="fp32", engine="cpu") as model:
        expected = model.predict_batch(images, mode=mode)
    with EmotionModel.load(tiny_bundle, precision="fp32", engine="cuda") as model:
        found = model.predict_batch(images, mode=mode)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.distribution == pytest.approx(theirs.distribution, abs=1e-4)
        assert ours.reasoning == theirs.reasoning


def test_wrong_arguments(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="engine is 'gpu', expected one of auto, cpu"):
        load(tiny_bundle, engine="gpu")
    with pytest.raises(InputError, match="threads is 0"):
        load(tiny_bundle, threads=0)


def test_a_file_that_is_no_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(ArtifactError, match=r"bad\.onnx is no ONNX file"):
        load(tiny_bundle, decoder=tmp_path / "bad.onnx")


def test_a_graph_with_other_inputs(tiny_bundle: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"embed_tokens\.onnx: inputs missing .*attention_mask.*unexpected .*input_ids"
    ):
        load(tiny_bundle, decoder=tiny_bundle / "embed_tokens.onnx")


def test_a_failing_run_is_translated(tiny_bundle: Path) -> None:
    engine = load(tiny_bundle)
    with pytest.raises(BackendError, match=r"failed while running \(pixel_values \(1, 3, 5, 5\)\)"):
        engine.encode_images(np.zeros((1, 3, 5, 5), dtype=np.float32))
    with pytest.raises(BackendError, match="failed while running"):
        engine.embed(np.array([[10**9]]))
