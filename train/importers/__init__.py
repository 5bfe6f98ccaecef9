"""Importers: sample sets as their authors publish them, written as our samples file and images."""

from __future__ import annotations

from .base import Imported, Importer, ImportOptions
from .catalog import IMPORTERS, import_set

__all__ = ["IMPORTERS", "ImportOptions", "Imported", "Importer", "import_set"]
