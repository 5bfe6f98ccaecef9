"""VECBench: its nine tasks, its three groups, and what the paper reports on them (Wu et al. 2025, arXiv 2512.15528)."""

from __future__ import annotations

from dataclasses import dataclass

GROUPS: dict[str, tuple[str, ...]] = {
    "ID VER": ("EmoSet-8", "FI-8", "WebEmo-7", "WebEmo-25"),
    "ID VSA": ("FI-2", "WebEmo-2"),
    "OOD VER": ("UnbiasedEmo-6", "Abstract-8", "Artphoto-8"),
}
"""Group to its tasks: recognition and polarity on the sets of training, and recognition on unseen sets."""

_MISSPELT = {"unbaisedemo-6": "UnbiasedEmo-6"}
_TASKS = {task.casefold(): task for tasks in GROUPS.values() for task in tasks} | _MISSPELT
_GROUP_OF = {task: group for group, tasks in GROUPS.items() for task in tasks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Figures of EmoCaliber as the paper prints them, as fractions; None where it prints none."""

    acc: float
    """Accuracy; of a group, the mean over its tasks."""
    f1: float | None = None
    """Weighted F1."""
    ece: float | None = None
    """ECE over ten bins, samples pooled."""
    brier: float | None = None
    """Brier score, samples pooled."""
    auroc: float | None = None
    """AUROC, samples pooled."""


PUBLISHED: dict[str, Published] = {
    "EmoSet-8": Published(acc=0.6810, f1=0.6772),
    "FI-8": Published(acc=0.6970, f1=0.7000),
    "WebEmo-7": Published(acc=0.5400, f1=0.5281),
    "WebEmo-25": Published(acc=0.2828, f1=0.2428),
    "FI-2": Published(acc=0.8810, f1=0.8816),
    "WebEmo-2": Published(acc=0.7580, f1=0.7578),
    "UnbiasedEmo-6": Published(acc=0.7990, f1=0.8041),
    "Abstract-8": Published(acc=0.2926, f1=0.2994),
    "Artphoto-8": Published(acc=0.4194, f1=0.4184),
    "ID VER": Published(acc=0.5503, ece=0.1363, brier=0.2277, auroc=0.7090),
    "ID VSA": Published(acc=0.8195, ece=0.0476, brier=0.1468, auroc=0.6609),
    "OOD VER": Published(acc=0.5037, ece=0.1217, brier=0.2241, auroc=0.7217),
}
"""Task or group to the paper's figures."""


def canonical_task(name: str) -> str:
    """Returns the task as VECBench spells it: case and the known misspelling set right; other names as they are.

    So our taxonomy ``emoset-8`` is the task ``EmoSet-8``.
    """
    return _TASKS.get(name.casefold(), name)


def group_of(task: str) -> str | None:
    """Returns the group of a task under any spelling that `canonical_task` knows, or None outside VECBench."""
    return _GROUP_OF.get(canonical_task(task))
