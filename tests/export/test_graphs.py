from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_model import build_model
from transformers import LlamaConfig, LlamaForCausalLM

from emocaliber.evaluate.prompting import decoder_shape
from emocaliber.export.bundle import BundleSpec, write_bundle
from emocaliber.export.graphs import check_supported, export_graphs
from emocaliber.runtime.engine import _session
from emocaliber.runtime.errors import ConfigError, ExportError
from emocaliber.runtime.onnx_runtime import onnxruntime


@pytest.fixture(scope="module")
def sessions(written: Path) -> dict[str, Any]:
    names = ("vision_encoder", "embed_tokens", "decoder_model_merged")
    return {
        name: onnxruntime.InferenceSession(str(written / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in names
    }


def decode(sessions: dict[str, Any], embeds: Any, mask: Any, positions: Any, rows: Any, past: list[Any]) -> list[Any]:
    names = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    feed = {
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": positions,
        "logit_rows": np.array(rows),
        **dict(zip(names, past, strict=True)),
    }
    outputs: list[Any] = sessions["decoder_model_merged"].run(None, feed)
    return outputs


def no_past(batch: int) -> list[Any]:
    return [np.zeros((batch, 1, 0, 16), np.float32) for _ in range(4)]


def causal(length: int, past: int = 0) -> Any:
    return np.tril(np.ones((length, past + length), np.bool_), k=past)[None, None]


def test_a_convolutional_tower_is_exported_with_its_normalisation_folded(processor: Any, tmp_path: Path) -> None:
    model = build_model(processor, seed=2, convolutional=True)
    spec = BundleSpec(name="convolutional", version="1.0", license="MIT", taxonomies=("emotion6-7",))
    write_bundle(tmp_path / "bundle", model, processor, spec)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        features = model.model.get_image_features(pixels[:, None]).pooler_output
    expected = torch.stack(list(features)).numpy()
    for suffix, tolerance in (("", 1e-4), ("_int8", 0.05)):
        path = tmp_path / "bundle" / f"vision_encoder{suffix}.onnx"
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert "BatchNormalization" not in operators
        assert ("DequantizeLinear" in operators) == bool(suffix)
        session = _session(path, "cpu", 1)
        (found,) = session.run(None, {"pixel_values": pixels.numpy()})
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max(), path.name
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    # A stem, three blocks of two, two shortcuts between widths.
    assert manifest["provenance"]["quantization"]["graphs"]["vision_encoder_int8"]["quantized"] == 9 + 1


def test_a_folder_with_a_convolutional_tower_is_read_by_a_fresh_process_without_its_code(
    processor: Any, tmp_path: Path
) -> None:
    build_model(processor, seed=2, convolutional=True).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    # What stands there for other programs must not run here.
    (tmp_path / "model" / "convolutional.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    words = "import sys, pathlib; from emocaliber.export.sources import load_source; "
    words += "print(type(load_source(pathlib.Path(sys.argv[1]))[0]).__name__)"
    line = [sys.executable, "-c", words, str(tmp_path / "model")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "ConvolutionalIdefics3ForConditionalGeneration"


def test_inputs_and_outputs_have_the_agreed_names(sessions: dict[str, Any]) -> None:
    decoder = sessions["decoder_model_merged"]
    cache = [f"{{}}.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert [port.name for port in decoder.get_inputs()] == [
        "inputs_embeds",
        "attention_mask",
        "position_ids",
        "logit_rows",
        *(name.format("past_key_values") for name in cache),
    ]
    assert [port.name for port in decoder.get_outputs()] == ["logits", *(name.format("present") for name in cache)]
    assert decoder.get_inputs()[1].type == "tensor(bool)"
    assert [port.name for port in sessions["vision_encoder"].get_inputs()] == ["pixel_values"]
    assert [port.name for port in sessions["embed_tokens"].get_outputs()] == ["inputs_embeds"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_vision_encoder_equals_the_model(sessions: dict[str, Any], model: Any, count: int) -> None:
    pixels = np.random.default_rng(count).normal(size=(count, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model.get_image_features(torch.from_numpy(pixels)[:, None]).pooler_output
    found = sessions["vision_encoder"].run(None, {"pixel_values": pixels})[0]
    assert found.shape == (count, 4, 32)
    np.testing.assert_allclose(found, torch.stack(list(expected)).numpy(), atol=1e-5)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 9), (2, 5), (3, 7)])
def test_decoder_without_past_equals_the_model(sessions: dict[str, Any], model: Any, batch: int, length: int) -> None:
    ids = np.random.default_rng(length).integers(6, 400, (batch, length))
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    embeds = sessions["embed_tokens"].run(None, {"input_ids": ids})[0]
    mask = np.repeat(causal(length), batch, axis=0)
    positions = np.tile(np.arange(length), (batch, 1))
    rows = [length - 1, 0]
    logits, *present = decode(sessions, embeds, mask, positions, rows, no_past(batch))
    np.testing.assert_allclose(logits, expected[:, rows], atol=1e-4)
    assert [state.shape for state in present] == [(batch, 1, length, 16)] * 4
    assert np.ptp(expected) > 1.0, "constant outputs would prove nothing"


def test_reading_in_pieces_equals_reading_at_once(sessions: dict[str, Any]) -> None:
    ids = np.random.default_rng(1).integers(6, 400, (2, 8))
    embeds = sessions["embed_tokens"].run(None, {"input_ids": ids})[0]
    positions = np.tile(np.arange(8), (2, 1))
    whole = decode(sessions, embeds, np.repeat(causal(8), 2, 0), positions, range(8), no_past(2))
    past, pieces = no_past(2), []
    for start, stop in ((0, 3), (3, 4), (4, 8)):
        mask = np.repeat(causal(stop - start, start), 2, 0)
        rows = range(stop - start)
        logits, *past = decode(sessions, embeds[:, start:stop], mask, positions[:, start:stop], rows, past)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole[0], atol=1e-4)
    np.testing.assert_allclose(past[3], whole[4], atol=1e-5)


def test_branches_do_not_see_each_other(sessions: dict[str, Any], model: Any) -> None:
    """Two continuations of one prompt in one pass give what the model gives for each of them alone."""
    prompt, branches = [7, 8, 9], [[30, 31], [40, 41]]
    ids = np.array([[*prompt, *branches[0], *branches[1]]])
    embeds = sessions["embed_tokens"].run(None, {"input_ids": ids})[0]
    mask = causal(7).copy()
    mask[..., 5:, 3:5] = False
    positions = np.array([[0, 1, 2, 3, 4, 3, 4]])
    logits = decode(sessions, embeds, mask, positions, [4, 6], no_past(1))[0]
    for row, branch in enumerate(branches):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([[*prompt, *branch]])).logits[0, -1].numpy()
        np.testing.assert_allclose(logits[0, row], alone, atol=1e-4)


def test_a_row_that_attends_to_nothing_stays_finite(sessions: dict[str, Any]) -> None:
    embeds = sessions["embed_tokens"].run(None, {"input_ids": np.array([[0, 7, 8]])})[0]
    mask = causal(3).copy()
    mask[..., 0] = False
    outputs = decode(sessions, embeds, mask, np.array([[0, 0, 1]]), [0, 2], no_past(1))
    assert all(np.isfinite(output).all() for output in outputs)


def test_files_hold_no_source_paths(written: Path) -> None:
    for path in written.glob("*.onnx"):
        content = path.read_bytes()
        assert b".py" not in content, path.name
        assert b"stack_trace" not in content, path.name


def test_decoder_shape(model: Any) -> None:
    assert decoder_shape(model) == {
        "num_layers": 2,
        "num_kv_heads": 1,
        "head_dim": 16,
        "hidden_size": 32,
        "vocab_size": 416,
        "max_positions": 1024,
    }


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    with pytest.raises(ExportError, match=r"cannot export a 'llama' model; supported: idefics3, smolvlm"):
        export_graphs(LlamaForCausalLM(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sliding_windows_are_refused() -> None:
    text = SimpleNamespace(layer_types=["full_attention", "sliding_attention"])
    model = SimpleNamespace(config=SimpleNamespace(model_type="idefics3", text_config=text))
    with pytest.raises(ExportError, match="uses sliding_attention; only full attention"):
        check_supported(model)


def test_opset_is_checked(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opset is 23, expected 18 to 21"):
        export_graphs(model, tmp_path, opset=23)


def test_exporting_changes_nothing_and_prints_nothing(export: Any) -> None:
    assert export.training
    assert export.attention == "sdpa"
    assert export.printed == ""
