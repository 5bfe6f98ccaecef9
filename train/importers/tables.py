"""Annotation tables: comma- or tab-separated text with a header, read so that every fault names its line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emocaliber.runtime.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table."""

    where: str
    """File and line, for messages."""
    cells: dict[str, str]
    """Column name: text without surrounding white space."""

    def number(self, column: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Returns a cell as a finite number in [low, high].

        Raises:
            InputError: If it is none.
        """
        text = self.cells[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            bounds = f" in [{low:g}, {high:g}]" if math.isfinite(low) or math.isfinite(high) else ""
            raise InputError(f"{self.where}: {column} is {text!r}, expected a number{bounds}")
        return value


def read_text(path: Path) -> str:
    """Returns the text of a file, without a byte order mark.

    Raises:
        InputError: If it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start + 1}: {error.reason})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """Returns the column names of a table.

    Raises:
        InputError: If the file cannot be read or is empty.
    """
    return next(_lines(path, delimiter))[1]


def read_table(path: Path, columns: Iterable[str], delimiter: str = ",") -> Iterator[Row]:
    """Yields the rows of a table; empty lines are skipped.

    Args:
        path: The file.
        columns: Columns it must have; it may have more.
        delimiter: What stands between two cells.

    Raises:
        InputError: If a column is missing or a row has too few or too many cells; file and line are named.
    """
    lines = _lines(path, delimiter)
    _, header = next(lines)
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{path}, line 1: no column {', '.join(missing)}; it has {', '.join(header)}")
    for number, cells in lines:
        if not any(cells):
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells under {len(header)} columns")
        yield Row(where=where, cells=dict(zip(header, cells, strict=True)))


def column_of(path: Path, header: Sequence[str], names: Sequence[str]) -> str:
    """Returns the column of ``header`` that bears one of ``names``, in any case.

    Raises:
        InputError: If none does.
    """
    found = next((column for name in names for column in header if column.casefold() == name), None)
    if found is None:
        raise InputError(f"{path}, line 1: no column {' or '.join(names)}; it has {', '.join(header)}")
    return found


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    found = False
    try:
        for cells in reader:
            found = True
            yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    if not found:
        raise InputError(f"{path} is empty")
