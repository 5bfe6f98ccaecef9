"""Bundles packed as one ``.tar``: unpacked without trusting what the archive says about itself."""

from __future__ import annotations

import re
import shutil
import tarfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .errors import ArtifactError

_UNSAFE = re.compile(r'[\\:<>"|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any suffix."""


def is_safe_name(name: str) -> bool:
    """Returns whether a relative POSIX name stays inside its folder, and names a plain file, on every system."""
    return not _UNSAFE.search(name) and all(
        # Windows drops dots and spaces at the end of a name, which covers "." and ".." too.
        part and part == part.rstrip(". ") and not _RESERVED.fullmatch(part)
        for part in name.split("/")
    )


def collisions(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns pairs of names that are one file where case or Unicode form make no difference (macOS, Windows)."""
    seen: dict[str, str] = {}
    pairs = ((name, seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)) for name in names)
    return [(first, name) for name, first in pairs if first != name]


def unpack(archive: Path, folder: Path) -> None:
    """Writes the regular files of an uncompressed tar below ``folder``; modes and owners are not taken over.

    Raises:
        ArtifactError: If it is no tar, is truncated, or holds a link, a device, a sparse file, an unsafe or a double
            name.
    """
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for member in tar:
                _unpack_member(tar, member, folder)
    except ArtifactError:
        raise
    # Headers of headers are read by recursion, and numbers in them are believed.
    except (tarfile.TarError, EOFError, RecursionError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{archive} is not a readable tar archive: {error}") from error
    except OSError as error:
        raise ArtifactError(f"cannot unpack {archive}: {error.strerror or error}") from error


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = member.name.removeprefix("./").rstrip("/")
    if member.isdir() and name in ("", "."):
        return
    if not is_safe_name(name):
        raise ArtifactError(f"archive member {member.name!r} would leave the bundle's folder")
    target = folder.joinpath(*PurePosixPath(name).parts)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    source = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if source is None:
        raise ArtifactError(f"archive member {member.name!r} is not a plain file; links and devices are refused")
    if target.exists():
        raise ArtifactError(f"archive holds {member.name!r} twice")
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
    if target.stat().st_size != member.size:
        raise ArtifactError(f"archive member {member.name!r} is truncated")
