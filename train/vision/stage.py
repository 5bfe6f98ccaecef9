"""Stage *vision*: first the teachers, where the recipe has any, then the tower."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.samples import Sample
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import CHECKPOINTS, Stage, last_checkpoint, save_stage
from emocaliber.train.stage_recipes import VisionRecipe

from .augmentation import Augmentation
from .images import Images, balanced
from .labels import LabelBlocks
from .probe import LastSteps, Probe, Weights
from .teachers import taught_sets, train_teachers
from .training import train_epochs


def train_vision(
    model: Any, processor: Any, samples: Sequence[Sample], recipe: Recipe, folder: Path, *, resume: bool = False
) -> Stage:
    """Returns the finished stage: ``model`` with a vision tower that sees, saved to ``folder``.

    Args:
        model: Idefics3 model with random weights; tower and connector are trained in place.
        processor: Its processor.
        samples: Training samples with votes or answers, and reasoning where there is any.
        recipe: The run; its ``vision`` table holds the hyper-parameters.
        folder: Where the model goes.
        resume: Continue from the newest checkpoint in ``folder``.

    Raises:
        InputError: If a sample has neither votes nor an answer.
        ConfigError: If an unfinished run is in the way, or the groups do not fit the samples.
    """
    table: VisionRecipe = recipe.stage("vision")
    started = time.perf_counter()
    checkpoint = last_checkpoint(folder, resume=resume)
    # Teachers stand beside the tower's own checkpoints and go with them when the stage has been saved.
    runs = folder / CHECKPOINTS
    if not resume and any(runs.glob("teacher-*")):
        raise ConfigError(f"{folder} holds an unfinished run; continue it with --resume, or remove the folder")
    blocks = LabelBlocks(samples, recipe.data.sets)
    augmentation, last = _augmentations(table, blocks, model.config.vision_config.image_size, processor)
    images = Images(samples, blocks, processor, augmentation.source_side)
    grid = model.config.vision_config.image_size // model.config.vision_config.patch_size
    teachers = train_teachers(images, blocks, augmentation, recipe, runs, grid, resume=resume)
    torch.manual_seed(recipe.seed)
    weights = Weights(votes=table.votes_weight, distill=table.distill_weight, feature=table.feature_weight)
    probe = Probe(model, blocks, images.word_count, augmentation, weights, teachers)
    order = balanced(images.sets, range(len(images)), table.balance)
    kept = nn.ModuleList([probe.tower, probe.connector])
    watchers = [] if last is None else [LastSteps(probe, last, table.last_share)]
    history = train_epochs("vision", probe, kept, images, order, table, recipe, folder, checkpoint, watchers)
    return save_stage("vision", folder, model, processor, recipe, started=started, history=history)


def _augmentations(
    table: VisionRecipe, blocks: LabelBlocks, side: int, processor: Any
) -> tuple[Augmentation, Augmentation | None]:
    """Returns what happens to the images of each label set, and what does in the last steps, if it is something else.

    It is what their group asks for, else what the stage does.

    Raises:
        ConfigError: If a group has no label set, a label set two groups, or a teacher larger images than the tower.
    """
    first = [table.augment] * len(blocks.sets)
    last = list(first)
    owners: dict[int, str] = {}
    known = sorted({name for each in blocks.sets for name in each.names})
    for name, group in table.groups.items():
        if group.teachers and group.side > side:
            raise ConfigError(f"vision.groups.{name}.side is {group.side}, above the {side} pixels of the tower")
        places = taught_sets(group, blocks).nonzero()[:, 0].tolist()
        if not places:
            raise ConfigError(f"vision.groups.{name} names {list(group.sets)}; the samples are of {', '.join(known)}")
        for place in places:
            if place in owners:
                raise ConfigError(f"{blocks.sets[place].source} is in vision.groups.{owners[place]} and .{name}")
            owners[place] = name
            first[place] = group.augment or table.augment
            last[place] = group.last_augment or first[place]
    made = Augmentation(first, side, processor.image_processor)
    return made, None if last == first else Augmentation(last, side, processor.image_processor)
