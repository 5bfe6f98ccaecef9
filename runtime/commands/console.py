"""Writing for people and pipes."""

from __future__ import annotations

import sys
from typing import TextIO

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160), *range(8234, 8239), *range(8294, 8298)), "?")
"""Escape sequences, and marks that turn the direction of writing: names and texts of others are shown, never obeyed."""
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def write_text(text: str, stream: TextIO | None = None) -> None:
    """Writes a line for people; characters the console cannot show, or would obey, become question marks."""
    target = sys.stdout if stream is None else stream
    encoding = target.encoding or "utf-8"
    text = text.translate(_CONTROLS)
    target.write(text.encode(encoding, errors="replace").decode(encoding) + "\n")
    target.flush()
