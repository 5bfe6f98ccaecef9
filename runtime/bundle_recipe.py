"""The ``[bundle]`` table of a recipe: shared by training, which runs recipes, and export, which writes bundles."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError

PRECISIONS = ("fp32", "fp16", "int8", "int4", "qdq")
"""Precisions of a graph."""
MAX_KL_DRIFT = 0.02
"""Accepted where a recipe says nothing else, in nats."""


def graph_precisions(name: str) -> tuple[str, str]:
    """Returns the precisions of the vision encoder and of the decoder in a bundle's precision.

    Args:
        name: One of `PRECISIONS`, or two of them, vision encoder first, such as ``int8-int4``.

    Raises:
        ConfigError: If there is no such precision.
    """
    parts = name.split("-")
    if len(parts) > 2 or any(part not in PRECISIONS for part in parts) or (len(parts) == 2 and parts[0] == parts[1]):
        raise ConfigError(
            f"no precision {name!r}; there are {', '.join(PRECISIONS)}, and two of them joined by a hyphen, for the "
            "vision encoder and the decoder, such as int8-int4"
        )
    return parts[0], parts[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRecipe:
    """What the exported bundle is called and how it is calibrated."""

    name: str
    version: str = "0.1.0"
    license: str
    precisions: tuple[str, ...] = ("fp32", "int8")
    """Variants to ship, as `graph_precisions` reads them; the last one is the default."""
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
        for name in self.precisions:
            graph_precisions(name)
