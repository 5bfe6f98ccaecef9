"""Runs ``emocaliber data import`` on small handmade sets in their published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from emocaliber.runtime.cli import main


def picture(path: Path, shade: int = 0) -> Path:
    """Writes an image of 4 x 4 pixels; equal shades give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 7)).save(path, format=kind)
    return path


def run_import(name: str, source: Path, out: Path, *words: str) -> int:
    """Returns the exit status of the command."""
    return main(["data", "import", name, str(source), str(out), *words])


def imported(name: str, source: Path, out: Path, *words: str) -> dict[str, dict[str, Any]]:
    """Returns the lines written, keyed by id; the import must succeed."""
    assert run_import(name, source, out, *words) == 0
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


def provenance(out: Path) -> dict[str, Any]:
    """Returns the record beside the samples."""
    record: dict[str, Any] = json.loads((out / "samples.provenance.json").read_text(encoding="utf-8"))
    return record
