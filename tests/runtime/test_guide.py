"""The examples of the runtime's guide run as they stand, one after another, in a folder that holds the photograph."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_examples_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "runtime.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 9
    shutil.copy(DOCS / "photo.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, str(DOCS / "runtime.md"), "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    # What the comments say is printed.
    assert "<EmotionModel nano 0.1.0, int8-fp32, onnxruntime-cpu>\n" in printed
    assert "bundle nano has no calibrator for custom (calm, tense, bored) in direct mode at int8-fp32;" in printed
    assert re.search(r"\d ms  analysis: ", printed)
    assert re.search(r"1\.7 s  \w+ \d+%\n", printed)
