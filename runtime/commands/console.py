"""Writing for people and pipes."""

from __future__ import annotations

import sys
from typing import TextIO


def write_text(text: str, stream: TextIO | None = None) -> None:
    """Writes a line for people; characters the console cannot show become question marks."""
    target = sys.stdout if stream is None else stream
    encoding = target.encoding or "utf-8"
    target.write(text.encode(encoding, errors="replace").decode(encoding) + "\n")
    target.flush()
