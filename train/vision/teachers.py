"""Small convolutional networks that learn from few images quickly, and then show the tower what they see.

A transformer has to learn from data that neighbouring pixels belong together; a convolution knows. A recipe may
therefore train residual networks (He et al. 2016, arXiv 1512.03385) on groups of label sets first, from scratch, and
let the tower learn from the mean of their answers and from their maps.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from emocaliber.evaluate.convolutional import ResidualBlock, normed
from emocaliber.runtime.files import atomic_write
from emocaliber.train.launch import processes
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import CHECKPOINTS, last_checkpoint
from emocaliber.train.stage_recipes import GroupRecipe, VisionRecipe

from .augmentation import Augmentation
from .images import Images, balanced
from .labels import LabelBlocks
from .training import train_epochs

_WEIGHTS = "teacher.safetensors"
_SEEDS_APART = 1000
"""Between the seeds of the run, of its first teacher, of its second, and so on."""
_STATISTICS_IMAGES = 256
"""Images by which the channels of the maps are standardised."""
_BATCH = 64


class ResidualNet(nn.Module):
    """A stem, one residual block a width, each but the first at half the resolution, and a head on the mean."""

    def __init__(self, group: GroupRecipe, labels: int) -> None:
        """Has random weights drawn from torch's own random numbers."""
        super().__init__()
        first, stride = group.widths[0], group.stride
        self.stem = normed(3, first, kernel=2 * stride + 1, stride=stride)
        inputs = (first, *group.widths)
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, stride=2 if place else 1)
            for place, (before, after) in enumerate(zip(inputs, group.widths, strict=False))
        )
        self.dropout = nn.Dropout(group.dropout)
        self.head = nn.Linear(group.widths[-1], labels)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns (N, labels) logits and the maps of the last two blocks, of (N, 3, side, side) images."""
        # The layout that convolutions are quickest in on a CPU.
        maps = [torch.relu(self.stem(images.contiguous(memory_format=torch.channels_last)))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.head(self.dropout(maps[-1].mean(dim=(2, 3)))), maps[-2:]


class _Lessons(nn.Module):
    """A network that learns the labels of its group."""

    def __init__(self, net: ResidualNet, side: int, blocks: LabelBlocks, augmentation: Augmentation) -> None:
        super().__init__()
        self.net = net
        self._side, self._blocks, self._augmentation = side, blocks, augmentation

    def forward(self, pixel_values: torch.Tensor, sets: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the loss: cross-entropy to the label distribution."""
        images, (labels,) = self._augmentation(pixel_values, sets, (labels,))
        logits, _ = self.net(_shrunk(images, self._side))
        return {"loss": nn.functional.cross_entropy(self._blocks.own(logits, sets), labels)}


