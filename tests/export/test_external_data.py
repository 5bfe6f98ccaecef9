"""Weights beside a graph: the same outputs, and a tied table stored once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from emocaliber.export import external_data
from emocaliber.export.external_data import data_path, graph_bytes, remove_graph, save_graph
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.sealing import seal

EMBED, DECODER = "embed_tokens.onnx", "decoder_model_merged.onnx"


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    embed, decoder = (onnxruntime.InferenceSession(str(folder / name)) for name in (EMBED, DECODER))
    feed = {
        "inputs_embeds": embed.run(None, {"input_ids": np.array([ids])})[0],
        "attention_mask": np.tril(np.ones((1, 1, len(ids), len(ids)), np.bool_)),
        "position_ids": np.arange(len(ids))[None],
        "logit_rows": np.arange(len(ids)),
    }
    past = {port.name: np.zeros((1, 1, 0, 16), np.float32) for port in decoder.get_inputs() if "past" in port.name}
    found: np.ndarray = decoder.run(["logits"], {**feed, **past})[0]
    return found


def test_a_tied_table_is_stored_once(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = 416 * 32 * 4
    monkeypatch.setattr(external_data, "LARGE_BYTES", table)
    save_graph(onnx.load(written / EMBED), tmp_path / EMBED)
    save_graph(onnx.load(written / DECODER), tmp_path / DECODER, shared=tmp_path / EMBED)
    assert data_path(tmp_path / EMBED).stat().st_size == table
    assert graph_bytes(tmp_path / DECODER) < (written / DECODER).stat().st_size - table + 8000
    ids = [7, 8, 9, 30]
    assert np.array_equal(logits(tmp_path, ids), logits(written, ids))


def test_large_weights_stand_beside_the_graph(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "LARGE_BYTES", 50_000)
    for name in (EMBED, DECODER):
        save_graph(onnx.load(written / name), tmp_path / name)
        assert graph_bytes(tmp_path / name) >= (written / name).stat().st_size - 1000
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}{end}" for name in (EMBED, DECODER) for end in ("", "_data")
    }
    assert all(path.stat().st_mode & 0o044 for path in tmp_path.iterdir()), "others may read them"
    ids = [7, 8, 9, 30]
    assert np.array_equal(logits(tmp_path, ids), logits(written, ids))
    remove_graph(tmp_path / DECODER)
    assert {path.name for path in tmp_path.iterdir()} == {EMBED, f"{EMBED}_data"}


def test_weights_beside_the_graphs_of_a_precision_are_compared_with_their_hashes(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "LARGE_BYTES", 10_000)
    folder = Path(shutil.copytree(written, tmp_path / "bundle"))
    for name in ("decoder_model_merged.onnx", "decoder_model_merged_int8.onnx"):
        save_graph(onnx.load(written / name), folder / name)
    with Bundle.open(written) as bundle:
        fields = to_mapping(bundle.manifest)
    del fields["files"]
    seal(folder, fields)
    data = data_path(folder / "decoder_model_merged_int8.onnx")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{data.name} does not match its SHA-256"):
        EmotionModel.load(folder, precision="int8", engine="cpu", threads=1)
    EmotionModel.load(folder, precision="fp32", engine="cpu", threads=1).close()
    with pytest.raises(ArtifactError, match=f"{data.name} does not match its SHA-256"):
        Bundle.open(folder)


LOAD = """
import sys
from pathlib import Path
from emocaliber.runtime.engine import embedding_session
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before = peak()
session = embedding_session(Path(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_loading_holds_large_weights_once(tmp_path: Path) -> None:
    width, layers = 2048, 12
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "input_ids"
    for layer in range(layers):
        weight = rng.integers(0, 256, (width, width), dtype=np.uint8)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(onnx.helper.make_node("MatMulInteger", [value, f"w{layer}"], [f"sums{layer}"]))
        value = "inputs_embeds" if layer == layers - 1 else f"bytes{layer}"
        nodes.append(onnx.helper.make_node("Cast", [f"sums{layer}"], [value], to=onnx.TensorProto.UINT8))
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [None, width])
        for name in ("input_ids", "inputs_embeds")
    ]
    graph = onnx.helper.make_graph(nodes, "products", ports[:1], ports[1:], weights)
    opsets = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "products.onnx"
    save_graph(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    # Packed once; out of the graph's own file it was 2.2 times the weights.
    assert float(done.stdout) < 1.35 * layers * width**2 / 2**20


def test_small_weights_stay_in_the_graph(written: Path, tmp_path: Path) -> None:
    save_graph(onnx.load(written / EMBED), tmp_path / EMBED)
    assert [path.name for path in tmp_path.iterdir()] == [EMBED]
