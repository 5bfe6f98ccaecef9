"""Engines of TensorRT on a simulated GPU (none was at hand), and the cache in which they stand."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from simulated_gpu import SimulatedCuda, SimulatedLibrary

from emocaliber.export.tensorrt import decoder_profiles, vision_profile
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import ArtifactError, BackendError, ConfigError, DependencyError
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.sealing import seal
from emocaliber.runtime.tensorrt import bindings
from emocaliber.runtime.tensorrt import memory as memory_module
from emocaliber.runtime.tensorrt.bindings import Target, named_target, target_of
from emocaliber.runtime.tensorrt.cache import (
    DECODER_NAME,
    PROFILES,
    VISION_NAME,
    EngineKey,
    EngineLimits,
    cache_folder,
    find_engines,
    read_record,
    write_record,
)
from emocaliber.runtime.tensorrt.engine import local_target
from emocaliber.runtime.tensorrt.memory import Device

LIMITS = EngineLimits(batch=2, text_tokens=256)
IMAGES = [np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8) for seed in range(5)]


class Gpu:
    """A simulated GPU, and a bundle with engines for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cuda = SimulatedCuda()
        with Bundle.open(folder) as bundle:
            manifest = bundle.manifest
            decoder = list(decoder_profiles(manifest, LIMITS).values())
            self.tensorrt = SimulatedLibrary([vision_profile(manifest, LIMITS)], decoder)
            self.key = EngineKey.of(bundle, "fp32", local_target(self.tensorrt, self.cuda))
            self.engines = cache_folder(bundle) / self.key.digest
        self.engines.mkdir(parents=True)
        shutil.copy(folder / "vision_encoder.onnx", self.engines / VISION_NAME)
        shutil.copy(folder / "decoder_model_merged.onnx", self.engines / DECODER_NAME)
        write_record(self.engines, self.key, LIMITS)

    def profiles_used(self) -> set[str]:
        return {PROFILES[place] for place in self.tensorrt.engines[0].profiles_used}


@pytest.fixture
def gpu(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    monkeypatch.setattr(bindings, "tensorrt_library", lambda: found.tensorrt)
    monkeypatch.setattr(memory_module, "cuda_runtime", lambda: found.cuda)
    return found


def load(folder: Path, engine: Any) -> EmotionModel:
    return EmotionModel.load(folder, precision="fp32", engine=engine, threads=1)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_predictions_on_a_real_gpu_are_those_of_the_cpu(tiny_bundle: Path, tmp_path: Path, mode: Any) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert main(["export", "tensorrt", str(folder), "--batch", "2"]) == 0
    with load(folder, "cpu") as model:
        expected = model.predict_batch(IMAGES, mode=mode)
    with load(folder, "tensorrt") as model:
        found = model.predict_batch(IMAGES, mode=mode)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.distribution == pytest.approx(theirs.distribution, abs=1e-3)


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_predictions_are_those_of_the_cpu(gpu: Gpu, mode: Any) -> None:
    """Five images where a pass takes two: passes are cut, and keys and values joined on the device."""
    with load(gpu.folder, "cpu") as model:
        expected = model.predict_batch(IMAGES, mode=mode)
    with load(gpu.folder, "tensorrt") as model:
        assert model.engine == "tensorrt"
        found = model.predict_batch(IMAGES, mode=mode)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.distribution == pytest.approx(theirs.distribution, abs=1e-5)
        assert ours.reasoning == theirs.reasoning
        assert ours.bundle["engine"] == "tensorrt"
    if mode == "reason":
        assert gpu.profiles_used() == {"prefill", "decode", "tree"}


def test_keys_and_values_stay_on_the_device(gpu: Gpu) -> None:
    with load(gpu.folder, "tensorrt") as model:
        shape = model.manifest.decoder
        model.predict(IMAGES[0], mode="reason")
        gpu.cuda.copied.update(up=0, down=0)
        before = len(gpu.tensorrt.engines[0].profiles_used)
        model.predict(IMAGES[0], mode="reason")
        passes = len(gpu.tensorrt.engines[0].profiles_used) - before
    assert passes > 10, "one pass for each token that was written"
    # Up go embeddings, masks and positions, down come logits and features: with the cache it would be far more.
    logits = 4 * shape.vocab_size
    assert gpu.cuda.copied["up"] < 200_000
    assert gpu.cuda.copied["down"] < (passes + 200) * logits


def test_memory_is_used_again_and_given_back(gpu: Gpu) -> None:
    model = load(gpu.folder, "tensorrt")
    model.predict(IMAGES[0], mode="reason")
    reserved = len(gpu.cuda.blocks)
    model.predict(IMAGES[1], mode="reason")
    assert len(gpu.cuda.blocks) == reserved
    model.close()
    del model
    gc.collect()
    gpu.tensorrt.engines.clear()
    gc.collect()
    assert (gpu.cuda.blocks, gpu.cuda.streams) == ({}, 0)


def test_inputs_beyond_what_the_engine_was_built_for(gpu: Gpu) -> None:
    labels = [f"a rather long label number {number}" for number in range(40)]
    with (
        load(gpu.folder, "tensorrt") as model,
        pytest.raises(BackendError, match=r"decoder\.engine was not built for \(.*emocaliber export tensorrt .*N"),
    ):
        model.predict(IMAGES[0], labels=labels)


def test_no_gpu(gpu: Gpu) -> None:
    gpu.cuda.status = 35
    with pytest.raises(BackendError, match="CUDA failed to find a GPU: 35"):
        load(gpu.folder, "tensorrt")


def test_engines_of_another_precision(gpu: Gpu) -> None:
    with pytest.raises(BackendError, match=r"\(int8\) fit this machine: there are some of precision fp32; build them"):
        EmotionModel.load(gpu.folder, precision="int8", engine="tensorrt")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "Other GPU"}, "device Simulated GPU instead of Other GPU"),
        ({"package_version": "10.10.0"}, "package version 10.9.0 instead of 10.10.0"),
        ({"compute_capability": "9.0"}, "compute capability 8.7 instead of 9.0"),
    ],
)
def test_engines_for_something_else_are_refused_with_the_reason(gpu: Gpu, changes: Any, reason: str) -> None:
    with (
        Bundle.open(gpu.folder) as bundle,
        pytest.raises(BackendError, match=rf"those that stand there have {reason}; build them with: emocaliber export"),
    ):
        find_engines(bundle, "fp32", replace(gpu.key.target, **changes))