class Teachers:
    """The finished networks of one group."""

    def __init__(
        self, nets: Sequence[ResidualNet], group: GroupRecipe, blocks: LabelBlocks, grid: int, examples: torch.Tensor
    ) -> None:
        """Freezes the networks and measures their maps.

        Args:
            nets: At least one.
            group: Their table of the recipe.
            blocks: The label sets of the run.
            grid: Tokens along a side of the tower.
            examples: (N, 3, S, S) normalised images.
        """
        self.taught = taught_sets(group, blocks)
        """(sets,) whether a label set is of the group."""
        self.channels = len(nets) * sum(group.widths[-2:])
        """Channels of all maps together."""
        self._nets = [net.to(processes().device).eval().requires_grad_(requires_grad=False) for net in nets]
        self._side, self._blocks, self._grid = group.side, blocks, grid
        maps = torch.cat([self._look(part)[1] for part in examples.to(processes().device).split(_BATCH)])
        self._mean, self._deviation = maps.mean(dim=(0, 1)), maps.std(dim=(0, 1)) + 1e-3

    def __call__(self, images: torch.Tensor, sets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (N, total) mean probabilities, and (N, grid², channels) maps of mean 0 and deviation 1.

        Args:
            images: (N, 3, S, S), normalised.
            sets: (N,) label set of each.
        """
        logits, maps = self._look(images)
        probabilities = [self._blocks.own(each, sets).softmax(dim=1) for each in logits]
        return torch.stack(probabilities).mean(dim=0), (maps - self._mean) / self._deviation

    @torch.no_grad()
    def _look(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        seen = [net(_shrunk(images, self._side)) for net in self._nets]
        maps = torch.cat([_on_grid(each, self._grid) for _, pair in seen for each in pair], dim=1)
        return [logits for logits, _ in seen], maps.flatten(2).transpose(1, 2)


def taught_sets(group: GroupRecipe, blocks: LabelBlocks) -> torch.Tensor:
    """Returns (sets,) whether each label set is of the group."""
    return torch.tensor([not each.names.isdisjoint(group.sets) for each in blocks.sets])


def train_teachers(
    images: Images,
    blocks: LabelBlocks,
    augmentation: Augmentation,
    recipe: Recipe,
    folder: Path,
    grid: int,
    *,
    resume: bool,
) -> list[Teachers]:
    """Returns the teachers of every group that has some; those that ``folder`` holds already are not trained again.

    Args:
        images: All training images.
        blocks: Their label sets.
        augmentation: How they are altered.
        recipe: The run; its ``vision`` table names the groups.
        folder: Where their weights are kept until the stage ends.
        grid: Tokens along a side of the tower.
        resume: Continue from the newest checkpoint of a teacher.

    Raises:
        ConfigError: If an unfinished run is in the way.
    """
    table: VisionRecipe = recipe.stage("vision")
    every = []
    number = 0
    for name, group in table.groups.items():
        if not group.teachers:
            continue
        members = taught_sets(group, blocks)[images.sets].nonzero()[:, 0].tolist()
        nets = []
        for _ in range(group.teachers):
            number += 1
            own = dataclasses.replace(recipe, seed=recipe.seed + number * _SEEDS_APART)
            torch.manual_seed(own.seed)
            lessons = _Lessons(ResidualNet(group, blocks.total), group.side, blocks, augmentation)
            where = folder / f"teacher-{name}-{number}"
            nets.append(
                _trained(lessons, images, balanced(images.sets, members, table.balance), group, own, where, resume)
            )
        chosen = members[:: -(-len(members) // _STATISTICS_IMAGES)]
        examples = augmentation.plain(torch.stack([images[index]["pixel_values"] for index in chosen]))
        every.append(Teachers(nets, group, blocks, grid, examples))
    return every


def _trained(
    lessons: _Lessons,
    images: Images,
    order: list[int],
    group: GroupRecipe,
    recipe: Recipe,
    folder: Path,
    resume: bool,
) -> ResidualNet:
    weights = folder / _WEIGHTS
    if not weights.is_file():
        table = dataclasses.replace(recipe.stage("vision"), learning_rate=group.learning_rate, epochs=group.epochs)
        checkpoint = last_checkpoint(folder, resume=resume)
        train_epochs(folder.name, lessons, lessons.net, images, order, table, recipe, folder, checkpoint)
        place = processes()
        if place.is_main_process:
            state = {name: value.cpu().contiguous() for name, value in lessons.net.state_dict().items()}
            atomic_write(weights, save(state))
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        place.wait_for_everyone()
    lessons.net.load_state_dict(load_file(weights))
    return lessons.net


def _shrunk(images: torch.Tensor, side: int) -> torch.Tensor:
    return images if images.shape[-1] == side else nn.functional.adaptive_avg_pool2d(images, side)


def _on_grid(maps: torch.Tensor, grid: int) -> torch.Tensor:
    """Returns (N, C, H, W) maps with one value for each cell of the grid."""
    if maps.shape[-1] > grid:
        return nn.functional.adaptive_avg_pool2d(maps, grid)
    return nn.functional.interpolate(maps, (grid, grid), mode="bilinear", align_corners=False)
