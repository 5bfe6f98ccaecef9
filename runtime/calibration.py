"""Calibrators: how raw label scores become probabilities that can be believed, and the file that holds them.

This module only *applies* what was fitted elsewhere; the fitters share its formulas, so that both sides agree.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .confidence import ConfidenceFusion, ConfidenceMap, map_confidence
from .conformal import Conformal
from .drift import DriftReference
from .errors import ArtifactError, ConfigError, InputError
from .files import atomic_write
from .grammar import Mode
from .records import from_mapping, to_mapping
from .strict_json import parse_json

CALIBRATION_SCHEMA = 2
"""Schema version of ``calibration.json`` that is written: 2 added beta and isotonic maps, RAPS and drift references."""

READABLE_SCHEMAS = (1, CALIBRATION_SCHEMA)
"""Schema versions that are read."""

MAX_CALIBRATION_BYTES = 64 << 20

Method = Literal["temperature", "bias", "matrix"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator:
    """A fitted map from one taxonomy's raw scores to probabilities: ``p = softmax(W (s - mean s) / T + b)``.

    Temperature scaling is Guo et al. 2017; with `bias` it is vector scaling without the diagonal, with `weight` matrix
    scaling. A confidence map may then correct the top label. Quantisation and mode change the scores, so a calibrator
    belongs to one taxonomy, mode and precision.
    """

    taxonomy: str
    """Name of the taxonomy it was fitted for."""
    mode: Mode
    """Prediction mode whose scores it takes."""
    precision: str
    """Bundle precision whose scores it takes, such as ``int8``."""
    engine: str
    """Engine that computed the scores it was fitted on."""
    labels: tuple[str, ...]
    """The candidates, in the order of the scores."""
    method: Method
    """Which parameters were fitted: (T), (T, b) or (T, W, b)."""
    temperature: float
    """T > 0."""
    bias: tuple[float, ...]
    """b, one number a label; zeros where unused."""
    weight: tuple[tuple[float, ...], ...] | None = None
    """W, (K, K); None is the identity."""
    confidence: ConfidenceMap | None = None
    """What maps the probability of the top label to the confidence in it; None leaves it as it is."""
    conformal: Conformal
    """Thresholds of the prediction sets."""
    n: int
    """Number of samples it was fitted on."""
    fitted_on: str
    """The samples it was fitted on, in words."""
    log_loss: float
    """Cross-validated log loss of the calibrated probabilities, in nats."""
    candidates: dict[str, float]
    """Cross-validated log loss of every method that was tried."""
    confidence_candidates: dict[str, float] = field(default_factory=dict)
    """Cross-validated log loss of the top label's confidence, right or wrong, under every map that was tried."""
    drift: DriftReference | None = None
    """The images it was fitted on, as the vision encoder sees them; None where they were not recorded."""

    def __post_init__(self) -> None:
        count = len(self.labels)
        rows = () if self.weight is None else self.weight
        where = f"calibrator for {self.taxonomy} ({self.mode}, {self.precision})"
        entries = (entry for row in rows for entry in row)
        scores = (*self.candidates.values(), *self.confidence_candidates.values())
        _require_finite(where, (self.temperature, self.log_loss, *self.bias, *entries, *scores))
        if count < 2 or len(set(self.labels)) != count:
            raise ArtifactError(f"{where}: {count} labels {self.labels}, expected at least two different ones")
        if self.temperature <= 0:
            raise ArtifactError(f"{where}: temperature is {self.temperature}, expected a number > 0")
        if self.n < 1:
            raise ArtifactError(f"{where}: fitted on {self.n} samples, expected at least one")
        if len(self.bias) != count:
            raise ArtifactError(f"{where}: {len(self.bias)} biases for {count} labels")
        if self.weight is not None and (len(rows) != count or any(len(row) != count for row in rows)):
            raise ArtifactError(f"{where}: weight is not {count} x {count}")
        if (self.method == "matrix") != (self.weight is not None):
            raise ArtifactError(f"{where}: method {self.method} with weight {'set' if rows else 'missing'}")
        if self.method == "temperature" and any(self.bias):
            raise ArtifactError(f"{where}: method temperature has a bias that is not zero")

    @property
    def needs_verbalized(self) -> bool:
        """Whether the confidence that the model states is taken in, and so has to be asked for."""
        return isinstance(self.confidence, ConfidenceFusion)

    def probabilities(self, scores: Floats) -> Floats:
        """Returns (..., K) float64 probabilities for (..., K) raw label scores in nats, before the confidence map.

        Raises:
            InputError: If the scores are of another number of labels.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.shape[-1:] != (len(self.labels),):
            raise InputError(f"scores have shape {values.shape}, the calibrator has {len(self.labels)} labels")
        return scaled_probabilities(values, self.temperature, self.bias, self.weight)

    def with_confidence(self, probabilities: Floats, verbalized: Floats | None) -> Floats:
        """Returns (..., K) probabilities after the confidence map.

        Args:
            probabilities: (..., K), from `probabilities`, or a mean of them over several reasonings.
            verbalized: (...), stated confidences in (0, 1); None where the model stated none, and no fusion is applied.
        """
        if self.confidence is None or (self.needs_verbalized and verbalized is None):
            return probabilities
        return map_confidence(self.confidence, probabilities, verbalized)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFile:
    """What ``calibration.json`` holds."""

    schema_version: int
    """One of `READABLE_SCHEMAS`."""
    calibrators: tuple[Calibrator, ...]
    """At most one for each taxonomy, mode and precision."""

    def __post_init__(self) -> None:
        keys = [(c.taxonomy, c.mode, c.precision) for c in self.calibrators]
        double = [key for key, count in Counter(keys).items() if count > 1][:1]
        if double:
            raise ArtifactError(f"more than one calibrator for {double}")


def scaled_probabilities(
    scores: Floats, temperature: float, bias: Sequence[float], weight: Sequence[Sequence[float]] | None = None
) -> Floats:
    """Returns ``softmax(W (s - mean s) / T + b)``, (..., K) float64, for scores s of that shape; W None is identity."""
    centred = scores - scores.mean(axis=-1, keepdims=True)
    if weight is not None:
        centred = centred @ np.asarray(weight, dtype=np.float64).T
    return softmax(centred / temperature + np.asarray(bias, dtype=np.float64))


def softmax(scores: Floats) -> Floats:
    """Returns (..., K) float64 probabilities proportional to ``exp(scores)`` along the last axis."""
    values = np.asarray(scores, dtype=np.float64)
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


def read_calibrators(path: Path) -> tuple[Calibrator, ...]:
    """Returns the calibrators of a ``calibration.json``.

    Raises:
        ArtifactError: If it cannot be read, is of another schema version, or holds anything unexpected or not finite.
    """
    try:
        if (size_bytes := path.stat().st_size) > MAX_CALIBRATION_BYTES:
            raise ArtifactError(f"{path} has {size_bytes} bytes, at most {MAX_CALIBRATION_BYTES} are read")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text: {error}") from error
    mapping = parse_json(text, path.name)
    found = mapping.get("schema_version", CALIBRATION_SCHEMA) if isinstance(mapping, dict) else CALIBRATION_SCHEMA
    if isinstance(found, bool) or found not in READABLE_SCHEMAS:
        raise ArtifactError(
            f"{path.name}: schema_version is {found!r}, this version reads {' and '.join(map(str, READABLE_SCHEMAS))}; "
            "update emocaliber, or fit the calibrators again"
        )
    try:
        return from_mapping(CalibrationFile, mapping, path.name).calibrators
    except ConfigError as error:
        raise ArtifactError(str(error)) from error


def write_calibrators(calibrators: Iterable[Calibrator], path: Path) -> None:
    """Writes a ``calibration.json``, atomically.

    Raises:
        ArtifactError: If two calibrators are for the same taxonomy, mode and precision.
    """
    record = CalibrationFile(schema_version=CALIBRATION_SCHEMA, calibrators=tuple(calibrators))
    atomic_write(path, json.dumps(to_mapping(record), indent=1, allow_nan=False) + "\n")


def _require_finite(where: str, numbers: Iterable[float]) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise ArtifactError(f"{where} holds a number that is not finite")