def test_engines_of_other_graphs_are_refused(gpu: Gpu) -> None:
    fields = json.loads((gpu.folder / "bundle.json").read_text(encoding="utf-8"))
    fields.pop("files")
    graph = onnx.load(gpu.folder / "vision_encoder.onnx")
    graph.doc_string = "changed"
    onnx.save_model(graph, gpu.folder / "vision_encoder.onnx")
    seal(gpu.folder, fields)
    with (
        Bundle.open(gpu.folder) as bundle,
        pytest.raises(BackendError, match="have other graphs than the bundle holds now"),
    ):
        find_engines(bundle, "fp32", gpu.key.target)


@pytest.mark.parametrize("name", [VISION_NAME, DECODER_NAME])
def test_a_damaged_engine_is_refused(gpu: Gpu, name: str) -> None:
    with (gpu.engines / name).open("r+b") as stream:
        stream.write(b"?")
    with pytest.raises(ArtifactError, match=rf"{name} is missing or does not match its SHA-256.*; build them with"):
        load(gpu.folder, "tensorrt")


def test_a_changed_record_is_refused(gpu: Gpu) -> None:
    path = gpu.engines / "engines.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("Simulated GPU", "Another GPU"), encoding="utf-8")
    with pytest.raises(ArtifactError, match="it was changed or moved"):
        read_record(gpu.engines)
    path.write_text(text.replace('"schema_version": 1', '"schema_version": 9'), encoding="utf-8")
    with pytest.raises(ArtifactError, match="schema_version is 9, this version reads 1"):
        read_record(gpu.engines)


def test_an_engine_tensorrt_does_not_accept(gpu: Gpu) -> None:
    (gpu.engines / DECODER_NAME).write_bytes(b"something else")
    write_record(gpu.engines, gpu.key, LIMITS)
    with pytest.raises(BackendError, match=r"decoder\.engine cannot be loaded: the magic tag does not match"):
        load(gpu.folder, "tensorrt")


def test_without_engines_the_message_says_how_to_get_them(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"'tensorrt' did not come up: .*'emocaliber export tensorrt BUNDLE'"):
        EmotionModel.load(tiny_bundle, engine="tensorrt")


def test_the_bundle_stays_sealed(gpu: Gpu) -> None:
    assert gpu.engines.parent == gpu.folder.with_name("bundle.tensorrt")
    with Bundle.open(gpu.folder) as bundle:
        assert not [name for name in bundle.manifest.files if "engine" in name]


def test_half_precision_comes_back_as_float32() -> None:
    device = Device(SimulatedCuda())
    array = device.upload(np.array([[0.5, 2.0]], np.float32), np.float16)
    assert array.nbytes == 4
    read = np.asarray(array)
    assert read.dtype == np.float32
    assert read.tolist() == [[0.5, 2.0]]
    assert np.asarray(np.repeat(array, 3, axis=0)).tolist() == [[0.5, 2.0]] * 3  # type: ignore[call-overload]
    empty = device.empty((1, 2, 0, 4), np.float32)
    assert empty.address % 256 == 0
    assert np.asarray(empty).shape == (1, 2, 0, 4)


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"TensorRT is not installed; run: pip install 'emocaliber\[tensorrt\]'"):
        bindings.tensorrt_library()
    monkeypatch.setattr(memory_module.importlib, "import_module", _missing)
    with pytest.raises(DependencyError, match="cuda-python is not installed"):
        memory_module.cuda_runtime()


def _missing(name: str) -> Any:
    raise ModuleNotFoundError(name=name)


def test_an_old_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings.importlib.util, "find_spec", lambda name: name)
    old = SimulatedLibrary([], [])
    old.__version__ = "8.6.1"
    monkeypatch.setattr(bindings.importlib, "import_module", lambda name: old)
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.1 is installed, 10 or newer is needed"):
        bindings.tensorrt_library()


def test_targets() -> None:
    library = SimulatedLibrary([], [])
    target = local_target(library, SimulatedCuda())
    assert (target.device, target.compute_capability, target.package_version) == ("Simulated GPU", "8.7", "10.9.0")
    with pytest.raises(ConfigError, match="target is 'SM89'; TensorRT builds for the GPU of this machine alone"):
        named_target(library, "SM89")
    library.__name__ = "tensorrt_rtx"  # type: ignore[misc]
    library.ComputeCapability = SimpleNamespace(__members__={"NONE": 0, "SM89": 89})  # type: ignore[attr-defined]
    assert isinstance(target_of(library, "Some RTX", 8, 9), Target)
    assert target_of(library, "Some RTX", 8, 9).device == "any", "its engines fit every GPU of a capability"
    with pytest.raises(
        BackendError, match=r"this GPU is SM90; tensorrt_rtx 10\.9\.0 knows SM89; install TensorRT itself"
    ):
        target_of(library, "NVIDIA H200", 9, 0)


def test_limits() -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        EngineLimits(batch=0)
    with pytest.raises(ConfigError, match="text_tokens is 3"):
        EngineLimits(text_tokens=3)
