"""Splits that do not leak: decided by a hash, whole groups at a time, one picture in one split."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from emocaliber.runtime.files import sha256_of

from .entries import Entry

DEFAULT_SPLITS: Mapping[str, float] = {"train": 0.7, "calibration": 0.15, "test": 0.15}

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "calibration": "calibration", "test": "test", "testing": "test", "publictest": "validation", "privatetest": "test",
}  # fmt: skip
"""What published sets call their splits: what we call them. FER2013 validates on its public test set."""

_HELD_OUT = {"train": 0, "validation": 1, "calibration": 2, "test": 3}


def split_of(key: str, splits: Mapping[str, float], seed: int) -> str:
    """Returns the split of ``key``: a hash of the seed and the key, in [0, 1), falls into a split's share of it."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64 * sum(splits.values())
    for name, share in splits.items():
        position -= share
        if position < 0:
            return name
    return next(reversed(list(splits)))


def assign_splits(entries: Sequence[Entry], splits: Mapping[str, float] | None, seed: int) -> list[Entry]:
    """Returns the entries with a split each.

    Images of one group, and byte-identical image files, get the same split, and so do all entries linked by a chain
    of these.

    Args:
        entries: Entries whose images exist.
        splits: Shares for all entries; None: entries keep the split the set puts them in, the rest get
            `DEFAULT_SPLITS`.
        seed: Another seed, other splits.
    """
    if splits is None and all(entry.split is not None for entry in entries):
        return list(entries)
    components = _components(entries)
    return [
        entry
        if splits is None and entry.split is not None
        else replace(entry, split=split_of(component, splits or DEFAULT_SPLITS, seed))
        for entry, component in zip(entries, components, strict=True)
    ]


def drop_leaks(entries: Sequence[Entry], counts: Counter[str]) -> list[Entry]:
    """Returns the entries without those whose picture, byte for byte, also stands in a split held out further.

    A picture of ``train`` that is also in ``test`` stays in ``test`` only. What is left out is counted.
    """
    pictures = picture_names([entry.image for entry in entries])
    kept: dict[str, str | None] = {}
    for entry in entries:
        picture = pictures[entry.image]
        kept[picture] = max(kept.get(picture, entry.split), entry.split, key=_rank)
    left = [entry for entry in entries if kept[pictures[entry.image]] == entry.split]
    dropped = len(entries) - len(left)
    if dropped:
        counts["left out: the same picture is in a split held out further"] += dropped
    return left


def picture_names(images: Sequence[Path]) -> dict[Path, str]:
    """Returns a name for each image file, the same for files of the same bytes.

    Only files that share their size with another are read: the others have no twin.
    """
    sizes: dict[int, set[Path]] = defaultdict(set)
    for image in images:
        sizes[image.stat().st_size].add(image)
    return {image: sha256_of(image) if len(twins) > 1 else str(image) for twins in sizes.values() for image in twins}


def _rank(split: str | None) -> int:
    return _HELD_OUT.get(split or "", 1)


def _components(entries: Sequence[Entry]) -> list[str]:
    """Returns for each entry the name of its component: the least group (or image name) linked to it."""
    parents: dict[str, str] = {}

    def find(node: str) -> str:
        while (parent := parents.setdefault(node, node)) != node:
            parents[node] = node = parents[parent]
        return node

    pictures = picture_names([entry.image for entry in entries])
    first: dict[str, str] = {}
    nodes = [entry.name if entry.group is None else entry.group for entry in entries]
    for entry, node in zip(entries, nodes, strict=True):
        low, high = sorted((find(first.setdefault(pictures[entry.image], node)), find(node)))
        parents[high] = low
    return [find(node) for node in nodes]
