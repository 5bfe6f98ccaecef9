"""Writing files so that a killed process or a full disk never leaves half of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes ``content`` to ``path`` in one step: a reader sees the old file or the whole new one.

    Raises:
        OSError: If the folder cannot be written; no partial file stays.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; what was written there takes its place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``target`` that takes its place when the block ends well, and goes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        yield folder
        folder.chmod(0o755)
        _take_place(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_place(folder: Path, target: Path) -> None:
    """Renames ``folder`` to ``target``; a failure or an interruption in between puts the old one back."""
    old = folder.with_suffix(".old")
    try:
        if target.exists():
            target.rename(old)
        folder.rename(target)
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(target)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits, read in chunks."""
    digest, chunk = hashlib.sha256(), memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()
