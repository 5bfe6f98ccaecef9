"""Where the images are that published lines name relative to a root nobody else has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emocaliber.runtime.errors import InputError

_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class Places:
    """Finds images below a few roots, whatever leading folders their authors' paths have."""

    roots: Sequence[Path]
    """Folders to look in, the likeliest first."""
    _dropped: int = field(default=0, init=False)
    """How many leading folders the last path that was found had too many."""

    def find(self, image: str, where: str) -> Path:
        """Returns the file that ``image`` means, or the likeliest place where it is not.

        The path is tried as it is, then below each root, then without its first folder, its first two, and so on; its
        last folder always stays, so that equal file names of different folders are not mixed up.

        Raises:
            InputError: If it is empty, a web address or inline data: images must be local files.
        """
        text = image.strip().replace("\\", "/")
        if not text or (_URL.match(text) and not re.match(r"[a-z]:/", text, re.IGNORECASE)):
            raise InputError(f"{where}: image is {image[:60]!r}, expected the path of a local file")
        path = Path(text.removeprefix("file://"))
        if path.is_absolute() and path.is_file():
            return path
        parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
        last = max(len(parts) - 2, 0)
        for drop in sorted(range(last + 1), key=lambda drop: (drop != self._dropped, drop)):
            for root in self.roots:
                candidate = root.joinpath(*parts[drop:])
                if candidate.is_file():
                    self._dropped = drop
                    return candidate
        return self.roots[0].joinpath(*parts)
