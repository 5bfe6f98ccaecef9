"""What ``parity.json`` says: how a bundle's graphs compare with the model they came from, in torch.

Written by the exporter, sealed in the manifest like every file, and read here without torch. Fields that older files
lack are None or empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .bundle import Bundle
from .errors import ArtifactError, ConfigError
from .manifest import PARITY_NAME
from .records import from_mapping
from .strict_json import parse_json

CPU = "onnxruntime-cpu"
"""The engine that every machine has: `ParityReport.precisions` were run by it."""

DECODE_STEPS = 32
"""Greedy steps with the key/value cache that the exporter compares, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionParity:
    """How one precision compares with the model, on one engine."""

    max_logit_difference: float
    """Largest difference of a logit, in nats, over all prompts and steps."""
    largest_logit: float
    """Largest absolute logit of the model there, to judge the difference by."""
    greedy_tokens: int
    """Greedy choices compared."""
    greedy_mismatches: int
    """Choices that differ, the model's near ties (within twice the logit tolerance) not counted."""
    max_tree_difference: float
    """Largest difference, in nats, between a label's score in the tree and in a pass of its own, in this precision.

    Here and below the mean over the labels is removed from scores: the tree leaves out the tokens that all answers
    start with."""
    max_neighbour_effect: float | None = None
    """Largest change, in nats, of a label's score when other labels, or none, are asked beside it."""
    mean_score_drift: float
    """Mean absolute difference from the model of label scores, in nats."""
    max_score_drift: float
    """Largest such difference."""
    kl_drift: float | None = None
    """Mean Kullback-Leibler divergence of the raw label probabilities from the model's, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFigures:
    """How probabilities stand against labels, votes or answers."""

    accuracy: float
    """Share of images whose most probable label is the one with most votes."""
    kl: float
    """Mean divergence from the votes, in nats."""
    ece: float
    """Calibration error of the most probable label, against its share of the votes."""
    brier: float
    """Expected squared error of the most probable label's probability, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledParity:
    """One precision and the model on the same labelled images, in direct mode, with the same calibrator on both."""

    taxonomy: str
    precision: str
    engine: str
    n: int
    """Images."""
    source: str
    """The samples, in words."""
    calibration: str | None
    """SHA-256 of the ``calibration.json`` whose calibrator of this precision was put on both; None: raw."""
    torch: LabelledFigures
    graphs: LabelledFigures
    difference: dict[str, Estimate]
    """Graphs minus torch of each figure, paired by image."""
    kl_drift: Estimate
    """Mean divergence of the graphs' probabilities from torch's, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """What was compared, and what was found."""

    images: int
    """Images used."""
    image_sizes: tuple[tuple[int, ...], ...] = ()
    """Height and width of each."""
    grids: tuple[tuple[int, ...], ...] = ()
    """Rows and columns of visual tokens of each; empty where every image becomes one tile."""
    batch_sizes: tuple[int, ...]
    """Batches of uneven prompts, padded on the left."""
    decode_steps: int
    """Greedy steps with the key/value cache after each batch."""
    max_pixel_difference: float
    """Largest difference of a preprocessed pixel from the transformers processor on Pillow."""
    precisions: dict[str, PrecisionParity]
    """Per precision, by ONNX Runtime on the CPU; fp32 also where it is not shipped."""
    engines: dict[str, dict[str, PrecisionParity]] = field(default_factory=dict)
    """Per other engine that came up, per precision."""
    absent: dict[str, str] = field(default_factory=dict)
    """Engines that did not come up, and why."""
    labelled: tuple[LabelledParity, ...] = ()
    """Per labelled set, precision and engine."""
    tolerances: dict[str, float]
    """What was accepted."""
    forced: tuple[str, ...] = ()
    """What exceeded the bound on drift and was let through, in words."""
    made_with: dict[str, str] = field(default_factory=dict)
    """Versions of what computed."""

    def runs(self) -> dict[tuple[str, str], PrecisionParity]:
        """Returns all comparisons by precision and engine, the CPU's first."""
        every = {CPU: self.precisions, **self.engines}
        return {(name, engine): parity for engine, found in every.items() for name, parity in found.items()}


def read_parity(path: Path) -> ParityReport:
    """Returns what a ``parity.json`` says.

    Raises:
        ArtifactError: If it cannot be read or says something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    try:
        return from_mapping(ParityReport, parse_json(text, str(path)), str(path))
    except ConfigError as error:
        raise ArtifactError(str(error)) from error


def parity_of(bundle: Bundle) -> ParityReport | None:
    """Returns a bundle's proof, or None where its graphs were not compared.

    Raises:
        ArtifactError: As `read_parity`.
    """
    return read_parity(bundle.path(PARITY_NAME)) if PARITY_NAME in bundle.manifest.files else None
