"""Fused graphs compute what the plain ones do; what has another form is refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_families import tiny_family

from emocaliber.export.families import patch_preprocessing_of
from emocaliber.export.fusion import FUSED_OPSET, Fusions, fuse_decoder, fuse_vision
from emocaliber.export.graphs import _export_patch_vision, exportable
from emocaliber.export.quantize import quantize_graphs
from emocaliber.runtime.context import empty_context, read, read_tree
from emocaliber.runtime.engine import OnnxEngine
from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.manifest import DecoderShape
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.tree import build_tree

LAYERS, HEADS, WIDTH = 2, 1, 16
SHAPE = DecoderShape(
    num_layers=LAYERS, num_kv_heads=HEADS, head_dim=WIDTH, hidden_size=32, vocab_size=416, max_positions=1024
)


def session(model: Any) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def decoders(written: Path) -> tuple[Any, Any]:
    plain = onnx.load(written / "decoder_model_merged.onnx")
    fused, _ = fuse_decoder(plain)
    return session(plain), session(fused)


def test_what_is_fused_is_counted(written: Path) -> None:
    fused, counts = fuse_decoder(onnx.load(written / "decoder_model_merged.onnx"))
    # A layer: one attention, its query and its key turned, two normalisations; and one more before the vocabulary.
    assert counts == Fusions(attentions=2, rotary=4, normalizations=5, activations=0)
    kinds = Counter(node.op_type for node in fused.graph.node)
    assert (kinds["TreeAttention"], kinds["RotaryEmbedding"], kinds["SimplifiedLayerNormalization"]) == (2, 4, 5)
    assert not kinds.keys() & {"Softmax", "Expand", "Neg", "Pow"}
    assert {entry.domain: entry.version for entry in fused.opset_import}[""] == FUSED_OPSET
    vision, counts = fuse_vision(onnx.load(written / "vision_encoder.onnx"))
    assert counts == Fusions(attentions=2, rotary=0, normalizations=0, activations=2)
    kinds = Counter(node.op_type for node in vision.graph.node)
    assert (kinds["MultiHeadAttention"], kinds["FastGelu"], kinds["Softmax"]) == (2, 2, 0)


def test_a_fused_vision_encoder_computes_the_same(written: Path) -> None:
    """For each image, whatever others are in the batch."""
    plain = onnx.load(written / "vision_encoder.onnx")
    fused, _ = fuse_vision(plain)
    [pixels] = plain.graph.input
    size = pixels.type.tensor_type.shape.dim[-1].dim_value
    feed = {pixels.name: np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)}
    [expected], [found] = (session(model).run(None, feed) for model in (plain, fused))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    [alone] = session(fused).run(None, {name: images[1:2] for name, images in feed.items()})
    np.testing.assert_array_equal(alone[0], found[1])


@pytest.mark.parametrize(("family", "attentions"), [("qwen2_vl", 3), ("qwen2_5_vl", 1), ("qwen3_vl", 3)])
def test_towers_with_images_of_any_size(tmp_path: Path, family: str, attentions: int) -> None:
    """Every layer is one operator but those whose windows are a mask: two of Qwen2.5-VL's three."""
    model, _ = tiny_family(family)
    preprocessing = patch_preprocessing_of(model.config.vision_config)
    with exportable(model) as exported:
        _export_patch_vision(exported, tmp_path / "vision_encoder.onnx", 20)
    plain = onnx.load(tmp_path / "vision_encoder.onnx")
    fused, counts = fuse_vision(plain)
    assert counts.attentions == attentions
    width = plain.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    for rows, columns in ((1, 1), (5, 7)):
        count = rows * columns * preprocessing.merge_size**2
        pixels = np.random.default_rng(rows).normal(size=(count, width)).astype(np.float32)
        feed = {"pixel_values": pixels, **preprocessing.grid(rows, columns)}
        for one, other in zip(*(session(model).run(None, feed) for model in (plain, fused)), strict=True):
            np.testing.assert_allclose(other, one, atol=2e-5)


