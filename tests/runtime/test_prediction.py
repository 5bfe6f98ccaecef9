"""The prediction record and its JSON line, which is the public contract."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from emocaliber.runtime.conformal import Conformal
from emocaliber.runtime.drift import Drift
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


def test_details_make_an_equal_record() -> None:
    original = prediction(
        calibrated=True,
        calibrator="temperature, 400 photographs",
        conformal=Conformal(method="raps", penalty=0.1, free=2, coverages=(0.7, 0.9), thresholds=(0.1 + 0.2, 1.3)),
        mode="reason",
        reasoning=REASONING,
        verbalized_confidence=0.6,
        out_of_scope="fitted elsewhere",
        out_of_time=True,
        drift=Drift(p_value=1 / 3, coordinates=(0.1, -2.5)),
    )
    line = original.to_dict(details=True)
    assert list(line) == [*CONTRACT, "details"]
    read = Prediction.from_dict(json.loads(json.dumps(line, allow_nan=False)))
    assert read == original
    assert read.prediction_set(0.9) == original.prediction_set(0.9)
    bare = Prediction.from_dict(original.to_dict())
    assert Prediction.from_dict(bare.to_dict(details=True)) == bare, "a record read from a line, too"
    with pytest.raises(ArtifactError, match=r"unknown key details\.mood"):
        Prediction.from_dict({**line, "details": {"mood": 1}})
    with pytest.raises(ArtifactError, match="details is 3, expected a table"):
        Prediction.from_dict({**line, "details": 3})
    with pytest.raises(ArtifactError, match="out_of_time is 'no'"):
        Prediction.from_dict({**line, "details": {"out_of_time": "no"}})


class Reader(HTMLParser):
    """The texts and the tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.widths: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        style = dict(attrs).get("style") or ""
        if "currentColor" in style:
            self.widths.append(style.partition("width:")[2].partition(";")[0])

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_shows_bars_in_the_colours_of_the_page() -> None:
    page = prediction(mode="reason", reasoning=REASONING)._repr_html_()
    read = Reader(page)
    rows = [text for text in read.texts if text in ("joy", "fear", "anger", "love")]
    assert rows == ["joy", "fear", "anger", "love"]
    assert read.widths == ["50.0%", "25.0%", "12.5%", "12.5%"]
    assert "joy (50.0% sure)" in read.texts
    assert "70% set in bold type; custom, reason mode, not calibrated: a ranking, not probabilities" in read.texts
    assert "interaction: the interaction" in read.texts
    assert re.findall("font-weight:bold;text-align:left[^/]*<bdi>(.*?)<", page) == ["joy", "fear"], "the 70 % set"
    assert not re.search(r"#[0-9a-f]{3}|rgb|\bwhite\b|\bblack\b", page), (
        "a colour of its own would fail on dark or light"
    )


def test_html_escapes_what_callers_and_models_wrote() -> None:
    label = "<img src=x onerror=alert(1)>\u202e\"'&"
    page = prediction(
        label=label,
        distribution={label: 0.5, "</td><script>": 0.5},
        mode="reason",
        reasoning={**REASONING, "human": "<b>bold</b>"},
        out_of_scope="<i>",
        calibrated=True,
    )._repr_html_()
    read = Reader(page)
    assert read.tags == {"div", "table", "tr", "th", "td", "bdi"}
    assert label in read.texts
    assert "human: <b>bold</b>" in read.texts


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
