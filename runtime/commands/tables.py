"""The output files of ``batch``: JSON Lines, CSV or Parquet, each written from collected JSON lines, in one step.

CSV and Parquet have the columns `COLUMNS`: those of a JSON line in its order, then the two of an error. In CSV nested
values are JSON, and null is an empty cell. In Parquet ``distribution``, ``reasoning`` and ``timing_ms`` are maps,
``prediction_set`` is a list, ``bundle`` a struct, whose ``source`` is null where the bundle was not fetched.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from emocaliber.runtime.errors import DependencyError
from emocaliber.runtime.files import atomic_path
from emocaliber.runtime.prediction import BUNDLE_KEYS, BUNDLE_SOURCE, LINE_KEYS

COLUMNS = (*LINE_KEYS, "error_type", "error_message")

ROW_GROUP = 10_000
"""Rows of Parquet that are in memory together."""


def write_table(lines: BinaryIO, path: Path) -> None:
    """Writes the rest of a stream of JSON lines as the file that the suffix of ``path`` names.

    Raises:
        DependencyError: If the format needs a library that is not installed.
        OSError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        _WRITERS[path.suffix.lower()](lines, temporary)


def check_suffix(path: Path) -> None:
    """Refuses, before any work, a format that cannot be written here.

    Raises:
        DependencyError: If the format needs a library that is not installed.
    """
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def _write_jsonl(lines: BinaryIO, path: Path) -> None:
    with path.open("wb") as stream:
        shutil.copyfileobj(lines, stream)


def _write_csv(lines: BinaryIO, path: Path) -> None:
    # A file name that is no text has lone surrogates, which UTF-8 cannot carry.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(value) for value in row.values()] for row in _rows(lines))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _write_parquet(lines: BinaryIO, path: Path) -> None:
    pyarrow, parquet = _pyarrow()
    text, number = pyarrow.string(), pyarrow.float64()
    kinds = {
        "confidence": number,
        "coverage": number,
        "verbalized_confidence": number,
        "calibrated": pyarrow.bool_(),
        "distribution": pyarrow.map_(text, number),
        "timing_ms": pyarrow.map_(text, number),
        "reasoning": pyarrow.map_(text, text),
        "prediction_set": pyarrow.list_(text),
        "bundle": pyarrow.struct([(key, text) for key in (*BUNDLE_KEYS, BUNDLE_SOURCE)]),
    }
    schema = pyarrow.schema([(name, kinds.get(name, text)) for name in COLUMNS])
    maps = [name for name, kind in kinds.items() if pyarrow.types.is_map(kind)]
    rows = _rows(lines)
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROW_GROUP)):
            for row in group:
                row["image"] = _as_utf8(row["image"])
                row["error_message"] = row["error_message"] and _as_utf8(row["error_message"])
                row.update({name: list(row[name].items()) for name in maps if row[name] is not None})
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _as_utf8(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yields each JSON line as a row with all of `COLUMNS`."""
    for line in lines:
        content = json.loads(line)
        error = content.get("error", {})
        row = {key: content.get(key) for key in LINE_KEYS}
        yield {**row, "error_type": error.get("type"), "error_message": error.get("message")}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError(
            f"writing Parquet needs pyarrow ({error}); run: pip install 'emocaliber[parquet]', or write .jsonl or .csv"
        ) from error
    return pyarrow, pyarrow.parquet


_WRITERS: dict[str, Callable[[BinaryIO, Path], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}

SUFFIXES = tuple(_WRITERS)
