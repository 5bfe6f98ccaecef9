"""The prediction record and its JSON line, which is the public contract."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emocaliber.runtime.conformal import Conformal
from emocaliber.runtime.errors import ArtifactError, ConfigError, InputError
from emocaliber.runtime.prediction import Prediction

# Copied from the published contract, not from the code.
CONTRACT = [
    "image", "taxonomy", "mode", "label", "confidence", "distribution", "prediction_set", "coverage",
    "verbalized_confidence", "reasoning", "calibrated", "bundle", "timing_ms",
]  # fmt: skip
REASONING = {tag: f"the {tag}" for tag in ("element", "human", "context", "interaction", "analysis")}


def prediction(**changes: Any) -> Prediction:
    fields: dict[str, Any] = {
        "label": "joy",
        "confidence": 0.5,
        "distribution": {"anger": 0.125, "joy": 0.5, "fear": 0.25, "love": 0.125},
        "mode": "direct",
        "taxonomy": "custom",
        "coverage": 0.7,
        "calibrated": False,
        "bundle": {"name": "nano", "version": "1", "precision": "int8", "engine": "cpu"},
        "timing_ms": {"total": 12.5},
        "image": "a.jpg",
    }
    return Prediction(**{**fields, **changes})


def test_json_line_has_the_keys_of_the_contract() -> None:
    line = prediction(mode="reason", reasoning=REASONING, verbalized_confidence=0.6).to_dict()
    assert list(line) == CONTRACT
    assert line["prediction_set"] == ["joy", "fear"]
    assert line["reasoning"] == REASONING
    assert list(line["bundle"]) == ["name", "version", "precision", "engine"]
    assert list(line["distribution"]) == ["anger", "joy", "fear", "love"]


def test_json_round_trip() -> None:
    original = prediction(mode="reason", reasoning=REASONING, verbalized_confidence=0.6)
    line = json.loads(json.dumps(original.to_dict()))
    assert Prediction.from_dict(line).to_dict() == original.to_dict()


@pytest.mark.parametrize(
    ("coverage", "expected"),
    [
        (0.3, ("joy",)),
        (0.5, ("joy",)),  # joy alone already has 0.5
        (0.6, ("joy", "fear")),
        (0.8, ("joy", "fear", "anger")),  # anger and love are equal: the earlier one comes first
        (0.99, ("joy", "fear", "anger", "love")),
    ],
)
def test_set_without_calibrator_is_the_fewest_labels_with_that_mass(coverage: float, expected: tuple[str, ...]) -> None:
    assert prediction().prediction_set(coverage) == expected


def test_set_with_thresholds_of_the_next_fitted_coverage() -> None:
    # Scores (mass before the label): joy 0, fear 0.5, anger 0.75, love 0.875.
    calibrated = prediction(
        calibrated=True, conformal=Conformal(method="aps", coverages=(0.8, 0.9), thresholds=(0.4, 0.8))
    )
    assert calibrated.prediction_set(0.75) == ("joy",)
    assert calibrated.prediction_set(0.9) == ("joy", "fear", "anger")
    assert calibrated.prediction_set(0.95) == ("joy", "fear", "anger", "love")
    assert calibrated.prediction_set() == ("joy",)  # asked at 0.7


def test_line_read_back_keeps_its_set_and_knows_no_other() -> None:
    calibrated = prediction(calibrated=True, conformal=Conformal(method="aps", coverages=(0.7,), thresholds=(0.8,)))
    read = Prediction.from_dict(calibrated.to_dict())
    assert read.prediction_set() == ("joy", "fear", "anger")
    assert read.prediction_set(0.7) == ("joy", "fear", "anger")
    with pytest.raises(InputError, match=r"set at coverage 0\.7"):
        read.prediction_set(0.9)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, 90, float("nan")])
def test_coverage_outside_zero_one_is_refused(coverage: float) -> None:
    with pytest.raises(InputError, match="coverage"):
        prediction().prediction_set(coverage)
    with pytest.raises(ConfigError, match="coverage"):
        prediction(coverage=coverage)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "fear"}, "label is 'fear', but the most probable one is 'joy'"),
        ({"confidence": 0.9}, "confidence is 0.9"),
        ({"distribution": {"joy": 0.5, "fear": 0.25}}, "sum to one"),
        ({"distribution": {"joy": float("nan"), "fear": 0.5}}, "sum to one"),
        ({"distribution": {"joy": 1.5, "fear": -0.5}}, "sum to one"),
        ({"distribution": {}}, "sum to one"),
        ({"verbalized_confidence": 1.0}, "verbalized_confidence is 1.0"),
        ({"bundle": {"name": "nano"}}, "bundle has keys"),
        ({"recorded_set": ("joy", "awe")}, "prediction_set holds"),
    ],
)
def test_impossible_records_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prediction(**changes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("label", None, "label is None"),
        ("mode", "fast", "mode is 'fast'"),
        ("confidence", "high", "confidence is 'high'"),
        ("prediction_set", "joy", "expected a list"),
        ("surprise", 1, "unknown key surprise"),
    ],
)
def test_broken_lines_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Prediction.from_dict({**prediction().to_dict(), key: value})


def test_line_with_missing_keys_names_all_of_them() -> None:
    line = prediction().to_dict()
    del line["prediction_set"], line["bundle"]
    with pytest.raises(ArtifactError, match="missing key prediction_set; missing key bundle"):
        Prediction.from_dict(line)


def test_repr_shows_bars_most_probable_first() -> None:
    lines = repr(prediction()).splitlines()
    assert "joy" in lines[0]
    assert "not calibrated" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["joy", "fear", "anger", "love"]
    # 30 columns are 100 %: 15, 7.5, 3.75, 3.75.
    assert [line.count("█") for line in lines[1:]] == [15, 8, 4, 4]


def test_description_says_what_can_be_believed() -> None:
    plain = prediction().describe()
    assert "a.jpg: joy (50.0% sure)" in plain
    assert "70% set: joy, fear" in plain
    assert "not calibrated for custom" in plain
    told = prediction(
        calibrated=True, calibrator="temperature, 400 photographs", reasoning=REASONING, verbalized_confidence=0.35
    ).describe()
    assert "not calibrated" not in told
    assert "temperature, 400 photographs" in told
    assert "stated confidence: 0.35" in told
    assert "the interaction" in told


def test_another_image_name_changes_nothing_else() -> None:
    renamed = prediction().with_image("b.jpg").to_dict()
    assert renamed == {**prediction().to_dict(), "image": "b.jpg"}
