"""Recipes of models: where one comes from, or how it is built, and which of its weights are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emocaliber.runtime.errors import ConfigError

Precision = Literal["fp32", "bf16"]
Family = Literal["idefics3", "qwen2_5_vl"]
TrainedStage = Literal["reason", "verbalize", "calibrate"]


def positive(record: object, *names: str) -> None:
    """Refuses a record of which one of the named numbers is not above 0.

    Raises:
        ConfigError: With the value found.
    """
    for name in names:
        value = getattr(record, name)
        if not value > 0:
            raise ConfigError(f"{name} is {value!r}, expected a number > 0")


def whole_batches(name: str, batch: int, part: int | None) -> None:
    """Refuses a batch that does not fall into whole parts of a size, where there is one.

    Raises:
        ConfigError: With both sizes.
    """
    if part is not None and (part < 1 or batch % part):
        raise ConfigError(f"{name} is {batch}, not a multiple of its parts of {part}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerRecipe:
    """Shape of one transformer of a model built from scratch."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int | None = None

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "intermediate_size", "layers", "heads")
        if self.hidden_size % self.heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionRecipe:
    """Shape of a convolutional vision tower, a residual network; see `emocaliber.evaluate.convolutional`."""

    stem: int
    """Channels of the first convolution."""
    stride: int = 2
    """Of the first convolution."""
    widths: tuple[int, ...]
    """Channels of the stages, each at half the resolution of the one before; the last is a visual token's width."""
    depths: tuple[int, ...]
    """Residual blocks of each stage."""
    looks: Literal[1, 2, 4] = 1
    """In how many ways the trained tower looks at an image, at as many times the work: as it is, mirrored too, and two
    parts of it too; a visual token is the mean of all looks."""

    def __post_init__(self) -> None:
        positive(self, "stem", "stride")
        if not self.widths or len(self.widths) != len(self.depths) or min(*self.widths, *self.depths) < 1:
            raise ConfigError(
                f"widths are {list(self.widths)} and depths {list(self.depths)}; expected as many of both, all > 0"
            )

    @property
    def patch_size(self) -> int:
        """Pixels along a side of the image that a cell of the last map stands for."""
        return int(self.stride * 2 ** len(self.widths))


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecipe:
    """A model built from its configuration, with random weights."""

    family: Family = "idefics3"
    """``idefics3`` is SmolVLM's architecture, ``qwen2_5_vl`` the paper's."""
    vision: TowerRecipe | ConvolutionRecipe
    """A transformer, or for ``idefics3`` a residual network, which learns more from few images."""
    text: TowerRecipe
    image_size: int
    """Side in pixels of the square the vision tower sees; of the largest square for Qwen, which keeps images' shape."""
    patch_size: int
    scale_factor: int = 2
    """A square of ``scale_factor`` × ``scale_factor`` patches becomes one visual token."""
    max_positions: int = 512
    vocab_size: int = 1000
    """Upper bound for the tokenizer trained on the run's own texts."""

    def __post_init__(self) -> None:
        positive(self, "image_size", "patch_size", "scale_factor", "max_positions", "vocab_size")
        if self.image_size % (self.patch_size * self.scale_factor):
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size × scale_factor "
                f"= {self.patch_size * self.scale_factor}"
            )
        if isinstance(self.vision, ConvolutionRecipe):
            if self.family != "idefics3":
                raise ConfigError(f"a convolutional vision tower needs family idefics3, found {self.family}")
            if self.vision.patch_size != self.patch_size:
                raise ConfigError(
                    f"patch_size is {self.patch_size}, but the vision tower's strides make {self.vision.patch_size}"
                )

    @property
    def visual_tokens(self) -> int:
        """Number of decoder positions one (square) image takes."""
        return (self.image_size // self.patch_size // self.scale_factor) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """Where a model comes from: a folder, the hub, or built from scratch."""

    path: str | None = None
    """A folder, or ``hf://owner/name`` for a repository of the hub, which is downloaded."""
    build: BuildRecipe | None = None
    trained: TrainedStage | None = None
    """The last stage the weights at `path` have been through already: it and those before are not run again."""
    min_pixels: int | None = None
    """Fewest pixels an image is scaled to, for families that take images of any size; None keeps the processor's."""
    max_pixels: int | None = None
    """Most pixels."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.build is None):
            raise ConfigError("a model needs either path (a folder or hf://owner/name) or a build table")
        if self.build is not None and (self.trained, self.min_pixels, self.max_pixels) != (None, None, None):
            raise ConfigError(
                "trained, min_pixels and max_pixels describe a model at a path, but there is a build table"
            )
        if self.min_pixels is not None and self.max_pixels is not None and not self.min_pixels <= self.max_pixels:
            raise ConfigError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRecipe:
    """Low-rank adapters instead of all weights (Hu et al. 2021, arXiv 2106.09685), merged when a stage has finished."""

    rank: int = 16
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    targets: str = "all-linear"
    """``all-linear`` for every linear layer of the decoder and the vision tower, or a regular expression of names."""

    def __post_init__(self) -> None:
        positive(self, "rank", "alpha")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout!r}, expected a number in [0, 1)")
