"""Writing bundle folders: everything beside the target first, checked, then renamed into place in one step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .calibration import Calibrator, write_calibrators
from .errors import ExportError
from .files import atomic_write, sha256_of, staged
from .manifest import CALIBRATION_NAME, MANIFEST_NAME, MODEL_CARD_NAME, PARITY_NAME, FileRecord
from .model_card import model_card
from .parity import ParityReport, read_parity
from .records import to_mapping


def replace_calibration(
    path: Path,
    calibrators: Sequence[Calibrator],
    *,
    out: Path | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Puts other calibrators into a bundle folder, with its hashes and model card brought up to date.

    A label set that the bundle does not know yet becomes one of its taxonomies.

    Args:
        path: The bundle's folder; without ``out`` it is replaced in one step by a changed copy.
        calibrators: All calibrators it will hold.
        out: Where the changed copy goes instead; nothing may stand there.
        metrics: Rows to add to the results of the model card, ``{row: {measure: number or null}}``.
        provenance: Entries to add to the manifest's provenance.

    Raises:
        ArtifactError: If it is no valid bundle, or a calibrator does not belong to it; the bundle is then as it was.
        ExportError: If something stands at ``out``.
    """
    if out is not None:
        check_free(out)
    with Bundle.open(path) as bundle:
        fields = to_mapping(bundle.manifest)
    fields.pop("files")
    fields["provenance"].update(to_mapping(provenance or {}))
    if metrics:
        fields["provenance"]["metrics"] = {**fields["provenance"].get("metrics", {}), **to_mapping(metrics)}
    for calibrator in calibrators:
        fields["taxonomies"].setdefault(calibrator.taxonomy, list(calibrator.labels))
    with staged(out or path) as folder:
        copy = _link_or_copy if out is None else shutil.copy2
        shutil.copytree(path, folder, copy_function=copy, dirs_exist_ok=True)
        write_calibrators(calibrators, folder / CALIBRATION_NAME)
        seal(folder, fields)


def replace_parity(path: Path, parity: ParityReport) -> None:
    """Puts another proof into a bundle folder, which is replaced in one step by a copy that shares its other files.

    Args:
        path: The bundle's folder.
        parity: What its graphs were found to do.

    Raises:
        ArtifactError: If it is no valid bundle; it is then as it was.
    """
    with Bundle.open(path) as bundle:
        fields = to_mapping(bundle.manifest)
    fields.pop("files")
    with staged(path) as folder:
        shutil.copytree(path, folder, copy_function=_link_or_copy, dirs_exist_ok=True)
        write_parity(parity, folder)
        seal(folder, fields)


def write_parity(parity: ParityReport, folder: Path) -> None:
    """Writes ``parity.json`` into a folder that is sealed afterwards."""
    atomic_write(folder / PARITY_NAME, json.dumps(to_mapping(parity), indent=1, allow_nan=False) + "\n")


def seal(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes the model card and ``bundle.json`` for the files that stand in ``folder``, and opens the result.

    Args:
        folder: Holds graphs, tokenizer and ``calibration.json``; every regular file in it becomes part of the bundle.
        fields: The manifest as a mapping, without ``files``.

    Raises:
        ArtifactError: If what stands there is no valid bundle.
    """
    card = folder / MODEL_CARD_NAME
    if not card.exists():
        atomic_write(card, "")
    _write_manifest(folder, fields)
    # Opened twice: the card is written from a manifest that is known to be valid, and changes it.
    with Bundle.open(folder, verify=False) as bundle:
        parity = read_parity(folder / PARITY_NAME) if (folder / PARITY_NAME).is_file() else None
        atomic_write(card, model_card(bundle.manifest, bundle.calibrators, parity))
    _write_manifest(folder, fields)
    Bundle.open(folder, verify=False).close()


def _write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_NAME)
    files = {
        name: FileRecord(sha256=sha256_of(folder / name), size_bytes=(folder / name).stat().st_size) for name in names
    }
    text = json.dumps({**fields, "files": to_mapping(files)}, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(folder / MANIFEST_NAME, text + "\n")


def check_free(target: Path, *, overwrite: bool = False, mark: str = MANIFEST_NAME) -> None:
    """Checks that a folder may be made at ``target``.

    Args:
        target: Where.
        overwrite: Whether a folder that holds ``mark`` may be replaced.
        mark: Name of the file by which a folder of our own is known.

    Raises:
        ExportError: If something stands there that may not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / mark).is_file():
        raise ExportError(f"{target} exists and is not what this command writes (no {mark}); give another place")
    if not overwrite:
        raise ExportError(f"{target} exists; give another place, or ask to overwrite it")


def _link_or_copy(source: str, destination: str) -> None:
    """Links a file, which costs no space, or copies it where links are not possible."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
