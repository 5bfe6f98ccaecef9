"""Graphs and model against labels: the figures by hand, the reference from two sides, bad samples by message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_families import tiny_family

from emocaliber.export.families import patch_preprocessing_of
from emocaliber.export.graphs import exportable
from emocaliber.export.labelled_parity import LabelledComparison, labelled_sets
from emocaliber.export.reference import cached_label_scores, label_scores
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.engines import load_engine
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.samples import Sample

ANSWERS = [[70, 80, 90], [70, 81], [60], [71, 80, 90, 91]]


def test_one_pass_for_all_answers_equals_one_each(model: Any) -> None:
    prompt = [1, 5, 5, 5, 5, 60]
    pixels = np.random.default_rng(4).normal(size=(1, 3, 32, 32)).astype(np.float32)
    for answers in (ANSWERS, ANSWERS[2:3]):
        alone = label_scores(model, prompt, answers, pixels)
        assert cached_label_scores(model, prompt, answers, pixels) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_same_behind_an_image_of_its_own_size(name: str) -> None:
    model, processor = tiny_family(name)
    preprocessing = patch_preprocessing_of(model.config.vision_config, processor.image_processor)
    pixels = preprocessing.apply(np.random.default_rng(1).integers(0, 256, (120, 70, 3), dtype=np.uint8))
    prompt = [30, *[processor.image_token_id] * (pixels.shape[0] * pixels.shape[1]), 31]
    with exportable(model) as plain:
        alone = label_scores(plain, prompt, ANSWERS, [pixels])
        assert cached_label_scores(plain, prompt, ANSWERS, [pixels]) == pytest.approx(alone, abs=1e-5)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    rng = np.random.default_rng(3)
    made = []
    for place in range(6):
        path = tmp_path / f"{place}.png"
        Image.fromarray(rng.integers(0, 256, (30, 30 + place, 3), dtype=np.uint8)).save(path)
        votes = {"negative": 1.0 + place, "positive": 3.0}
        made.append(Sample(image=str(path), taxonomy="sentiment-2", votes=votes))
    return made


def test_figures_by_hand(written: Path, model: Any, samples: list[Sample]) -> None:
    with Bundle.open(written) as bundle, exportable(model) as plain:
        compared = LabelledComparison(plain, bundle, labelled_sets(samples), "made up")
        [exact] = compared.compare(load_engine(bundle, "fp32", "cpu"), "fp32")
        [quantized] = compared.compare(load_engine(bundle, "int8", "cpu"), "int8")
    with EmotionModel.load(written, precision="int8", engine="cpu") as ours:
        predicted = [ours.predict(sample.image, taxonomy="sentiment-2").distribution for sample in samples]
    p = np.array([list(distribution.values()) for distribution in predicted])
    votes = np.array([[1.0 + place, 3.0] for place in range(6)])
    votes /= votes.sum(axis=1, keepdims=True)
    top, rows = p.argmax(axis=1), np.arange(6)
    share = votes[rows, top]
    assert quantized.graphs.accuracy == pytest.approx((top == votes.argmax(axis=1)).mean())
    assert quantized.graphs.kl == pytest.approx((votes * np.log(votes / p)).sum(axis=1).mean())
    assert quantized.graphs.brier == pytest.approx(
        (share * (1 - p.max(axis=1)) ** 2 + (1 - share) * p.max(axis=1) ** 2).mean()
    )
    assert quantized.torch == exact.torch
    assert exact.graphs.kl == pytest.approx(exact.torch.kl, abs=1e-5)
    assert exact.kl_drift.high < 1e-9 < quantized.kl_drift.low
    for name in ("accuracy", "kl", "ece", "brier"):
        change = quantized.difference[name]
        between = getattr(quantized.graphs, name) - getattr(quantized.torch, name)
        assert change.estimate == pytest.approx(between, abs=1e-12)
        assert change.low <= change.estimate <= change.high
    assert (quantized.n, quantized.source, quantized.calibration) == (6, "made up", None)


def test_a_calibrator_is_put_on_both_sides(tiny_bundle: Path, model: Any, samples: list[Sample]) -> None:
    """That of the committed bundle divides scores by 1.7; it has one for int8 only."""
    answers = [Sample(image=sample.image, taxonomy="emotion6-7", answer="joy") for sample in samples]
    with Bundle.open(tiny_bundle) as bundle, exportable(model) as plain:
        compared = LabelledComparison(plain, bundle, labelled_sets(answers), "")
        [raw] = compared.compare(load_engine(bundle, "fp32", "cpu"), "fp32")
        [calibrated] = compared.compare(load_engine(bundle, "int8", "cpu"), "int8")
        assert calibrated.calibration == bundle.manifest.files["calibration.json"].sha256
    assert raw.calibration is None
    assert calibrated.torch.kl == pytest.approx(calibrated.graphs.kl, rel=0.02)
    assert calibrated.torch.kl < 0.8 * raw.torch.kl


def test_labelled_samples_are_spread_and_checked(samples: list[Sample]) -> None:
    bare = Sample(image="x.png", taxonomy="sentiment-2")
    [given] = labelled_sets([*samples, bare], limit=3)
    assert given.images == tuple(samples[place].image for place in (0, 2, 5))
    assert given.targets[0].tolist() == [0.25, 0.75]
    with pytest.raises(InputError, match="no sample has votes or an answer"):
        labelled_sets([bare])
    with pytest.raises(InputError, match="1 labelled samples of sentiment-2"):
        labelled_sets(samples[:1])
    own = [Sample(image="x", taxonomy="custom", labels=labels, answer="a") for labels in (("a", "b"), ("a", "c"))]
    with pytest.raises(InputError, match="2 labelled samples of custom with 2 label sets"):
        labelled_sets(own)
