"""Importers: sample sets as their authors publish them, written as our samples file and images."""

from __future__ import annotations

from .base import Importer, ImportOptions
from .scenes import import_scenes

IMPORTERS: dict[str, Importer] = {
    "scenes": Importer(
        load=import_scenes, source="number of scenes, such as 4000", help="procedural scenes with a known posterior"
    ),
}
"""Name on the command line: importer. A new set is a module beside this one and a line here."""

__all__ = ["IMPORTERS", "ImportOptions", "Importer"]
