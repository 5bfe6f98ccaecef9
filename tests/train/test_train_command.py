"""``emocaliber train``: exit statuses and messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emocaliber.runtime.cli import main
from emocaliber.train.stages import STAGES

pytestmark = pytest.mark.usefixtures("loud_again")

RECIPE = """
name = "small"
[data]
samples = "samples.jsonl"
[teacher]
path = "teacher"
[reason]
learning_rate = 1e-5
batch_size = 8
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return "recipe.toml"


def failed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail with one line, and returns that line."""
    assert main(words) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_a_missing_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = failed(["train", "reason", "missing.toml"], capsys)
    assert message == "emocaliber: error: cannot read recipe missing.toml: No such file or directory\n"


def test_an_unknown_key(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown key reason.epoch (known:" in failed(["train", "reason", recipe, "--set", "reason.epoch=2"], capsys)


def test_missing_samples(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot read samples samples.jsonl" in failed(["train", "reason", recipe], capsys)


def test_a_stage_out_of_order(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "verbalize={learning_rate = 1e-3, batch_size = 8}"]
    message = failed(["train", "verbalize", recipe, *words], capsys)
    assert "runs/small/reason holds no finished stage; run 'emocaliber train reason' first" in message


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_command(stage: str, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot read recipe missing.toml" in failed(["train", stage, "missing.toml"], capsys)


@pytest.mark.parametrize("words", [["nonsense", "recipe.toml"], ["reason"], [], ["reason", "recipe.toml", "--fast"]])
def test_wrong_usage(words: list[str], recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", *words])
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "usage: emocaliber" in output.err


def test_the_folder_of_a_finished_stage_is_printed(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root in (tmp_path / "runs" / "small", tmp_path / "elsewhere"):
        (root / "reason").mkdir(parents=True)
        (root / "reason" / "stage.json").write_text(json.dumps({"stage": "reason", "wall_s": 1.0}), encoding="utf-8")
    assert main(["train", "reason", recipe]) == 0
    assert capsys.readouterr().out == "runs/small/reason\n"
    assert main(["train", "reason", recipe, "--out", str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'elsewhere' / 'reason'}\n"


@pytest.mark.parametrize("words", [["--help"], ["reason", "--help"]])
def test_help_needs_no_training_library(words: list[str]) -> None:
    assert "usage: emocaliber train" in without_torch("train", *words).stdout


def test_a_missing_library_is_named_with_its_remedy(recipe: str) -> None:
    done = without_torch("train", "reason", recipe)
    assert (done.returncode, done.stdout) == (1, "")
    expected = "'emocaliber train' needs torch, which is not installed; run: pip install 'emocaliber[train]'"
    assert done.stderr == f"emocaliber: error: {expected}\n"


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command where torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None; from emocaliber.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, timeout=60)
