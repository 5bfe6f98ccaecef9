"""Recipes: everything a run of the pipeline can vary, as frozen records read from one TOML file.

Each stage has a table of its own; a stage that a recipe leaves out cannot be run from it. Relative paths are relative
to the working directory, as on a command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from emocaliber.runtime.bundle_recipe import BundleRecipe
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.taxonomy import TAXONOMIES

from .model_recipe import LoraRecipe, ModelRecipe, positive
from .stage_recipes import (
    AnnotateRecipe,
    CollectRecipe,
    ReinforceRecipe,
    RespondRecipe,
    StudentRecipe,
    SupervisedRecipe,
    VisionRecipe,
)
from .student_recipes import GroundRecipe, OnPolicyRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRecipe:
    """How one published set is imported."""

    taxonomies: tuple[str, ...] | None = None
    """Label sets it is written for; None takes the set's first."""
    splits: dict[str, float] = field(default_factory=dict)
    """Name and share of each split; empty takes `DataRecipe.splits`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """Which samples are used for what."""

    samples: str
    """Samples file; or ``scenes:COUNT`` for procedural scenes; or ``sets:FOLDER`` for published sets, a folder each."""
    sets: tuple[str, ...] = ()
    """Of ``sets:FOLDER``, which are used: imported as by ``emocaliber data import``, reasoning made from cues."""
    splits: dict[str, float] = field(default_factory=dict)
    """Of ``sets:FOLDER``, name and share of each split; empty for each set's own."""
    options: dict[str, SetRecipe] = field(default_factory=dict)
    """Of ``sets:FOLDER``, what is asked of single sets, by their names."""
    annotations: tuple[str, ...] = ()
    """Of ``sets:FOLDER``, which of a set's own notes about an image its reasoning may tell, besides measured cues."""
    balance: float = 1.0
    """Where a stage takes only some of the samples: of a taxonomy with n in proportion to ``n ** balance``."""
    calibration: int = 0
    """For scenes: how many more are made for the calibration split."""
    test: int = 0
    """For scenes: how many more are made for the test split."""
    image_size: int = 96
    """For scenes: side in pixels."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.balance <= 1.0:
            raise ConfigError(f"balance is {self.balance!r}, expected a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecipe:
    """How many processes train, and what they share."""

    processes: int = 1
    """One per GPU; on a machine without one, processes of the CPU."""
    shard: bool = False
    """Whether weights, gradients and optimiser state are spread over the processes (FSDP), not copied to each."""

    def __post_init__(self) -> None:
        positive(self, "processes")
        if self.shard and self.processes == 1:
            raise ConfigError("shard spreads the weights over processes, but processes is 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One pipeline, from samples to bundle."""

    name: str
    seed: int = 0
    threads: int | None = None
    """CPU threads; None leaves it to the libraries."""
    taxonomies: tuple[str, ...] = ("emotion6-7",)
    """Label sets the run learns; samples of others are left out."""
    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    data: DataRecipe
    teacher: ModelRecipe
    lora: LoraRecipe | None = None
    """Train adapters instead of all of the teacher's weights."""
    launch: LaunchRecipe = field(default_factory=LaunchRecipe)
    vision: VisionRecipe | None = None
    reason: SupervisedRecipe | None = None
    annotate: AnnotateRecipe | None = None
    verbalize: SupervisedRecipe | None = None
    calibrate: ReinforceRecipe | None = None
    respond: RespondRecipe = field(default_factory=RespondRecipe)
    collect: CollectRecipe | None = None
    student: StudentRecipe | None = None
    on_policy: OnPolicyRecipe | None = None
    ground: GroundRecipe | None = None
    bundle: BundleRecipe | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.taxonomies if name not in TAXONOMIES]
        if unknown or not self.taxonomies:
            raise ConfigError(f"taxonomies are {list(self.taxonomies)}, known: {', '.join(TAXONOMIES)}")
        teacher, student = self.teacher.build, None if self.student is None else self.student.model.build
        if teacher is not None and student is not None:
            sizes = [(build.image_size, build.visual_tokens) for build in (teacher, student)]
            if sizes[0] != sizes[1]:
                raise ConfigError(
                    f"a student built from scratch reads images with the teacher's processor, but (image_size, visual "
                    f"tokens) are {sizes[0]} of the teacher and {sizes[1]} of the student"
                )

    @property
    def taxonomy(self) -> str:
        """The one label set of the run.

        Raises:
            ConfigError: If there are several; what follows the teacher takes one at a time.
        """
        if len(self.taxonomies) != 1:
            raise ConfigError(f"recipe {self.name} has the taxonomies {', '.join(self.taxonomies)}, expected one here")
        return self.taxonomies[0]

    @property
    def student_prompt(self) -> PromptTemplate:
        """What the student is asked; always before it sees the image, so that it is read once for all images."""
        if self.student is not None and self.student.prompt is not None:
            return self.student.prompt
        return replace(self.prompt, image_first=False)

    def stage(self, name: str) -> Any:
        """Returns the table of a stage.

        Raises:
            ConfigError: If the recipe has no such table.
        """
        table = getattr(self, name)
        if table is None:
            raise ConfigError(f"recipe {self.name} has no [{name}] table, so this stage cannot run from it")
        return table


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe in a TOML file, with ``key.path=value`` overrides applied.

    An override's value is read as TOML; what is not TOML is taken as text.

    Raises:
        ConfigError: If the file is missing or not TOML, or the recipe has faults; all faults are named at once.
    """
    try:
        mapping = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from error
    for override in overrides:
        _apply_override(mapping, override)
    return from_mapping(Recipe, mapping, f"recipe {path}")


def shipped_recipe(name: str) -> Path:
    """Returns the path of a recipe that comes with the package."""
    return Path(str(files("emocaliber.recipes").joinpath(name))) / "recipe.toml"


def _apply_override(mapping: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: expected key=value, for example reason.learning_rate=1e-5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.split(".")
    for table in tables:
        mapping = mapping.setdefault(table, {})
        if not isinstance(mapping, dict):
            raise ConfigError(f"--set {override!r}: {table} is not a table")
    mapping[last] = value
