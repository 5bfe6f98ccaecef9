"""The table of what was tried: every test it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="a source distribution has no documents")
def test_every_row_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "runtime").glob("*.py"))
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| Tried")]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[3])
        assert named, row
        assert [name for name in named if f"def {name}(" not in tests] == []
