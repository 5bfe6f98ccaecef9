from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from emocaliber.export import verify
from emocaliber.export.graph_parity import label_subsets
from emocaliber.export.probes import synthetic_images
from emocaliber.export.reference import PaddedPrompts, decoded_logits, label_scores
from emocaliber.export.verify import Tolerances, verify_graphs
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.engine import available_engines
from emocaliber.runtime.engines import load_engine
from emocaliber.runtime.errors import BackendError, ConfigError, ExportError
from emocaliber.runtime.parity import read_parity

COMMITTED = Path(__file__).parents[1] / "data" / "tiny_bundle"


def test_report_of_a_good_bundle(written: Path) -> None:
    report = json.loads((written / "parity.json").read_text())
    exact, quantized = report["precisions"]["fp32"], report["precisions"]["int8"]
    assert exact["max_logit_difference"] < 1e-4
    assert exact["max_tree_difference"] < 1e-4
    assert exact["max_score_drift"] < 1e-4
    assert exact["greedy_mismatches"] == 0
    assert exact["greedy_tokens"] == (1 + 2 + 3) * (1 + 32)
    assert exact["largest_logit"] > 1
    assert quantized["max_tree_difference"] < 1e-4
    assert exact["max_score_drift"] < quantized["mean_score_drift"] < 0.5
    assert report["max_pixel_difference"] <= 1e-6
    assert max(exact["max_neighbour_effect"], quantized["max_neighbour_effect"]) < 1e-4
    assert 0 <= exact["kl_drift"] < 1e-9 < quantized["kl_drift"] < 1e-3
    assert (report["decode_steps"], report["batch_sizes"], report["forced"]) == (32, [1, 2, 3], [])
    assert report["image_sizes"] == [[61, 97], [130, 75], [33, 31]]
    assert set(report["made_with"]) == {"emocaliber", "torch", "transformers", "onnxruntime"}


def test_engines_that_do_not_come_up_are_named(written: Path) -> None:
    report = read_parity(written / "parity.json")
    came_up = {"cuda", "tensorrt"} & set(available_engines())
    assert set(report.absent) == {"cuda", "tensorrt"} - came_up
    assert all("did not come up" in reason for reason in report.absent.values())


def test_an_engine_that_is_asked_for_must_come_up(written: Path, model: Any, processor: Any) -> None:
    if "tensorrt" in available_engines():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(BackendError, match="engine 'tensorrt' did not come up"):
        verify_graphs(model, written, processor=processor, steps=1, engines=["tensorrt"])


