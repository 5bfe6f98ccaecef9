"""The command line as scripts outside the repository call it: keys, exit codes, nothing else on standard output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime.cli import main
from emocaliber.runtime.commands import doctor
from emocaliber.runtime.manifest import parse_manifest

ROOT = Path(__file__).parents[2]

# Copied from the published contract, not from the code.
LINE_KEYS = [
    "image", "taxonomy", "mode", "label", "confidence", "distribution", "prediction_set", "coverage",
    "verbalized_confidence", "reasoning", "calibrated", "bundle", "timing_ms",
]  # fmt: skip
EMOTION6 = ["anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"]
PARTS = ["element", "human", "context", "interaction", "analysis"]

Predict = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 this is no photograph")
    return str(path)


@pytest.fixture
def predict(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Runs ``predict --json`` with the tiny bundle: exit status, parsed lines, standard error."""

    def run(*words: str) -> tuple[int, list[dict[str, Any]], str]:
        status = main(["predict", *words, "--bundle", str(tiny_bundle), "--json"])
        output = capsys.readouterr()
        return status, [json.loads(line) for line in output.out.splitlines()], output.err

    return run


def without_timing(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "timing_ms"}


def test_json_line_has_exactly_the_keys_of_the_contract(predict: Predict, photo: str) -> None:
    status, lines, errors = predict(photo)
    assert status == 0
    assert errors == ""
    (line,) = lines
    assert list(line) == LINE_KEYS
    assert line["image"] == photo
    assert line["taxonomy"] == "emotion6-7"
    assert line["mode"] == "direct"
    assert line["coverage"] == 0.9
    assert list(line["distribution"]) == EMOTION6
    assert sum(line["distribution"].values()) == pytest.approx(1.0, abs=1e-9)
    assert line["label"] == max(line["distribution"], key=line["distribution"].get)
    assert line["confidence"] == line["distribution"][line["label"]]
    assert line["prediction_set"][0] == line["label"]
    assert set(line["prediction_set"]) <= set(EMOTION6)
    assert line["reasoning"] is None
    assert line["calibrated"] is True
    assert list(line["bundle"]) == ["name", "version", "precision", "engine"]
    assert [line["bundle"][key] for key in ("name", "version", "precision")] == ["tiny-random", "0.0.1", "int8"]
    assert "cpu" in line["bundle"]["engine"]
    assert line["timing_ms"]
    assert all(isinstance(value, float) and value >= 0 for value in line["timing_ms"].values())


def test_labels_of_the_caller_are_uncalibrated(predict: Predict, photo: str) -> None:
    status, (line,), _ = predict(photo, "--labels", "calm, alarmed,bored")
    assert status == 0
    assert line["taxonomy"] == "custom"
    assert list(line["distribution"]) == ["calm", "alarmed", "bored"]
    assert line["calibrated"] is False


def test_named_taxonomy_without_calibrator_says_so(predict: Predict, photo: str) -> None:
    status, (line,), _ = predict(photo, "--taxonomy", "sentiment-2")
    assert status == 0
    assert list(line["distribution"]) == ["negative", "positive"]
    assert line["calibrated"] is False


def test_precision_is_the_callers_and_calibration_belongs_to_one(predict: Predict, photo: str) -> None:
    status, (line,), _ = predict(photo, "--precision", "fp32", "--threads", "1")
    assert status == 0
    assert line["bundle"]["precision"] == "fp32"
    assert line["calibrated"] is False


def test_reason_mode_gives_its_five_parts_and_a_confidence(predict: Predict, photo: str) -> None:
    words = (photo, "--mode", "reason", "--samples", "2", "--seed", "5")
    status, (line,), _ = predict(*words)
    assert status == 0
    assert list(line) == LINE_KEYS
    assert line["mode"] == "reason"
    assert line["reasoning"] is None or list(line["reasoning"]) == PARTS  # random weights may break the grammar
    assert 0 < line["verbalized_confidence"] < 1
    _, (again,), _ = predict(*words)
    assert without_timing(again) == without_timing(line)


def test_coverage_changes_the_set_and_nothing_else(predict: Predict, photo: str) -> None:
    lines = {coverage: predict(photo, "--coverage", coverage)[1][0] for coverage in ("0.8", "0.95", "0.999")}
    assert lines["0.8"]["distribution"] == lines["0.999"]["distribution"]
    assert set(lines["0.8"]["prediction_set"]) <= set(lines["0.95"]["prediction_set"])
    assert sorted(lines["0.999"]["prediction_set"]) == sorted(EMOTION6)  # above the largest fitted coverage: all
    assert lines["0.8"]["coverage"] == 0.8


def test_unreadable_image_becomes_an_error_line_and_the_others_go_on(predict: Predict, photo: str, broken: str) -> None:
    status, lines, _ = predict(broken, photo, "gone.jpg", photo)
    assert status == 1
    assert [line["image"] for line in lines] == [broken, photo, "gone.jpg", photo]
    for line in (lines[0], lines[2]):
        assert list(line) == ["image", "error"]
        assert list(line["error"]) == ["type", "message"]
        assert line["error"]["type"] == "InputError"
    assert "No such file" in lines[2]["error"]["message"]
    assert without_timing(lines[1]) == without_timing(lines[3])


