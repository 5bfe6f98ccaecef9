"""Where a run keeps what it makes, and the samples it works on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.samples import Sample, read_samples

from .launch import processes
from .recipe import Recipe
from .scenes import write_scenes
from .sets import gather_sets

SCENES, SETS = "scenes:", "sets:"
"""How `DataRecipe.samples` begins where it is no samples file."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one run; every stage has a folder or file of its own in it."""

    root: Path

    @property
    def data(self) -> Path:
        """Procedural scenes or gathered sets, where the recipe asks for them."""
        return self.root / "data"

    @property
    def annotated(self) -> Path:
        """Samples with the confidences of stage *annotate*."""
        return self.root / "annotated.jsonl"

    @property
    def traces(self) -> Path:
        """Parquet shards of the teacher's traces."""
        return self.root / "traces"

    @property
    def bundle(self) -> Path:
        """The exported student."""
        return self.root / "bundle"

    def responses(self, stage: str) -> Path:
        """Returns the file of what a stage's model answers to held-out samples."""
        return self.root / f"responses-{stage}.jsonl"

    def stage(self, name: str) -> Path:
        """Returns the folder of a stage that trains a model: reason, verbalize, calibrate or student."""
        return self.root / name


def load_samples(
    recipe: Recipe, workspace: Workspace, split: str, source: str | None = None, *, foreign: bool = False
) -> list[Sample]:
    """Returns the samples of one split and of the recipe's taxonomies, making or gathering them first where asked for.

    Args:
        recipe: The run.
        workspace: Its folder.
        split: ``train``, ``calibration``, ``test`` or any other that the file has.
        source: A stage's own samples file; None takes the one of ``[data]``.
        foreign: Whether samples of taxonomies that the recipe does not learn are taken too.

    Raises:
        InputError: If the file cannot be read, or holds no sample of that split and taxonomy.
        ConfigError: If the number of scenes makes no sense, or a set is unknown.
    """
    source = source or recipe.data.samples
    with processes().main_process_first():
        path = _samples_file(recipe, workspace, source)
    samples = [sample for sample in read_samples(path, split) if foreign or sample.taxonomy in recipe.taxonomies]
    if not samples:
        wanted = "" if foreign else f" and taxonomy {' or '.join(map(repr, recipe.taxonomies))}"
        raise InputError(f"{path} holds no samples of split {split!r}{wanted}")
    return samples


def _samples_file(recipe: Recipe, workspace: Workspace, source: str) -> Path:
    if source.startswith(SCENES):
        return _scenes(recipe, workspace)
    if source.startswith(SETS):
        return gather_sets(recipe.data, Path(source[len(SETS) :]), workspace.data, recipe.seed)
    return Path(source)


def _scenes(recipe: Recipe, workspace: Workspace) -> Path:
    count = recipe.data.samples[len(SCENES) :]
    if not count.isdigit() or int(count) < 1:
        raise ConfigError(f"data.samples is {recipe.data.samples!r}, expected {SCENES}COUNT, for example {SCENES}4000")
    path = workspace.data / "samples.jsonl"
    if path.is_file():
        return path
    counts = {"train": int(count), "calibration": recipe.data.calibration, "test": recipe.data.test}
    splits = {name: float(number) for name, number in counts.items() if number}
    total = sum(counts.values())
    with tqdm(total=total, desc="scenes", unit="image", file=sys.stderr) as bar:
        return write_scenes(
            workspace.data,
            total,
            recipe.seed,
            splits=splits,
            size=recipe.data.image_size,
            taxonomies=recipe.taxonomies,
            progress=lambda done, _: bar.update(done - bar.n),
        )
