"""Calibrators: hand-worked values, the promises of their docstrings, and refusal of broken files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from emocaliber.runtime.calibration import (
    Calibrator,
    ConfidenceFusion,
    Conformal,
    conformal_scores,
    prediction_set,
    read_calibrators,
    softmax,
    write_calibrators,
)
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


def test_fusion_by_hand() -> None:
    probabilities = np.array([[0.1, 0.6, 0.3]])
    same = ConfidenceFusion(intercept=0.0, top=1.0, verbalized=0.0)
    np.testing.assert_allclose(same.apply(probabilities, np.array([0.2])), probabilities)
    # Odds 1.5 doubled are 3: 0.75; the rest keeps 1 to 3.
    doubled = ConfidenceFusion(intercept=LN2, top=1.0, verbalized=0.0)
    np.testing.assert_allclose(doubled.apply(probabilities, np.array([0.2])), [[0.0625, 0.75, 0.1875]])
    # Odds 1.5 times odds 9 of a stated 0.9: 13.5 / 14.5.
    both = ConfidenceFusion(intercept=0.0, top=1.0, verbalized=1.0)
    assert both.apply(probabilities, np.array([0.9]))[0, 1] == pytest.approx(13.5 / 14.5)


@pytest.mark.parametrize("intercept", [-50.0, -3.0, 0.0, 50.0])
def test_fusion_keeps_the_top_label_and_a_distribution(intercept: float) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(5, 0.4), size=200)
    fusion = ConfidenceFusion(intercept=intercept, top=0.7, verbalized=0.5)
    fused = fusion.apply(probabilities, rng.uniform(0.05, 0.95, size=200))
    np.testing.assert_array_equal(fused.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(fused.sum(axis=1), 1.0, atol=1e-12)
    assert fused.min() >= 0.0


def test_fusion_of_a_certain_label() -> None:
    fused = ConfidenceFusion(intercept=0.0, top=0.0, verbalized=1.0).apply(np.array([1.0, 0.0, 0.0]), np.array(0.8))
    np.testing.assert_allclose(fused, [0.8, 0.1, 0.1])


def test_conformal_scores_by_hand() -> None:
    np.testing.assert_allclose(conformal_scores(np.array([0.2, 0.5, 0.3])), [0.8, 0.0, 0.5])
    # Ties go by list order.
    np.testing.assert_allclose(conformal_scores(np.array([[0.25, 0.5, 0.25]])), [[0.5, 0.0, 0.75]])


def test_threshold_of_the_smallest_sufficient_coverage() -> None:
    assert [THRESHOLDS.threshold(c) for c in (0.5, 0.8, 0.85, 0.9, 0.95)] == [0.5, 0.5, 0.7, 0.7, 1.0]


def test_prediction_sets_by_hand() -> None:
    probabilities = (0.2, 0.5, 0.3)
    assert prediction_set(probabilities, 0.8, THRESHOLDS) == (1, 2)
    assert prediction_set(probabilities, 0.99, THRESHOLDS) == (1, 2, 0)
    # Without thresholds: the fewest labels that hold the coverage.
    assert prediction_set(probabilities, 0.5, None) == (1,)
    assert prediction_set(probabilities, 0.6, None) == (1, 2)
    assert prediction_set(probabilities, 0.01, None) == (1,)
    for coverage in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="coverage"):
            prediction_set(probabilities, coverage, None)


def test_write_and_read(tmp_path: Path) -> None:
    fused = changed(mode="reason", confidence=ConfidenceFusion(intercept=0.1, top=0.9, verbalized=0.2))
    matrix = changed(precision="fp32", method="matrix", weight=((1.0, 0.5), (0.0, 1.0)))
    write_calibrators([PLAIN, fused, matrix], tmp_path / "calibration.json")
    assert read_calibrators(tmp_path / "calibration.json") == (PLAIN, fused, matrix)
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
    ("coverages", "thresholds", "message"),
    [
        ((), (), "at least one"),
        ((0.8, 0.9), (0.5,), "2 coverages and 1 thresholds"),
        ((0.9, 0.8), (0.5, 0.7), "increasing"),
        ((0.8, 1.0), (0.5, 0.7), "increasing"),
        ((0.8, 0.9), (0.7, 0.5), "rise"),
        ((0.8, 0.9), (0.5, 1.5), "rise"),
        ((0.8, 0.9), (0.5, math.nan), "not finite"),
    ],
)
def test_impossible_thresholds_are_refused(
    coverages: tuple[float, ...], thresholds: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        Conformal(method="aps", coverages=coverages, thresholds=thresholds)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace('"temperature": 2.0', '"temperature": NaN'), "holds NaN"),
        (lambda text: text.replace('"temperature": 2.0', '"temperature": 1e999'), "1e999"),
        (lambda text: text.replace('"temperature": 2.0', '"temperature": "2"'), r"temperature is '2', expected float"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "schema_version is 2"),
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
    assert json.loads(text)["schema_version"] == 1
    path.write_text(edit(text))
    with pytest.raises(ArtifactError, match=message):
        read_calibrators(path)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        read_calibrators(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        read_calibrators(tmp_path / "binary.json")