def test_text_for_people(tiny_bundle: Path, photo: str, broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["predict", broken, photo, "--bundle", str(tiny_bundle)])
    output = capsys.readouterr()
    assert status == 1
    assert "broken.jpg" in output.err
    assert "broken.jpg" not in output.out
    for word in (photo, *EMOTION6, "90% set:", "calibrated for emotion6-7", "█"):
        assert word in output.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--taxonomy", "plutchik"], "unknown taxonomy 'plutchik'"),
        (["--labels", "joy,joy"], "same label"),
        (["--labels", "joy,,fear"], "label '' is empty"),
        (["--labels", "joy,</answer>"], "holds '<'"),
        (["--labels", "joy"], "needs 2 to 1000 labels, got 1"),
        (["--precision", "int3"], "no precision 'int3'"),
        (["--samples", "3"], "needs --mode reason"),
    ],
)
def test_wrong_question_is_one_message_and_no_output(
    predict: Predict, photo: str, broken: str, words: list[str], message: str
) -> None:
    status, lines, errors = predict(broken, photo, photo, *words)
    assert status == 1
    assert lines == []
    assert errors.startswith("emocaliber: error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_named_engine_that_is_not_there_is_an_error(predict: Predict, photo: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the engine")
    status, lines, errors = predict(photo, "--engine", "cuda")
    assert status == 1
    assert lines == []
    assert "cuda" in errors.lower()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["predict"],
        ["predict", "a.png", "--coverage", "0"],
        ["predict", "a.png", "--coverage", "1"],
        ["predict", "a.png", "--coverage", "nan"],
        ["predict", "a.png", "--coverage", "most"],
        ["predict", "a.png", "--taxonomy", "fi-2", "--labels", "a,b"],
        ["predict", "a.png", "--mode", "dream"],
        ["predict", "a.png", "--engine", "abacus"],
        ["predict", "a.png", "--samples", "0"],
        ["predict", "a.png", "--threads", "0"],
        ["predict", "a.png", "--seed", "-1"],
        ["predict", "a.png", "--loud"],
        ["sing"],
        ["bundle"],
        ["bundle", "paint"],
        ["batch", "folder"],
        ["batch", "folder", "--out", "a.xlsx"],
        ["batch", "folder", "--out", "a.jsonl", "--shard-size", "0"],
        ["batch", "--out", "a.jsonl"],
        ["batch", "folder", "--out", "a"],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert output.out == ""
    assert "usage:" in output.err


def test_unsupported_output_names_the_supported_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "folder", "--out", "a.xlsx"])
    assert ".jsonl or .csv or .parquet" in capsys.readouterr().err


def test_missing_bundle(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["predict", photo, "--json", "--bundle", str(tmp_path / "none")])
    output = capsys.readouterr()
    assert status == 1
    assert output.out == ""
    assert "none does not exist" in output.err


