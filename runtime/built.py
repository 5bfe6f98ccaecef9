"""What is built from a bundle on the machine that runs it: it stands beside the sealed bundle, with a checked record.

``NAME.KIND/KEY/`` beside the bundle ``NAME`` holds the files and a record of them. The key is a hash of what they were
built from and for, so that what fits no longer is never taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from .bundle import Bundle
from .errors import ArtifactError, ConfigError
from .files import sha256_of
from .manifest import FileRecord
from .records import from_mapping, to_mapping
from .strict_json import parse_json


class Key(Protocol):
    """What files were built from and for."""

    @property
    def digest(self) -> str:
        """Name of their folder."""


class Record(Protocol):
    """What is kept with them."""

    @property
    def key(self) -> Key:
        """What they were built from and for."""

    @property
    def files(self) -> dict[str, FileRecord]:
        """Each file, by its name in the folder."""


R = TypeVar("R", bound=Record)


def built_folder(bundle: Bundle, kind: str) -> Path:
    """Returns the folder beside a bundle in which what is built from it stands, for every key."""
    folder = bundle.folder.resolve()
    return folder.with_name(f"{folder.name}.{kind}")


def graphs_sha256(bundle: Bundle, precision: str) -> str:
    """Returns the hash of the names and hashes of a precision's graphs, and of all weights beside graphs."""
    graphs = bundle.manifest.precisions[precision].names()
    files = bundle.manifest.files
    return sha256_of_json({name: files[name].sha256 for name in files if name in graphs or name.endswith(".onnx_data")})


def sha256_of_json(value: object) -> str:
    """Returns the SHA-256 of a value as sorted JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_records(paths: Iterable[Path]) -> dict[str, FileRecord]:
    """Returns what a record keeps of files, by name."""
    return {path.name: FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size) for path in paths}


def write_record(path: Path, record: object) -> None:
    """Writes a record."""
    path.write_text(json.dumps(to_mapping(record), indent=1) + "\n", encoding="utf-8")


def read_record(kind: type[R], path: Path) -> R:
    """Returns a record, after comparing the files beside it with it.

    Raises:
        ArtifactError: If the record cannot be read or has been moved, or a file is missing or does not match its hash.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"), str(path))
        record = from_mapping(kind, content, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    except ConfigError as error:
        raise ArtifactError(str(error)) from error
    folder = path.parent
    if record.key.digest != folder.name:
        raise ArtifactError(f"{path} describes files of the key {record.key.digest}; it was changed or moved")

    def fault(name: str) -> bool:
        return not (folder / name).is_file() or sha256_of(folder / name) != record.files[name].sha256

    with ThreadPoolExecutor() as pool:
        for name, found in zip(record.files, pool.map(fault, record.files), strict=True):
            if found:
                raise ArtifactError(
                    f"{folder / name} is missing or does not match its SHA-256; it was changed or damaged"
                )
    return record
