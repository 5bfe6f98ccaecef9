"""The ``[bundle]`` table of a recipe: shared by training, which runs recipes, and export, which writes bundles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError

MAX_KL_DRIFT = 0.02
"""Accepted where a recipe says nothing else, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRecipe:
    """What the exported bundle is called and how it is calibrated."""

    name: str
    version: str = "0.1.0"
    license: str
    precisions: tuple[Literal["fp32", "int8"], ...] = ("fp32", "int8")
    """Variants to ship; the last one is the default."""
    calibration_images: int = 1000
    """Most calibration images used of a taxonomy."""
    summary: str = ""
    """What the model is, in a sentence or two; stands in the model card."""
    training_data: str = ""
    """What the model was trained on, in words; stands in the model card."""
    limits: tuple[str, ...] = ()
    """What a user must know before relying on it; stands in the model card."""
    max_kl_drift: float = MAX_KL_DRIFT
    """A precision is shipped whose label probabilities have at most this mean divergence from the model's, in nats."""

    def __post_init__(self) -> None:
        if not self.max_kl_drift > 0:
            raise ConfigError(f"max_kl_drift is {self.max_kl_drift!r}, expected a positive number of nats")
        if not self.precisions:
            raise ConfigError("precisions is empty")
