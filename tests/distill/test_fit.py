"""Calibrators fitted on a bundle's own graphs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emocaliber.distill.fit import calibrate_bundle
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.calibration import Calibrator, Conformal
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.samples import Sample


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_every_mode_and_precision_gets_its_own(
    bundle: Path, scenes: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def fit(scores: np.ndarray, targets: np.ndarray, **facts: Any) -> Calibrator:
        given.append({"scores": scores, "targets": targets, **facts})
        kept = {key: facts[key] for key in ("labels", "taxonomy", "mode", "precision", "engine", "fitted_on")}
        return Calibrator(
            method="temperature",
            temperature=2.0,
            bias=(0.0,) * 7,
            n=len(scores),
            log_loss=1.0,
            conformal=Conformal(method="aps", coverages=(0.9,), thresholds=(0.9,)),
            candidates={"temperature": 1.0},
            confidence=None,
            **kept,
        )

    monkeypatch.setattr("emocaliber.distill.fit.fit_calibrator", fit)
    monkeypatch.setattr("emocaliber.distill.fit.CHUNK", 4)
    fitted = calibrate_bundle(bundle, scenes, fitted_on="six scenes", seed=1)
    pairs = [(facts["precision"], facts["mode"]) for facts in given]
    assert pairs == [("fp32", "direct"), ("fp32", "reason"), ("int8", "direct"), ("int8", "reason")]
    with Bundle.open(bundle) as opened:
        assert list(opened.calibrators) == fitted
    for facts in given:
        assert (facts["taxonomy"], facts["fitted_on"], facts["seed"]) == ("emotion6-7", "six scenes", 1)
        assert facts["targets"] == pytest.approx(np.array([scene.distribution() for scene in scenes]))
        assert (facts["verbalized"] is None) == (facts["mode"] == "direct")
        with EmotionModel.load(bundle, precision=facts["precision"]) as model:
            images = [scene.image for scene in scenes]
            scores = model.score(images, taxonomy="emotion6-7", mode=facts["mode"])
            assert facts["engine"] == model.engine
            assert facts["scores"] == pytest.approx(scores.label_scores, abs=1e-4)
            if facts["mode"] == "reason":
                assert facts["verbalized"] == pytest.approx(scores.verbalized, abs=1e-4)
            assert model.predict(images[0], taxonomy="emotion6-7", mode=facts["mode"]).calibrated
    # Quantisation moves scores: that is why each precision has its own.
    assert np.abs(given[0]["scores"] - given[2]["scores"]).max() > 1e-3


def test_too_little_to_fit_on_leaves_the_bundle_as_it_was(bundle: Path, scenes: list[Sample]) -> None:
    before = (bundle / "bundle.json").read_bytes()
    blank = dataclasses.replace(scenes[1], answer=None, votes=None, id="blank")
    with pytest.raises(InputError, match="calibration sample blank has neither votes nor an answer"):
        calibrate_bundle(bundle, [scenes[0], blank], fitted_on="x")
    with pytest.raises(InputError, match="at least 100 samples, got 6"):
        calibrate_bundle(bundle, scenes, fitted_on="x")
    assert (bundle / "bundle.json").read_bytes() == before
