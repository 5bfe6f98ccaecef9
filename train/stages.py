"""The teacher's stages in a workspace: each reads what the one before left, and leaves its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.samples import read_samples, write_samples

from .annotate import annotate_confidence
from .models import initial, load_model, load_processor
from .recipe import Recipe
from .reinforce import train_reinforce
from .run import Stage, finished, read_stage
from .supervised import train_supervised
from .vision import train_vision
from .workspace import Workspace, load_samples

LONGEST_RESPONSE = 512
"""Tokens a sampled response may have where a recipe does not say."""


def run_vision(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns the model built from scratch, its vision tower taught to see; pretrained models skip this stage."""
    folder = workspace.stage("vision")
    if finished(folder):
        return read_stage(folder)
    recipe.stage("vision")
    prepare(recipe)
    samples = load_samples(recipe, workspace, "train")
    model, processor = initial(recipe.teacher, samples, recipe.prompt, recipe.seed)
    return train_vision(model, processor, samples, recipe, folder, resume=resume)


def run_reason(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns stage 1: the recipe's model, taught to reason and answer."""
    folder = workspace.stage("reason")
    if finished(folder):
        return read_stage(folder)
    prepare(recipe)
    samples = load_samples(recipe, workspace, "train")
    if recipe.vision is not None:
        before = _before(workspace, "vision")
        model, processor = load_model(before), load_processor(before)
    else:
        model, processor = initial(recipe.teacher, samples, recipe.prompt, recipe.seed)
    return train_supervised("reason", model, processor, samples, recipe, folder, resume=resume)


def run_annotate(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Path:
    """Returns the samples file with confidences from the stage-1 model's own success rate, per mode it was taught."""
    if workspace.annotated.is_file():
        return workspace.annotated
    prepare(recipe)
    folder = _before(workspace, "reason")
    model, processor = load_model(folder), load_processor(folder)
    samples = load_samples(recipe, workspace, "train")
    annotated = annotate_confidence(
        model, processor, samples, recipe, mode="reason", max_new_tokens=longest_response(recipe)
    )
    write_samples(annotated, workspace.annotated)
    return workspace.annotated


def run_verbalize(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns stage 2: the stage-1 model, taught to state its confidence after the answer."""
    folder = workspace.stage("verbalize")
    if finished(folder):
        return read_stage(folder)
    prepare(recipe)
    before = _before(workspace, "reason")
    if not workspace.annotated.is_file():
        raise ArtifactError(f"{workspace.annotated} is missing; run 'emocaliber train annotate' first")
    samples = read_samples(workspace.annotated)
    model, processor = load_model(before), load_processor(before)
    return train_supervised("verbalize", model, processor, samples, recipe, folder, resume=resume)


def run_calibrate(recipe: Recipe, workspace: Workspace, *, resume: bool = False) -> Stage:
    """Returns stage 3: the stage-2 model, reinforced until its confidence means what it says."""
    folder = workspace.stage("calibrate")
    if finished(folder):
        return read_stage(folder)
    prepare(recipe)
    before = _before(workspace, "verbalize")
    samples = load_samples(recipe, workspace, "train")
    return train_reinforce(before, load_processor(before), samples, recipe, folder, resume=resume)


STAGES: dict[str, Callable[..., Stage | Path]] = {
    "vision": run_vision,
    "reason": run_reason,
    "annotate": run_annotate,
    "verbalize": run_verbalize,
    "calibrate": run_calibrate,
}
"""The teacher's stages in order."""


def prepare(recipe: Recipe) -> None:
    """Sets the number of threads and keeps the hub silent, once a stage is about to run."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def longest_response(recipe: Recipe) -> int:
    """Returns how many tokens a sampled response may have: what stage 3 allows, where the recipe has one."""
    return recipe.calibrate.max_new_tokens if recipe.calibrate is not None else LONGEST_RESPONSE


def _before(workspace: Workspace, name: str) -> Path:
    folder = workspace.stage(name)
    if not finished(folder):
        raise ArtifactError(f"{folder} holds no finished stage; run 'emocaliber train {name}' first")
    return folder