@pytest.mark.parametrize(("batch", "new", "past"), [(1, 7, 0), (1, 1, 12), (3, 5, 4), (2, 1, 9)])
def test_a_fused_decoder_computes_the_same(decoders: Any, batch: int, new: int, past: int) -> None:
    """With any mask and any positions: a batch of trees behind a cache, and an empty cache, included."""
    rng = np.random.default_rng(new)
    mask = np.tril(np.ones((new, past + new), np.bool_), k=past) & (rng.random((batch, 1, new, past + new)) < 0.7)
    mask[..., np.arange(new), past + np.arange(new)] = True
    feed = {
        "inputs_embeds": rng.normal(size=(batch, new, 32)).astype(np.float32),
        "attention_mask": mask,
        "position_ids": rng.integers(0, 40, (batch, new)),
        "logit_rows": np.array([new - 1, 0]),
    }
    for layer in range(LAYERS):
        for part in ("key", "value"):
            states = rng.normal(size=(batch, HEADS, past, WIDTH)).astype(np.float32)
            feed[f"past_key_values.{layer}.{part}"] = states
    plain, fused = (decoder.run(None, feed) for decoder in decoders)
    assert len(plain) == len(fused) == 1 + 2 * LAYERS
    for one, other in zip(plain, fused, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5)


def test_a_padding_row_that_sees_nothing_stays_finite(decoders: Any) -> None:
    feed = {
        "inputs_embeds": np.ones((1, 3, 32), np.float32),
        "attention_mask": np.array([[[[False] * 3, [False, True, False], [False, True, True]]]]),
        "position_ids": np.array([[0, 0, 1]]),
        "logit_rows": np.array([2]),
        **{
            f"past_key_values.{layer}.{part}": np.zeros((1, HEADS, 0, WIDTH), np.float32)
            for layer in range(LAYERS)
            for part in ("key", "value")
        },
    }
    plain, fused = (decoder.run(None, feed) for decoder in decoders)
    assert np.isfinite(fused[0]).all()
    np.testing.assert_allclose(fused[0], plain[0], atol=2e-5)


def changed(path: Path, kind: str, change: Any) -> Any:
    model = onnx.load(path)
    change(next(node for node in model.graph.node if node.op_type == kind))
    return model


def test_unknown_forms_are_refused(written: Path) -> None:
    path = written / "decoder_model_merged.onnx"

    with pytest.raises(ExportError, match="holds no attention; is it an exported graph"):
        fuse_decoder(onnx.load(written / "embed_tokens.onnx"))
    with pytest.raises(ExportError, match="RMS normalisations have a form that is not known"):
        fuse_decoder(changed(path, "Sqrt", lambda node: setattr(node, "op_type", "Abs")))
    with pytest.raises(ExportError, match="expected Neg; the attention would stay unfused"):
        fuse_decoder(changed(path, "Neg", lambda node: setattr(node, "op_type", "Abs")))
    with pytest.raises(ExportError, match="expected Mul; the attention would stay unfused"):
        fuse_vision(changed(written / "vision_encoder.onnx", "Mul", lambda node: setattr(node, "op_type", "Div")))


def engine(folder: Path, suffix: str) -> OnnxEngine:
    table = "_int8" if suffix == "_q4" else suffix
    return OnnxEngine(
        vision_encoder=folder / f"vision_encoder{suffix}.onnx",
        embed_tokens=folder / f"embed_tokens{table}.onnx",
        decoder=folder / f"decoder_model_merged{suffix}.onnx",
        shape=SHAPE,
        engine="cpu",
    )


@pytest.mark.parametrize(
    ("precision", "suffix", "most"), [("fp16", "_fp16", 1e-4), ("int8", "_int8", 0), ("int4", "_q4", 0)]
)
def test_a_score_does_not_depend_on_the_other_labels(
    written: Path, tmp_path: Path, precision: str, suffix: str, most: float
) -> None:
    """The score of a label from a pass over two labels, over forty, and beside one with an extreme embedding.

    Where rows are rounded to bytes it is the same to the bit: what is not would be rounded otherwise now and then.
    """
    for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        (tmp_path / f"{name}.onnx").write_bytes((written / f"{name}.onnx").read_bytes())
    quantize_graphs(tmp_path, [precision])
    runner = engine(tmp_path, suffix)
    rng = np.random.default_rng(1)
    labels = [[5, *rng.integers(30, 400, rng.integers(1, 4)), 7] for _ in range(40)]
    _, context = read(runner, empty_context(SHAPE), runner.embed(np.arange(40, 60)[None]), [19])

    def scores(chosen: list[list[int]], scale: float = 1.0) -> Any:
        tree = build_tree(chosen)
        embeds = runner.embed(np.array([[9, *tree.common, *tree.tokens]]))
        embeds[0, -1] *= scale
        return read_tree(runner, context, embeds, tree)[0][0]

    few, many, beside = scores(labels[:2]), scores(labels), scores(labels, scale=1e3)
    for others in (many, beside):
        assert np.abs(others[:2] - few).max() <= most
    assert np.ptp(many) > 0.3
