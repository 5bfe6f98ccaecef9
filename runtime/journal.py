"""What a long work has done so far, one JSON line an item, so that after a kill it goes on where it stopped.

The first line holds the settings the work depends on: a journal of other settings is refused, not continued.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import ArtifactError, ConfigError
from .files import atomic_write


class Journal:
    """The items of one work that are done, in order, on disk and in memory."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, chunk: int, total: int) -> None:
        """Opens the journal at ``path``, or begins it.

        Args:
            path: The file.
            settings: All that the items depend on, as plain values.
            chunk: Items that are added at once. Of a torn chunk nothing is kept, because its items may have been drawn
                together by chance.
            total: Items the work has.

        Raises:
            ConfigError: If the file is of a work with other settings.
            ArtifactError: If the file is damaged.
            OSError: If it cannot be written.
        """
        self._path = path
        self.items: list[Any] = []
        """What is done, in order."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, _line(dict(settings)))
            return
        lines = path.read_bytes().splitlines(keepends=True)
        complete = [line for line in lines[1:] if line.endswith(b"\n")][:total]
        if len(complete) < total:
            complete = complete[: len(complete) // chunk * chunk]
        try:
            stored = dict(json.loads(lines[0]))
            self.items = [json.loads(line) for line in complete]
        except (IndexError, ValueError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({error!r}); delete it to start over") from error
        refuse_other(path, stored, settings)
        os.truncate(path, sum(map(len, [lines[0], *complete])))

    def add(self, items: Sequence[Any]) -> None:
        """Adds finished items; when it returns, they are safe.

        Raises:
            OSError: If they cannot be written.
        """
        with self._path.open("ab") as stream:
            stream.write("".join(map(_line, items)).encode())
            stream.flush()
            os.fsync(stream.fileno())
        self.items += items

    def delete(self) -> None:
        """Removes the file, once the results of the work stand elsewhere."""
        self._path.unlink(missing_ok=True)


def refuse_other(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses to go on with what was made with other settings.

    Raises:
        ConfigError: With every setting that differs.
    """
    asked = json.loads(json.dumps(asked))
    changed = [key for key in sorted({*stored, *asked}) if stored.get(key) != asked.get(key)]
    if changed:
        faults = "; ".join(f"{key} was {_short(stored.get(key))}, now {_short(asked.get(key))}" for key in changed)
        raise ConfigError(
            f"{path} was made with other settings ({faults}); give the same ones, or choose another output"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