@pytest.fixture
def damaged_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, folder)
    graph = next(folder.glob("vision_encoder*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    return folder


def test_damaged_bundle_is_refused(damaged_bundle: Path, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", photo, "--json", "--bundle", str(damaged_bundle)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "does not match its SHA-256" in output.err


@pytest.mark.parametrize("words", [["bundle", "verify"], ["bundle", "inspect", "--json"]])
def test_default_is_a_name_of_the_embedded_bundle(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    embedded = capsys.readouterr().out
    assert main([*words, "default"]) == 0
    assert capsys.readouterr().out == embedded


def test_bundle_verify(tiny_bundle: Path, damaged_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "verify", str(tiny_bundle)]) == 0
    assert "all match their hashes" in capsys.readouterr().out
    assert main(["bundle", "verify", str(tiny_bundle), "--json"]) == 0
    good = json.loads(capsys.readouterr().out)
    assert good["ok"] is True
    assert good["name"] == "tiny-random"
    assert good["files"] == len([path for path in tiny_bundle.iterdir() if path.name != "bundle.json"])
    assert main(["bundle", "verify", str(damaged_bundle), "--json"]) == 1
    bad = json.loads(capsys.readouterr().out)
    assert bad["ok"] is False
    assert "vision_encoder" in bad["error"]
    assert main(["bundle", "verify", str(damaged_bundle)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "SHA-256" in output.err


def test_bundle_inspect(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "inspect", str(tiny_bundle), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    written = (tiny_bundle / "bundle.json").read_text(encoding="utf-8")
    assert parse_manifest(json.dumps(summary["manifest"]), "printed") == parse_manifest(written, "written")
    assert [(c["taxonomy"], c["mode"], c["precision"]) for c in summary["calibrators"]] == [
        ("emotion6-7", "direct", "int8"),
        ("emotion6-7", "reason", "int8"),
    ]
    assert main(["bundle", "inspect", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    for word in ("tiny-random 0.0.1", "int8", "emotion6-7 (default)", "made up for tests"):
        assert word in text


def test_doctor_is_content_with_a_working_bundle(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--bundle", str(tiny_bundle), "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert status == 0
    assert findings["ok"] is True
    assert findings["faults"] == []
    assert findings["packages"]["numpy"] == np.__version__
    assert "CPUExecutionProvider" in findings["providers"]
    assert findings["bundle"]["name"] == "tiny-random"
    assert findings["cores"] >= 1
    assert main(["doctor", "--bundle", str(tiny_bundle)]) == 0
    assert "the runtime works" in capsys.readouterr().out


def test_doctor_names_faults_and_fixes(
    damaged_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "tokenizers" else "1.0")
    assert main(["doctor", "--bundle", str(damaged_bundle), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    what = " | ".join(fault["what"] for fault in findings["faults"])
    assert findings["ok"] is False
    assert "tokenizers is not installed" in what
    assert "onnxruntime and onnxruntime-gpu are both installed" in what
    assert "does not match its SHA-256" in what
    assert all("pip" in fault["fix"] for fault in findings["faults"])


def test_doctor_tells_which_packages_an_extra_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = [
        "numpy>=1",
        "scipy>=1 ; extra == 'evaluate'",
        'torch<2.14,>=2.6; extra == "train"',
        "emocaliber[evaluate]; extra == 'train'",
        "tomli>=2; python_version < '3.11' and extra == 'train'",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: requires)
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "scipy" else "1.0")
    extras = doctor.examine("nowhere")["extras"]
    assert extras == {
        "evaluate": {"installed": False, "missing": ["scipy"], "install": "pip install 'emocaliber[evaluate]'"},
        "train": {"installed": False, "missing": ["scipy"], "install": "pip install 'emocaliber[train]'"},
    }


def run_apart(
    words: list[str], blocked: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a fresh interpreter in which the blocked modules cannot be imported."""
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "from emocaliber.runtime.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *words],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".dev"), **environment},
    )


BLOCKED = ("torch", "transformers", "onnx", "scipy", "sklearn", "trl", "datasets")


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_predict_works_without_the_training_stack(tiny_bundle: Path, photo: str, mode: str) -> None:
    done = run_apart(["predict", photo, "--json", "--mode", mode, "--bundle", str(tiny_bundle)], BLOCKED)
    assert done.stderr == b""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert list(json.loads(lines[0])) == LINE_KEYS


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes only there")
def test_odd_file_name_on_a_plain_console(tiny_bundle: Path, photo: str, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xc3\xa9.png")
    shutil.copy(photo, odd)
    words = ["predict", odd, "--bundle", str(tiny_bundle)]
    as_json = run_apart([*words, "--json"], PYTHONIOENCODING="ascii")
    assert as_json.returncode == 0
    assert json.loads(as_json.stdout)["image"] == odd
    as_text = run_apart(words, PYTHONIOENCODING="ascii")
    assert as_text.returncode == 0
    assert b"sadness" in as_text.stdout


def test_doctor_comes_up_without_its_engine(tiny_bundle: Path) -> None:
    done = run_apart(["doctor", "--json", "--bundle", str(tiny_bundle)], ("onnxruntime", "tokenizers"))
    assert done.returncode == 1
    findings = json.loads(done.stdout)
    assert findings["ok"] is False
    assert findings["bundle"]["ok"] is True  # its files are; only nothing can run them
    assert any("onnxruntime cannot be imported" in fault["what"] for fault in findings["faults"])


def test_predict_says_once_what_no_calibrator_covers(predict: Predict, photo: str) -> None:
    status, lines, said = predict(photo, photo, "--labels", "calm,tense")
    assert (status, len(lines)) == (0, 2)
    assert said == (
        "emocaliber: outside the calibration: bundle tiny-random has no calibrator for custom (calm, tense) in direct "
        "mode at int8; it is calibrated for emotion6-7 at int8 (direct, reason)\n"
    )
    assert predict(photo)[2] == ""


def test_auto_mode_answers_in_the_mode_an_image_needs(predict: Predict, photo: str) -> None:
    labels = ("--labels", "a,b,c,d")
    [direct], [reasoned] = predict(photo, *labels)[1], predict(photo, *labels, "--mode", "reason")[1]
    size = len(direct["prediction_set"])
    assert size > 1, "the example must have a set that can be too large"
    for limit, expected in ((size - 1, reasoned), (size, direct)):
        status, [line], _ = predict(photo, *labels, "--mode", "auto", "--max-set-size", str(limit))
        assert status == 0
        assert list(line) == LINE_KEYS
        for key in ("mode", "label", "distribution", "reasoning", "verbalized_confidence"):
            assert line[key] == expected[key]
    assert predict(photo, *labels, "--mode", "auto", "--samples", "2")[1][0]["mode"] == "reason"


def test_set_size_goes_with_auto_mode(predict: Predict, photo: str) -> None:
    status, lines, said = predict(photo, "--max-set-size", "2")
    assert (status, lines) == (1, [])
    assert "--max-set-size 2 goes with --mode auto, not direct" in said
