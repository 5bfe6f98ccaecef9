"""Weights beside a graph: the same outputs, and a tied table stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from emocaliber.export import external_data
from emocaliber.export.external_data import data_path, graph_bytes, remove_graph, save_graph
from emocaliber.runtime.onnx_runtime import onnxruntime

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


def test_large_weights_stand_beside_the_graph(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_small_weights_stay_in_the_graph(written: Path, tmp_path: Path) -> None:
    save_graph(onnx.load(written / EMBED), tmp_path / EMBED)
    assert [path.name for path in tmp_path.iterdir()] == [EMBED]
