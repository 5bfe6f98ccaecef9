"""A recipe and scenes so small that every trainer can run in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample, read_samples
from emocaliber.train.recipe import Recipe
from emocaliber.train.scenes import write_scenes

_BUILD = {
    "image_size": 32,
    "patch_size": 16,
    "scale_factor": 1,
    "max_positions": 256,
    "vocab_size": 500,
    "vision": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2},
    "text": {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2, "kv_heads": 1},
}
_SUPERVISED = {"learning_rate": 5e-3, "batch_size": 4, "epochs": 1}


def recipe_mapping(**changes: Any) -> dict[str, Any]:
    """Returns a whole recipe as a TOML file would hold it, with other tables or values where ``changes`` says so."""
    mapping: dict[str, Any] = {
        "name": "tiny",
        "prompt": {"reason": "Feel? [{labels}] Think.", "direct": "Feel? [{labels}]"},
        "data": {"samples": "scenes:8", "calibration": 4, "test": 4, "image_size": 32},
        "teacher": {"build": _BUILD},
        "vision": {"learning_rate": 2e-3, "batch_size": 4, "epochs": 1},
        "reason": {**_SUPERVISED, "direct_share": 0.5},
        "annotate": {"images": 4, "samples": 2, "batch_size": 4},
        "verbalize": {**_SUPERVISED, "direct_share": 0.5},
        "calibrate": {
            "learning_rate": 1e-4,
            "steps": 2,
            "prompts_per_step": 2,
            "rollouts": 2,
            "max_new_tokens": 12,
            "direct_share": 0.5,
        },
        "collect": {"images": 8, "samples": 1, "batch_size": 8},
        "student": {"model": {"build": _BUILD}, "learning_rate": 5e-3, "batch_size": 4, "epochs": 1},
        "bundle": {"name": "tiny", "license": "Apache-2.0"},
    }
    return {**mapping, **changes}


def tiny_recipe(**changes: Any) -> Recipe:
    """Returns the tiny recipe, with other tables or values where ``changes`` says so."""
    return from_mapping(Recipe, recipe_mapping(**changes), "tiny recipe")


def scene_samples(folder: Path, count: int, *, seed: int = 1) -> list[Sample]:
    """Returns ``count`` training samples of 32-pixel scenes, drawn into ``folder``."""
    return read_samples(write_scenes(folder, count, seed, splits={"train": 1.0}, size=32))
