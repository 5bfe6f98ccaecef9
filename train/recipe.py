"""Recipes: everything a run of the pipeline can vary, as frozen records read from one TOML file.

Each stage has a table of its own; a stage that a recipe leaves out cannot be run from it. Relative paths are relative
to the working directory, as on a command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from emocaliber.runtime.bundle_recipe import BundleRecipe
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.taxonomy import TAXONOMIES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Precision = Literal["fp32", "bf16"]


def _positive(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not value > 0:
            raise ConfigError(f"{name} is {value!r}, expected a number > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerRecipe:
    """Shape of one transformer of a model built from scratch."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "intermediate_size", "layers", "heads")
        if self.hidden_size % self.heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecipe:
    """An Idefics3/SmolVLM model built from its configuration, with random weights."""

    vision: TowerRecipe
    text: TowerRecipe
    image_size: int
    """Side of the square the vision tower sees, in pixels."""
    patch_size: int
    scale_factor: int = 2
    """Pixel shuffle: a square of ``scale_factor`` × ``scale_factor`` patches becomes one visual token."""
    max_positions: int = 512
    vocab_size: int = 1000
    """Upper bound for the tokenizer trained on the run's own texts."""

    def __post_init__(self) -> None:
        _positive(self, "image_size", "patch_size", "scale_factor", "max_positions", "vocab_size")
        if self.image_size % (self.patch_size * self.scale_factor):
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size × scale_factor "
                f"= {self.patch_size * self.scale_factor}"
            )

    @property
    def visual_tokens(self) -> int:
        """Number of decoder positions one image takes."""
        return (self.image_size // self.patch_size // self.scale_factor) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """Where a model comes from: a local folder or hub name, or built from scratch."""

    path: str | None = None
    build: BuildRecipe | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.build is None):
            raise ConfigError("a model needs either path (a folder or hub name) or a build table")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """Which samples are used for what."""

    samples: str
    """Samples file, or ``scenes:COUNT`` for procedural scenes made on the fly."""
    calibration: int = 0
    """For scenes: how many more are made for the calibration split."""
    test: int = 0
    """For scenes: how many more are made for the test split."""
    image_size: int = 96
    """For scenes: side in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRecipe:
    """First training of the vision tower of a model built from scratch; pretrained models need none."""

    learning_rate: float
    batch_size: int
    epochs: float
    warmup: float = 0.05
    weight_decay: float = 0.05
    save_steps: int = 500

    def __post_init__(self) -> None:
        _positive(self, "learning_rate", "batch_size", "epochs", "save_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedRecipe:
    """Supervised fine-tuning (stages *reason* and *verbalize*)."""

    learning_rate: float
    batch_size: int
    epochs: float = 1.0
    gradient_accumulation: int = 1
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    precision: Precision = "fp32"
    direct_share: float = 0.0
    """Share of samples shown in direct mode, without reasoning (0 in the paper)."""
    max_samples: int | None = None
    gradient_checkpointing: bool = False
    save_steps: int = 200

    def __post_init__(self) -> None:
        _positive(self, "learning_rate", "batch_size", "epochs", "gradient_accumulation", "save_steps")
        if not 0.0 <= self.direct_share <= 1.0:
            raise ConfigError(f"direct_share is {self.direct_share!r}, expected a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateRecipe:
    """Confidence labels from the stage-1 model's own success rate."""

    samples: int = 8
    """Responses sampled per image and mode."""
    images: int = 1000
    """How many training images are annotated."""
    prior: float = 0.5
    """Pseudo-counts a = b of the Beta prior that smooths the success rate."""
    temperature: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        _positive(self, "samples", "images", "prior", "temperature", "batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceRecipe:
    """GRPO (stage *calibrate*)."""

    learning_rate: float
    steps: int
    prompts_per_step: int
    """Different images in one optimiser step."""
    rollouts: int = 8
    """Sampled responses per image (n of the paper)."""
    reward: Literal["bounded", "paper"] = "bounded"
    kl: float = 0.01
    """Weight β of the KL penalty to the stage-2 model (low-variance estimator)."""
    temperature: float = 1.0
    max_new_tokens: int = 2048
    direct_share: float = 0.0
    precision: Precision = "fp32"
    save_steps: int = 100

    def __post_init__(self) -> None:
        _positive(self, "learning_rate", "steps", "prompts_per_step", "temperature", "max_new_tokens", "save_steps")
        if self.rollouts < 2:
            raise ConfigError(f"rollouts is {self.rollouts}, but a group needs at least 2 to compare")


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectRecipe:
    """Teacher traces for the student."""

    images: int = 1000
    samples: int = 1
    """Responses sampled per image and mode."""
    temperature: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        _positive(self, "images", "samples", "temperature", "batch_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecipe:
    """Distillation: sequence loss plus label-distribution loss."""

    model: ModelRecipe
    learning_rate: float
    batch_size: int
    epochs: float
    warmup: float = 0.05
    weight_decay: float = 0.01
    sequence_weight: float = 1.0
    """Weight of the cross-entropy on the teacher's traces."""
    distribution_weight: float = 1.0
    """Weight of KL(target ‖ student's label distribution)."""
    votes_share: float = 0.5
    """Share of annotator votes in the target distribution, the rest is the teacher's; where there are no votes, 0."""
    flip: bool = True
    """Mirror half of the images, left to right."""
    precision: Precision = "fp32"
    save_steps: int = 500

    def __post_init__(self) -> None:
        _positive(self, "learning_rate", "batch_size", "epochs", "save_steps")
        if not 0.0 <= self.votes_share <= 1.0:
            raise ConfigError(f"votes_share is {self.votes_share!r}, expected a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One pipeline, from samples to bundle."""

    name: str
    seed: int = 0
    threads: int | None = None
    """CPU threads; None leaves it to the libraries."""
    taxonomy: str = "emotion6-7"
    prompt: PromptTemplate = field(default_factory=PromptTemplate)
    data: DataRecipe
    teacher: ModelRecipe
    vision: VisionRecipe | None = None
    reason: SupervisedRecipe | None = None
    annotate: AnnotateRecipe | None = None
    verbalize: SupervisedRecipe | None = None
    calibrate: ReinforceRecipe | None = None
    collect: CollectRecipe | None = None
    student: StudentRecipe | None = None
    bundle: BundleRecipe | None = None

    def __post_init__(self) -> None:
        if self.taxonomy not in TAXONOMIES:
            raise ConfigError(f"taxonomy is {self.taxonomy!r}, known: {', '.join(TAXONOMIES)}")
        teacher, student = self.teacher.build, None if self.student is None else self.student.model.build
        if teacher is not None and student is not None:
            sizes = [(build.image_size, build.visual_tokens) for build in (teacher, student)]
            if sizes[0] != sizes[1]:
                raise ConfigError(
                    f"a student built from scratch reads images with the teacher's processor, but (image_size, visual "
                    f"tokens) are {sizes[0]} of the teacher and {sizes[1]} of the student"
                )

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
