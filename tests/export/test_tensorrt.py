"""TensorRT-RTX reads the graphs of every family and builds engines from them, which needs no GPU; nothing is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnxruntime.transformers.float16 import convert_float_to_float16

from emocaliber.export.static_nodes import quantize_statically, values_at_weights
from emocaliber.export.tensorrt import (
    Network,
    UnsupportedGraphError,
    _timing_cache,
    build_engines,
    decoder_profiles,
    embed_profile,
    vision_profile,
)
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.manifest import DecoderShape
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.tensorrt.bindings import named_target
from emocaliber.runtime.tensorrt.cache import EngineLimits, cache_folder, read_record

tensorrt = pytest.importorskip("tensorrt_rtx", reason="no wheel of TensorRT-RTX for this platform")

TARGET = named_target(tensorrt, "SM89")
LIMITS = EngineLimits(batch=2, text_tokens=64)
GRAPHS = Path(__file__).parents[1] / "data" / "tiny_graphs"


def qwen(*, window: int | None = None, table: int | None = None, deepstack: int = 0) -> Any:
    """Returns what a manifest says of the tiny graphs of a Qwen-VL family."""
    return SimpleNamespace(
        preprocessing=PatchPreprocessing(
            kind="qwen_vl", patch_size=16, temporal_patch_size=2, merge_size=2, min_pixels=1024, max_pixels=16_384,
            mean=(0.5,) * 3, std=(0.5,) * 3, window=window, position_table=table,
        ),
        image_block=SimpleNamespace(count=None),
        decoder=DecoderShape(
            num_layers=2, num_kv_heads=1, head_dim=16, hidden_size=32, vocab_size=500, max_positions=512,
            position_axes=3, deepstack_layers=deepstack,
        ),
        max_new_tokens=48,
    )  # fmt: skip


MANIFESTS = {"qwen2_5_vl": qwen(window=2), "qwen3_vl": qwen(table=8, deepstack=2)}


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Iterator[Bundle]:
    with Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle")) as opened:
        yield opened


def built(graph: Path, *profiles: Any) -> bytes:
    return Network(tensorrt, graph).build(profiles, target=TARGET)


@pytest.mark.parametrize("family", MANIFESTS)
def test_every_graph_of_a_family_builds(family: str) -> None:
    folder, manifest = GRAPHS / family, MANIFESTS[family]
    decoder = decoder_profiles(manifest, LIMITS)
    assert list(decoder) == ["prefill", "decode", "tree"]
    assert built(folder / "vision_encoder.onnx", vision_profile(manifest, LIMITS))
    assert built(folder / "embed_tokens.onnx", embed_profile(LIMITS))
    assert built(folder / "decoder_model_merged.onnx", *decoder.values())


def test_the_tower_of_convolutions_and_the_embedding_table_build(bundle: Bundle) -> None:
    assert built(GRAPHS / "convolutional" / "vision_encoder.onnx", vision_profile(bundle.manifest, LIMITS))
    assert built(bundle.path("embed_tokens.onnx"), embed_profile(LIMITS))


def test_the_command_builds_once_and_again_what_is_damaged(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", "tensorrt", str(bundle.folder), "--target", "SM89", "--batch", "2", "--text-tokens", "64"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fp32: built in ")
    assert "int8: not built: tensorrt_rtx" in lines[1]
    assert "MatMulNBits" in lines[1]
    (folder,) = (path for path in cache_folder(bundle).iterdir() if path.is_dir())
    record = read_record(folder)
    assert (record.limits, record.key.precision, record.key.target.compute_capability) == (LIMITS, "fp32", "8.9")

    builds: list[str] = []
    monkeypatch.setattr(Network, "build", lambda self, *_, **__: builds.append(self._name) or b"engine")
    assert main(command) == 0
    assert (builds, capsys.readouterr().out.splitlines()[0][:16]) == ([], "fp32: up to date")
    (folder / "decoder.engine").write_bytes(b"half")
    assert main(command) == 0
    assert len(builds) == 2
    assert main([*command, "--rebuild"]) == 0
    assert main([*command[:-1], "80"]) == 0, "other limits"
    assert len(builds) == 6
    assert read_record(folder).limits.text_tokens == 80
    Bundle.open(bundle.folder).close()


def test_a_precision_tensorrt_cannot_read(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "tensorrt", str(bundle.folder), "--target", "SM89", "--precision"]
    assert main([*command, "int8"]) == 1
    assert "cannot read vision_encoder_int8.onnx: MatMulNBits: " in capsys.readouterr().err
    assert main([*command, "fp17"]) == 1
    assert "fp17" in capsys.readouterr().err
    assert not cache_folder(bundle).exists()


def test_a_failed_build_leaves_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Network, *_: Any, **__: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Network, "build", full)
    with pytest.raises(OSError, match="No space left"):
        build_engines(bundle, "fp32", library=tensorrt, target=TARGET)
    assert list(cache_folder(bundle).iterdir()) == []


def test_what_cannot_be_built(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(UnsupportedGraphError, match=r"cannot read no\.onnx"):
        Network(tensorrt, tmp_path / "no.onnx")
    with pytest.raises(ExportError, match=r"tensorrt_rtx .* from embed_tokens\.onnx: .*"):
        built(bundle.path("embed_tokens.onnx"))
    for target, message in (("SM90", "knows SM75, SM80"), ("GPU", "target is 'GPU'")):
        assert main(["export", "tensorrt", str(bundle.folder), "--target", target]) == 1
        assert message in capsys.readouterr().err
    archive = tmp_path / "bundle.tar"
    archive.write_bytes(b"")
    assert main(["export", "tensorrt", str(archive)]) == 1
    assert "unpack it" in capsys.readouterr().err


def test_half_precision_builds(bundle: Bundle, tmp_path: Path) -> None:
    half = convert_float_to_float16(onnx.load(bundle.path("vision_encoder.onnx")), keep_io_types=True)
    onnx.save_model(half, tmp_path / "half.onnx")
    assert built(tmp_path / "half.onnx", vision_profile(bundle.manifest, LIMITS))


@pytest.mark.parametrize("family", ["idefics3", "convolutional", *MANIFESTS])
def test_eight_bits_with_static_ranges_build(bundle: Bundle, tmp_path: Path, family: str) -> None:
    """Every graph, its weights and what meets them in bytes; any ranges serve to build, and one profile."""
    folder, manifest = GRAPHS / family, MANIFESTS.get(family, bundle.manifest)
    profiles = {
        "vision_encoder.onnx": vision_profile(manifest, LIMITS),
        "decoder_model_merged.onnx": decoder_profiles(manifest, LIMITS)["prefill"],
    }
    for name, profile in profiles.items():
        if family == "convolutional" and name != "vision_encoder.onnx":
            continue  # it has the decoder of idefics3
        model = onnx.load(bundle.path(name) if family == "idefics3" else folder / name)
        ranges = dict.fromkeys(values_at_weights(model, name), 4.0)
        assert quantize_statically(model, name, ranges) >= len(ranges) > 0
        onnx.save_model(model, tmp_path / name)
        assert built(tmp_path / name, profile)


class Config:
    """What a builder's configuration does with timing caches; it accepts those of ``known`` content."""

    known = (b"", b"measured")

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(content=content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache.content in self.known


@pytest.mark.parametrize(("stored", "taken"), [(None, b""), (b"measured", b"measured"), (b"of another version", b"")])
def test_what_was_measured_before_is_used_where_it_is_accepted(
    tmp_path: Path, stored: bytes | None, taken: bytes
) -> None:
    path = tmp_path / "tensorrt-10.9-8.7.timings"
    if stored is not None:
        path.write_bytes(stored)
    assert _timing_cache(Config(), path).content == taken


def test_the_shapes_of_the_profiles() -> None:
    """By hand: 16 visual tokens of 4 patches, but one row of the longest image has 56; 64 of text; 48 written."""
    manifest = MANIFESTS["qwen3_vl"]
    vision = vision_profile(manifest, LIMITS)
    assert vision["pixel_values"] == ((4, 1536), (112, 1536), (224, 1536))
    assert vision["interpolation_weights"][2] == (224, 4)
    prefill, decode, tree = decoder_profiles(manifest, LIMITS).values()
    assert prefill["inputs_embeds"] == ((1, 1, 32), (1, 56 + 8, 32), (2, 56 + 64, 32))
    assert [shape[2] for shape in prefill["past_key_values.1.key"]] == [0, 8, 64]
    assert decode["inputs_embeds"] == ((1, 1, 32), (1, 1, 32), (2, 1, 32))
    assert decode["attention_mask"][2] == (2, 1, 1, 56 + 2 * 64 + 48 + 1)
    assert tree["position_ids"][2] == (3, 2, 64)
    assert tree["deepstack_embeds"][1] == (2, 1, 16, 32)
    assert tree["logit_rows"] == ((1,), (8,), (64,))


def test_engines_are_built_without_torch(tiny_bundle: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "from emocaliber.runtime.cli import main\n"
        "sys.exit(main(['export', 'tensorrt', sys.argv[1], '--target', 'SM1']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_bundle)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "target is 'SM1'" in done.stderr


def test_the_record_is_plain_json(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "build", lambda self, *_, **__: b"engine")
    made = build_engines(bundle, "fp32", library=tensorrt, target=TARGET, limits=LIMITS)
    record = json.loads((made.folder / "engines.json").read_text(encoding="utf-8"))
    assert record["key"]["target"]["device"] == "any"
    assert record["limits"] == {"batch": 2, "text_tokens": 64}
    assert sorted(record["files"]) == ["decoder.engine", "vision_encoder.engine"]