def test_another_engine_is_compared_in_every_precision(
    written: Path, model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU under another name, and a little off: on a device float32 may round otherwise, and drift."""

    def load(bundle: Bundle, precision: str, name: Any) -> Any:
        engine: Any = load_engine(bundle, precision, "cpu")
        if name != "cpu":
            exact = engine.decode
            engine.name = f"onnxruntime-{name}"
            engine.decode = lambda *given: ((found := exact(*given))[0] * 1.002, found[1])
        return engine

    monkeypatch.setattr(verify, "load_engine", load)
    report = verify_graphs(model, written, processor=processor, steps=1, engines=["cuda"])
    assert set(report.engines["onnxruntime-cuda"]) == {"fp32", "int8"}
    on_device = report.engines["onnxruntime-cuda"]["fp32"]
    assert on_device.max_logit_difference == pytest.approx(0.002 * on_device.largest_logit, rel=0.01)
    assert report.precisions["fp32"].max_logit_difference < 1e-4


def test_the_committed_bundle_is_the_tiny_model(model: Any, processor: Any) -> None:
    """Made by tests/data/make_tiny_bundle.py; make it again where this fails."""
    report = verify_graphs(model, COMMITTED, processor=processor, steps=2)
    assert report.precisions["fp32"].max_logit_difference < 1e-4


def damaged(source: Path, target: Path, name: str, change: Any) -> Path:
    """Copies a bundle and changes one large weight of one graph, sizes kept."""
    shutil.copytree(source, target)
    graph = onnx.load(target / name)
    tensor = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight = numpy_helper.to_array(tensor).copy()
    change(weight)
    tensor.raw_data = weight.tobytes()
    onnx.save(graph, target / name)
    return target


def scramble(weight: Any) -> None:
    weight[:] = weight[::-1].copy()


def poison(weight: Any) -> None:
    weight[:] = np.nan


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder_model_merged.onnx", scramble, r"fp32: \d+ of 18 greedy tokens differ.*fp32 logit difference"),
        ("decoder_model_merged.onnx", poison, "fp32 logit difference is nan"),
        ("vision_encoder.onnx", scramble, "fp32 logit difference"),
        ("embed_tokens_int8.onnx", scramble, "int8 mean label score drift"),
    ],
)
def test_damaged_graphs_are_found(
    written: Path, model: Any, processor: Any, tmp_path: Path, name: str, change: Any, message: str
) -> None:
    bundle = damaged(written, tmp_path / "damaged", name, change)
    with pytest.raises(ExportError, match=message):
        verify_graphs(model, bundle, processor=processor, steps=2)


def test_labels_that_change_each_other_are_found(
    written: Path, model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when activations are quantised with one scale for all that is in a pass: more nodes, other numbers."""

    def load(bundle: Bundle, precision: str, name: Any) -> Any:
        engine: Any = load_engine(bundle, precision, name)
        exact = engine.decode

        def decode(embeds: Any, *given: Any) -> Any:
            logits, present = exact(embeds, *given)
            return logits + 1e-4 * embeds.shape[1] * np.arange(logits.shape[-1]) / 8, present

        engine.decode = decode
        return engine

    monkeypatch.setattr(verify, "load_engine", load)
    with pytest.raises(ExportError, match=r"int8 effect of other labels is \S+, at most 0.03"):
        verify_graphs(model, written, processor=processor, steps=1, force=True)


def test_subsets_of_labels() -> None:
    assert label_subsets(2) == []
    assert label_subsets(4) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    assert (0, 2, 4, 6) in label_subsets(7)


def test_drift_is_refused_unless_forced(written: Path, model: Any, processor: Any) -> None:
    strict = Tolerances(kl_drift=1e-8)
    with pytest.raises(ExportError, match=r"drifts too far: int8 KL drift is \S+ nat, at most 1e-08; leave .* --force"):
        verify_graphs(model, written, processor=processor, steps=1, tolerances=strict)
    report = verify_graphs(model, written, processor=processor, steps=1, tolerances=strict, force=True)
    assert len(report.forced) == 1
    assert report.forced[0].startswith("int8 KL drift is ")
    assert report.tolerances["kl_drift"] == 1e-8


def test_force_accepts_drift_and_nothing_else(written: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    bundle = damaged(written, tmp_path / "damaged", "decoder_model_merged.onnx", poison)
    with pytest.raises(ExportError, match="fp32 logit difference is nan"):
        verify_graphs(model, bundle, processor=processor, steps=1, force=True)


def test_another_model_is_found(written: Path, processor: Any) -> None:
    from tiny_model import build_model

    with pytest.raises(ExportError, match="fp32 label score difference"):
        verify_graphs(build_model(processor, seed=1), written, processor=processor, steps=1)


def test_other_preprocessing_is_found(written: Path, model: Any, processor: Any) -> None:
    images = processor.image_processor
    mean, images.image_mean = images.image_mean, [0.4, 0.5, 0.5]
    try:
        with pytest.raises(ExportError, match=r"pixel difference is 0\.2"):
            verify_graphs(model, written, processor=processor, steps=1)
    finally:
        images.image_mean = mean


def test_arguments_are_checked(written: Path, model: Any, processor: Any) -> None:
    with pytest.raises(ConfigError, match="at least three images, got 2"):
        verify_graphs(model, written, processor=processor, images=synthetic_images()[:2])
    with pytest.raises(ConfigError, match="at least one decode step, got 0"):
        verify_graphs(model, written, processor=processor, steps=0)
    with pytest.raises(ConfigError, match=r"tolerances must be positive, got \{'scores': 0.0\}"):
        Tolerances(scores=0.0)


def test_padding_does_not_change_the_reference(model: Any) -> None:
    """The reference itself: a prompt in a padded batch gives what `generate` gives for it alone."""
    rng = np.random.default_rng(2)
    prompts = [[1, 5, 5, 5, 5, *rng.integers(30, 200, size).tolist()] for size in (4, 9)]
    pixels = rng.normal(size=(2, 3, 32, 32)).astype(np.float32)
    batch = PaddedPrompts.of(prompts, pixels, pad=0)
    tokens = np.stack([step for _, step in decoded_logits(model, batch, 4)], axis=1)
    for row, prompt in enumerate(prompts):
        alone = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            pixel_values=torch.from_numpy(pixels[row])[None, None],
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
        )
        assert tokens[row].tolist() == alone[0, len(prompt) :].tolist()


def test_label_scores_are_log_probabilities(model: Any) -> None:
    """Answers of one token, all of the vocabulary but the image token: with it, their probabilities sum to one."""
    prompt = [1, 5, 5, 5, 5, 60]
    pixels = np.random.default_rng(4).normal(size=(1, 3, 32, 32)).astype(np.float32)
    scores = label_scores(model, prompt, [[token] for token in range(416) if token != 5], pixels)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt]), pixel_values=torch.from_numpy(pixels)[None]).logits[0, -1]
    assert np.exp(scores).sum() == pytest.approx(1.0 - float(logits.softmax(-1)[5]), abs=1e-6)


def test_a_longer_answer_adds_its_tokens(model: Any) -> None:
    prompt = [1, 5, 5, 5, 5, 60]
    pixels = np.random.default_rng(4).normal(size=(1, 3, 32, 32)).astype(np.float32)
    whole, first = label_scores(model, prompt, [[70, 80], [70]], pixels)
    (second,) = label_scores(model, [*prompt, 70], [[80]], pixels)
    assert whole == pytest.approx(first + second, abs=1e-5)
