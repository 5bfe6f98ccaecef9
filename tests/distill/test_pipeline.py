"""``emocaliber quickstart``: the whole pipeline."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_recipe

from emocaliber.distill.measure import Truth
from emocaliber.distill.pipeline import _claim, _compare_confidences, _gallery, _HeldOut, _Measured, run_pipeline
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import ConfigError

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "distillation.py"
SMALL = [
    "data.samples=scenes:120", "data.calibration=110", "data.test=24", "data.image_size=32", "vision.epochs=1",
    "teacher.build.image_size=32", "student.model.build.image_size=32", "reason.epochs=1", "annotate.images=8",
    "annotate.samples=2", "verbalize.epochs=1", "calibrate.steps=2", "calibrate.prompts_per_step=2",
    "calibrate.rollouts=2", "calibrate.max_new_tokens=24", "collect.images=16", "student.epochs=1",
    "ground={learning_rate = 1e-3, batch_size = 8, images = 8, samples = 2}",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("loud_again")
def test_the_whole_pipeline_runs_and_is_not_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["quickstart", "--out", str(out), *(word for change in SMALL for word in ("--set", change))]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "calibrate minus verbalize" in printed
    assert str(out / "report.html") in printed

    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    stages = metrics["stages"]
    # The student is measured before and after its export, in both modes.
    assert list(stages) == [
        "reason", "verbalize", "calibrate", "student_float_direct", "student_float_reason", "student_grounded_direct",
        "student_grounded_reason", "student_int8_direct", "student_int8_reason",
    ]  # fmt: skip
    for name, figures in stages.items():
        assert figures["n"] == pytest.approx(24, abs=1)
        assert 0.0 <= figures["accuracy"] <= 1.0
        assert 0.0 < figures["bayes_accuracy"] < 1.0
        assert figures["kl"] > 0.0
        assert ("verbalized_brier" in figures) == (name not in ("reason", "student_int8_direct"))
        assert ("set_coverage" in figures) == name.startswith("student_int8")
    assert {frozenset(entry) for entry in metrics["comparisons"]} == {
        frozenset({"title", "difference", "interval", "level"})
    }
    assert [entry["title"].partition(": ")[2] for entry in metrics["comparisons"]] == [
        "calibrate minus verbalize", "ground minus student (direct)", "ground minus student (reason)",
    ]  # fmt: skip
    assert [row["target"] for row in metrics["coverage"]] == [0.8, 0.9, 0.95] * 2
    assert {
        "data",
        "vision",
        "reason",
        "annotate",
        "verbalize",
        "calibrate",
        "collect",
        "student",
        "ground",
        "bundle",
        "fit",
        "total",
    } == set(metrics["wall_s"])
    *parts, total = metrics["wall_s"].values()
    assert total > sum(parts), "the whole run takes its stages and the measurement"

    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert page.count("data:image/png") >= 8
    card = (out / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "student_int8_direct" in card
    image = next((out / "data" / "images").rglob("*.png"))
    with EmotionModel.load(out / "bundle") as model:
        prediction = model.predict(image, mode="direct")
        assert prediction.calibrated
        assert sum(prediction.distribution.values()) == pytest.approx(1.0)

    # Nothing that is finished is run again: only the measurement is.
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    begun = time.perf_counter()
    assert main([*words, "--predict", str(image)]) == 0
    assert time.perf_counter() - begun < 0.5 * metrics["wall_s"]["total"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == made
    again = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert again["stages"]["calibrate"]["brier"] == pytest.approx(stages["calibrate"]["brier"])
    assert prediction.label in capsys.readouterr().out

    # Its students can be held against each other.
    table = tmp_path / "distillation.md"
    script = [str(BENCHMARK), str(out), "--out", str(table), "--images", "8", "--epochs", "1", "--held-out", "8"]
    subprocess.run([sys.executable, *script, "--variants", "full", "teacher"], check=True, capture_output=True)
    text = table.read_text(encoding="utf-8")
    assert "## emotion6-7, reason mode, n = 8" in text
    assert text.count("| teacher | ") == 2
    assert "| student, int8, calibrated | direct |" in text


@pytest.mark.parametrize("table", ["annotate", "student", "bundle"])
def test_a_recipe_that_lacks_a_table_is_refused_before_anything_runs(tmp_path: Path, table: str) -> None:
    with pytest.raises(ConfigError, match=rf"has no \[{table}\] table"):
        run_pipeline(tiny_recipe(**{table: None}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("loud_again")
def test_faulty_options_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--recipe", "missing.toml"], "cannot read recipe missing.toml: No such file or directory"),
        (["--set", "reason.epoch=1"], "unknown key reason.epoch (known:"),
    ):
        assert main(["quickstart", "--out", str(tmp_path / "out"), *words]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("emocaliber: error: ")
        assert message in output.err
        assert output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_gallery_goes_from_the_clearest_to_the_most_ambiguous() -> None:
    sureness = np.array([0.5, 0.9, 0.6, 0.7, 0.8, 0.55, 0.65, 0.75])
    posterior = np.stack([sureness, 1.0 - sureness], axis=1)
    labels = np.zeros(8, dtype=np.int64)
    assert _gallery(Truth(labels=labels, posterior=posterior, votes=None), 8) == [1, 4, 7, 3, 6, 2, 5, 0]
    # Of the first three alone: the clearest comes first, the most ambiguous last.
    few = _gallery(Truth(labels=labels, posterior=posterior, votes=None), 3)
    assert (few[0], few[-1], set(few)) == (1, 0, {0, 1, 2})
    assert _gallery(Truth(labels=labels, posterior=None, votes=None), 8) == list(range(8))


def test_a_folder_belongs_to_one_recipe(tmp_path: Path) -> None:
    _claim(tiny_recipe(), tmp_path)
    _claim(tiny_recipe(), tmp_path)
    with pytest.raises(ConfigError, match=r"run of another recipe \(other: seed\)"):
        _claim(dataclasses.replace(tiny_recipe(), seed=7), tmp_path)


def test_the_confidence_is_compared_before_and_after_on_the_same_images() -> None:
    right = np.array([1.0, 0.0])
    truth = Truth(labels=np.zeros(2, dtype=np.int64), posterior=None, votes=None)
    held_out = [_HeldOut(samples=[], truth=truth, suffix=" · emotion6-7")]
    measured = _Measured()
    # Brier scores 0.25 and 0.25; 0.04 and 0.04; 0.01 and 0.81; 0.16 and 0.36.
    for name, mode, stated in (
        ("verbalize", "reason", [0.5, 0.5]), ("calibrate", "reason", [0.8, 0.2]),
        ("student", "direct", [0.5, 0.5]), ("ground", "direct", [0.9, 0.9]),
        ("student", "reason", [0.6, 0.6]), ("ground", "reason", [0.8, 0.2]),
    ):  # fmt: skip
        measured.stated[name, mode, " · emotion6-7"] = (np.array(stated), right)
    table = {"learning_rate": 1e-3, "batch_size": 4}
    _compare_confidences(tiny_recipe(ground=table), held_out, measured)
    found = {one.title.partition(": ")[2]: one.interval.estimate for one in measured.comparisons}
    assert found == {
        "calibrate minus verbalize · emotion6-7": pytest.approx(-0.21),
        "ground minus student (direct) · emotion6-7": pytest.approx(0.16),
        "ground minus student (reason) · emotion6-7": pytest.approx(-0.22),
    }
    alone = _Measured(stated=measured.stated)
    _compare_confidences(tiny_recipe(), held_out, alone)
    assert [one.title.partition(": ")[2] for one in alone.comparisons] == ["calibrate minus verbalize · emotion6-7"]
