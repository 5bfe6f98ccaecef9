from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tiny_run import scene_samples

from emocaliber.evaluate.bundle_fitting import CalibrationSet
from emocaliber.evaluate.records import Interval
from emocaliber.export.tuning import Trial, Tuning, labelled_images, proposal, set_apart, with_front
from emocaliber.export.tuning_chart import tuning_svg
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.taxonomy import TAXONOMIES


def trial(precision: str, latency_ms: float, size_bytes: int, drift: float, spread: float = 0.0) -> Trial:
    nothing = Interval(estimate=0.0, low=0.0, high=0.0, level=0.95)
    return Trial(
        precision=precision, latency_ms=latency_ms, latency_p90_ms=latency_ms, size_bytes=size_bytes, same_label=1.0,
        drift=Interval(estimate=drift, low=drift - spread, high=drift + spread, level=0.95), kl=nothing, ece=nothing,
    )  # fmt: skip


TRIALS = (
    trial("fp32", 100.0, 1000, 0.0),
    trial("fp16", 120.0, 500, 0.0001),
    trial("int8", 50.0, 250, 0.004, spread=0.001),
    trial("int4", 40.0, 150, 0.2),
    trial("int8-int4", 60.0, 260, 0.15),
)


def test_the_front_by_hand() -> None:
    # fp16 is slower than fp32 but smaller; int8-int4 is slower, larger and worse than int8.
    assert [t.on_front for t in with_front(TRIALS)] == [True, True, True, True, False]


@pytest.mark.parametrize(("accepted", "expected"), [(0.3, "int4"), (0.01, "int8"), (0.0045, "fp32"), (0.0, "fp32")])
def test_the_proposal_is_the_fastest_that_surely_drifts_little(accepted: float, expected: str) -> None:
    assert proposal(TRIALS, accepted) == expected


def test_the_plot_shows_every_precision() -> None:
    tuning = Tuning(
        trials=with_front(TRIALS), proposed="int8", max_drift=0.01, taxonomy="fi-2", n=9, calibrated=False, engine="x"
    )
    drawn = ElementTree.fromstring(tuning_svg(tuning))  # noqa: S314 - made here
    groups = list(drawn.iter("{http://www.w3.org/2000/svg}g"))
    assert [g.attrib["class"].split() for g in groups] == [
        ["front"], ["front"], ["front", "proposed"], ["front"], []
    ]  # fmt: skip
    places = [g.find("{http://www.w3.org/2000/svg}circle") for g in groups]
    across = [float(circle.attrib["cx"]) for circle in places if circle is not None]
    upward = [float(circle.attrib["cy"]) for circle in places if circle is not None]
    assert sorted(across) == [across[index] for index in (3, 2, 4, 0, 1)]
    assert upward[0] > upward[1] > upward[2] > upward[4] > upward[3]


def test_the_command_measures_and_draws(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene_samples(tmp_path, 6)
    words = ["export", "tune", str(written), "--data", str(tmp_path / "samples.jsonl"), "--threads", "1"]
    words += ["--precision", "int8", "--precision", "int4", "--plot", str(tmp_path / "plot.svg")]
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["n"], found["taxonomy"], found["calibrated"]) == (6, "emotion6-7", False)
    exact, eight, four = found["trials"]
    assert [t["precision"] for t in found["trials"]] == ["fp32", "int8", "int4"]
    assert exact["drift"]["estimate"] == pytest.approx(0.0, abs=1e-12)
    assert 0 < eight["drift"]["estimate"] < four["drift"]["estimate"]
    assert exact["size_bytes"] > eight["size_bytes"] > four["size_bytes"]
    assert (tmp_path / "plot.svg").read_text().startswith("<svg ")
    assert main([*words, "--limit", "4"]) == 0
    assert capsys.readouterr().out.startswith("4 images of emotion6-7, onnxruntime-cpu, raw probabilities")


def test_static_ranges_are_found_on_other_images(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene_samples(tmp_path, 6)
    words = ["export", "tune", str(written), "--data", str(tmp_path / "samples.jsonl"), "--precision", "qdq"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("4 images of emotion6-7, ")
    assert "ranges of qdq found on 2 others" in printed
    assert main([*words, "--limit", "2"]) == 1
    assert "2 labelled images of emotion6-7; a fourth is for the ranges of qdq" in capsys.readouterr().err


def test_an_image_is_measured_or_ranged_never_both() -> None:
    images = tuple("abcdaefg")
    given = CalibrationSet(taxonomy=TAXONOMIES["fi-2"], images=images, targets=np.arange(16.0).reshape(8, 2))
    measured, apart = set_apart(given)
    # The first and the fifth are one image.
    assert (measured.images, apart.images) == (tuple("bcdefg"), ("a", "a"))
    assert measured.targets[:, 0].tolist() == [2.0, 4.0, 6.0, 10.0, 12.0, 14.0]


def test_what_cannot_be_tuned_is_said(
    written: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = scene_samples(tmp_path, 2)
    with pytest.raises(InputError, match="0 labelled samples of fi-2, at least two are needed"):
        labelled_images(samples, "fi-2")
    words = ["export", "tune", str(written), "--data", str(tmp_path / "samples.jsonl"), "--precision", "int3"]
    assert main(words) == 1
    assert "no precision 'int3'; there are fp32, fp16, int8, int4" in capsys.readouterr().err
