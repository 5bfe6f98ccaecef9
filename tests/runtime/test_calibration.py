"""Calibrators: hand-worked values, the promises of their docstrings, and refusal of broken files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from emocaliber.runtime.bundle import EMBEDDED_BUNDLE
from emocaliber.runtime.calibration import Calibrator, read_calibrators, softmax, write_calibrators
from emocaliber.runtime.confidence import BetaConfidence, ConfidenceFusion, IsotonicConfidence
from emocaliber.runtime.conformal import Conformal
from emocaliber.runtime.drift import DriftReference
from emocaliber.runtime.errors import ArtifactError, InputError

LN2, LN3 = math.log(2), math.log(3)
THRESHOLDS = Conformal(method="aps", coverages=(0.8, 0.9), thresholds=(0.5, 0.7))
PLAIN = Calibrator(
    taxonomy="sentiment-2",
    mode="direct",
    precision="int8",
    engine="cpu",
    labels=("negative", "positive"),
    method="temperature",
    temperature=2.0,
    bias=(0.0, 0.0),
    conformal=THRESHOLDS,
    n=10,
    fitted_on="a test",
    log_loss=0.5,
    candidates={"temperature": 0.5},
)


def changed(**changes: object) -> Calibrator:
    return dataclasses.replace(PLAIN, **changes)


def test_temperature_by_hand() -> None:
    # Scores 2 ln 2 apart, halved by T = 2: odds 2 to 1. A shift of all scores changes nothing.
    np.testing.assert_allclose(PLAIN.probabilities(np.array([0.0, 2 * LN2])), [1 / 3, 2 / 3])
    np.testing.assert_allclose(PLAIN.probabilities(np.array([[-900.0, -900.0 + 2 * LN2]])), [[1 / 3, 2 / 3]])


def test_bias_by_hand() -> None:
    calibrator = changed(method="bias", temperature=1.0, bias=(LN3, 0.0))
    np.testing.assert_allclose(calibrator.probabilities(np.array([0.0, LN2])), [0.6, 0.4])


def test_matrix_by_hand() -> None:
    # Centred scores (-ln2/2, ln2/2); W swaps them and doubles: (ln2, -ln2): odds 4 to 1.
    calibrator = changed(method="matrix", temperature=1.0, weight=((0.0, 2.0), (2.0, 0.0)))
    np.testing.assert_allclose(calibrator.probabilities(np.array([0.0, LN2])), [0.8, 0.2])


def test_softmax_of_extremes_is_finite() -> None:
    np.testing.assert_array_equal(softmax(np.array([-1e30, 0.0, 0.0])), [0.0, 0.5, 0.5])


def test_scores_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="2 labels"):
        PLAIN.probabilities(np.zeros((3, 4)))


def test_write_and_read(tmp_path: Path) -> None:
    fused = changed(mode="reason", confidence=ConfidenceFusion(intercept=0.1, top=0.9, verbalized=0.2))
    matrix = changed(precision="fp32", method="matrix", weight=((1.0, 0.5), (0.0, 1.0)))
    beta = changed(
        precision="q4",
        confidence=BetaConfidence(intercept=0.1, success=0.9, failure=1.2),
        confidence_candidates={"none": 0.5, "beta": 0.4},
        conformal=Conformal(
            method="raps", penalty=0.1, free=2, coverages=(0.9,), thresholds=(1.3,), sizes={"aps": 1.9, "raps": 1.5}
        ),
    )
    isotonic = changed(
        precision="fp16",
        confidence=IsotonicConfidence(tops=(0.5, 0.9), confidences=(0.4, 0.8)),
        drift=DriftReference(
            mean=(0.0, 1.0, 2.0),
            directions=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
            variances=(2.0, 1.0),
            rest=0.5,
            images=10,
            distances=(0.1, 3.0),
        ),
    )
    all_kinds = (PLAIN, fused, matrix, beta, isotonic)
    write_calibrators(all_kinds, tmp_path / "calibration.json")
    assert read_calibrators(tmp_path / "calibration.json") == all_kinds
    with pytest.raises(ArtifactError, match="more than one"):
        write_calibrators([PLAIN, PLAIN], tmp_path / "calibration.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": math.inf}, "not finite"),
        ({"bias": (0.0,)}, "1 biases for 2 labels"),
        ({"bias": (0.0, 1.0)}, "bias that is not zero"),
        ({"weight": ((1.0, 0.0), (0.0, 1.0))}, "weight set"),
        ({"method": "matrix"}, "weight missing"),
        ({"method": "matrix", "weight": ((1.0,), (0.0, 1.0))}, "2 x 2"),
        ({"labels": ("a", "a")}, "different"),
        ({"n": 0}, "0 samples"),
    ],
)
def test_impossible_calibrators_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        changed(**changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace('"temperature": 2.0', '"temperature": NaN'), "holds NaN"),
        (lambda text: text.replace('"temperature": 2.0', '"temperature": 1e999'), "1e999"),
        (lambda text: text.replace('"temperature": 2.0', '"temperature": "2"'), r"temperature is '2', expected float"),
        (
            lambda text: text.replace('"schema_version": 2', '"schema_version": 3'),
            "version is 3.* reads 1 and 2",
        ),
        (lambda text: text.replace('"schema_version": 2', '"schema_version": "2"'), "schema_version is '2'"),
        (lambda text: text.replace('"n": 10', '"n": 10, "n": 11'), "'n' twice"),
        (lambda text: text.replace('"n": 10', '"m": 10'), "unknown key .*; missing key"),
        (lambda text: text[:50], "not valid JSON"),
        (lambda text: "[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, edit: object, message: str) -> None:
    path = tmp_path / "calibration.json"
    write_calibrators([PLAIN], path)
    text = path.read_text()
    assert json.loads(text)["schema_version"] == 2
    path.write_text(edit(text))
    with pytest.raises(ArtifactError, match=message):
        read_calibrators(path)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        read_calibrators(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        read_calibrators(tmp_path / "binary.json")


def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    first = {
        **{key: getattr(PLAIN, key) for key in ("taxonomy", "mode", "precision", "engine", "labels", "method", "n")},
        **{"temperature": 2.0, "bias": [0.0, 0.0], "fitted_on": "a test", "log_loss": 0.5},
        "confidence": {"intercept": 0.1, "top": 0.9, "verbalized": 0.2},
        "conformal": {"method": "aps", "coverages": [0.8, 0.9], "thresholds": [0.5, 0.7]},
        "candidates": {"temperature": 0.5},
    }
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"schema_version": 1, "calibrators": [first]}))
    assert read_calibrators(path) == (changed(confidence=ConfidenceFusion(intercept=0.1, top=0.9, verbalized=0.2)),)
    assert read_calibrators(EMBEDDED_BUNDLE / "calibration.json")


def test_the_confidence_map_comes_after_the_scaling() -> None:
    p = np.array([[0.25, 0.75]])
    assert changed().with_confidence(p, None) is p
    # Odds 3 of 0.75, doubled by the intercept: 6 to 1.
    beta = changed(confidence=BetaConfidence(intercept=LN2, success=1.0, failure=1.0))
    np.testing.assert_allclose(beta.with_confidence(p, None), [[1 / 7, 6 / 7]])
    fusion = changed(confidence=ConfidenceFusion(intercept=0.0, top=1.0, verbalized=1.0))
    assert (fusion.needs_verbalized, beta.needs_verbalized) == (True, False)
    assert fusion.with_confidence(p, None) is p, "nothing was stated"
    np.testing.assert_allclose(fusion.with_confidence(p, np.array([0.75])), [[0.1, 0.9]])
