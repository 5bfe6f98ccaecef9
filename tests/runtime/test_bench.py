from __future__ import annotations

import json
from pathlib import Path

import pytest

from emocaliber.runtime.cli import main

PHOTO = Path(__file__).parents[2] / "docs" / "photo.jpg"


def test_bench_measures_every_stage(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(PHOTO), "--bundle", str(tiny_bundle), "--engine", "cpu", "--threads", "1", "--repeats", "3"]
    assert main([*words, "--json", "--labels", "calm,tense"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["stages_ms"]) == ["decode", "preprocess", "vision", "text", "total"]
    for times in found["stages_ms"].values():
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
    assert 0 < found["load_ms"] < found["first_prediction_ms"]
    assert (found["repeats"], found["labels"], found["mode"]) == (3, 2, "direct")
    graphs = list(tiny_bundle.glob("*_int8.onnx"))
    assert found["bundle"]["size_bytes"] == sum(path.stat().st_size for path in graphs)
    assert main(words) == 0
    assert "direct mode, 7 labels, 3 predictions" in capsys.readouterr().out


def test_bench_refuses_what_it_cannot_measure(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--bundle", str(tiny_bundle), "--repeats", "0"]) == 1
    assert "--repeats is 0, expected at least 1" in capsys.readouterr().err
    assert main(["bench", "no-such-file.png", "--bundle", str(tiny_bundle)]) == 1
    assert "no-such-file.png" in capsys.readouterr().err
