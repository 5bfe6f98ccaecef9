"""The sets that can be imported, and the one way to import them."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from emocaliber.runtime.files import atomic_write, sha256_of

from .base import PUBLISHED_OPTIONS, Imported, Importer, ImportOptions, Progress
from .layouts import labelled_set, read_abstract
from .lines import read_vec_cot, read_vecbench
from .ratings import read_bass, read_oasis
from .scenes import import_scenes
from .votes import read_emotion6, read_ferplus
from .writer import Read, published

_FOLDERS = "folder of class folders, or a CSV of paths and labels"
_SEE_AUTHORS = "as the authors of the set state with it; the images belong to their owners"


def _set(
    name: str, read: Read, source: str, about: str, terms: str = _SEE_AUTHORS, *, options: tuple[str, ...] = ("images",)
) -> Importer:
    return Importer(
        load=published(name, read),
        source=source,
        help=about,
        terms=terms,
        options=PUBLISHED_OPTIONS.union(options),
    )


_LINES = ("images", "taxonomies")
IMPORTERS: dict[str, Importer] = {
    "scenes": Importer(
        load=import_scenes,
        source="number of scenes, such as 4000",
        help="procedural scenes with a known posterior",
        terms="drawn by this package; free of any terms of others",
        options=frozenset({"seed", "size", "splits", "taxonomies"}),
    ),
    "vecbench": _set(
        "vecbench", read_vecbench, "file of test lines, or CSV with image_path, label, task, split",
        "VECBench, nine tasks (Wu et al. 2025)", options=_LINES,
    ),
    "vec-cot": _set(
        "vec-cot", read_vec_cot, "file of ms-swift lines, such as stage1_86k.jsonl",
        "VEC-CoT, reasoning for VECBench (Wu et al. 2025)", options=_LINES,
    ),
    "emotion6": _set(
        "emotion6", read_emotion6, "folder with ground_truth.txt",
        "Emotion6, votes over seven (Peng et al. 2015); sentiment-2 is derived from its valence",
        "academic research only; image copyright stays with the owners; cite Peng et al. 2015", options=_LINES,
    ),
    "oasis": _set(
        "oasis", read_oasis, "folder with OASIS.csv", "OASIS, valence ratings (Kurdi, Lozano, Banaji 2017)",
        "free for research studies; cite Kurdi, Lozano, Banaji 2017",
    ),
    "ferplus": _set(
        "ferplus", read_ferplus, "folder with fer2013new.csv", "FER+, votes over expressions (Barsoum et al. 2016)",
        "labels MIT; the FER2013 images for research; cite Barsoum et al. 2016",
    ),
    "bass": _set(
        "bass", read_bass, "folder with BASS_data.csv", "BASS silhouettes, valence ratings (Kawai, Lukács, Ansorge)",
        "CC BY 4.0; name Kawai, Lukács, Ansorge", options=("images", "raters"),
    ),
    "emoset": _set(
        "emoset", labelled_set("emoset-8"), f"folder with train.json, or {_FOLDERS}", "EmoSet (Yang et al. 2023)"
    ),
    "fi": _set(
        "fi", labelled_set("fi-8", "fi-2"), _FOLDERS, "FI (You et al. 2016); fi-2 is derived", options=_LINES
    ),
    "webemo": _set(
        "webemo", labelled_set("webemo-25", "webemo-7", "webemo-2", numbered=True),
        f"folder with train25.txt and test25.txt, or one such list, {_FOLDERS}",
        "WebEmo (Panda et al. 2018); webemo-7 and webemo-2 are derived from the 25", options=_LINES,
    ),
    "unbiasedemo": _set(
        "unbiasedemo", labelled_set("unbiasedemo-6"), _FOLDERS, "UnbiasedEmo (Panda et al. 2018)"
    ),
    "artphoto": _set(
        "artphoto", labelled_set("artphoto-8", label_in_name=True), f"folder of LABEL_0001.jpg images, {_FOLDERS}",
        "ArtPhoto (Machajdik & Hanbury 2010)",
    ),
    "abstract": _set(
        "abstract", read_abstract, f"folder with ABSTRACT_groundTruth.csv, {_FOLDERS}",
        "Abstract, votes over eight (Machajdik & Hanbury 2010)",
    ),
}  # fmt: skip
"""Name on the command line: importer. A new set is a reader and a line here."""


def import_set(name: str, source: str, folder: Path, options: ImportOptions, progress: Progress) -> Imported:
    """Returns what importing a set wrote: ``samples.jsonl`` and, beside it, ``samples.provenance.json``.

    Raises:
        ConfigError: If the set does not understand an option.
        InputError: If the set is not as its authors publish it; file and line are named.
        OSError: If the folder cannot be written.
    """
    importer = IMPORTERS[name]
    importer.check(name, options)
    imported = importer.load(source, folder, options, progress)
    record = {
        "schema_version": 1,
        "importer": name,
        "emocaliber": version("emocaliber"),
        "source": source,
        "annotations": [{"name": path.name, "sha256": sha256_of(path)} for path in imported.files],
        "options": {key: _plain(value) for key, value in options.given().items()},
        "counts": imported.counts,
        "notes": list(imported.notes),
        "terms": importer.terms,
        "samples_sha256": sha256_of(imported.samples),
    }
    path = imported.samples.with_suffix(".provenance.json")
    atomic_write(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return imported


def _plain(value: object) -> object:
    return [str(item) for item in value] if isinstance(value, tuple) else value
