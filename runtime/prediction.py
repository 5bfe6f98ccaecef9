"""The prediction record: a distribution over labels, its prediction set, and everything needed to judge it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .conformal import Conformal, prediction_set
from .drift import UNUSUAL, Drift
from .errors import ArtifactError, ConfigError, InputError
from .grammar import REASONING_TAGS, Mode
from .prediction_html import prediction_html
from .records import from_mapping, to_mapping

LINE_KEYS = (
    "image",
    "taxonomy",
    "mode",
    "label",
    "confidence",
    "distribution",
    "prediction_set",
    "coverage",
    "verbalized_confidence",
    "reasoning",
    "calibrated",
    "bundle",
    "timing_ms",
)
"""Keys of a prediction's JSON line, in order: the public contract."""

BUNDLE_KEYS = ("name", "version", "precision", "engine")
"""Keys of the `Prediction.bundle` table."""
BUNDLE_SOURCE = "source"
"""One more where the bundle was fetched: its ``hf://`` address, commit included."""

DETAIL_KEYS = ("conformal", "calibrator", "out_of_scope", "out_of_time", "drift", "recorded_set")
"""Keys of the ``details`` table of `Prediction.to_dict`: the fields that the JSON line leaves out."""

_BAR_WIDTH = 30


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prediction:
    """What the model says about one image."""

    label: str
    """The most probable label; the earlier one in the candidate list where two are equal."""
    confidence: float
    """Probability that `label` is right: its entry in `distribution`."""
    distribution: dict[str, float]
    """Probability of every candidate, in candidate order; sums to one."""
    mode: Mode
    """Whether the model answered at once or reasoned first."""
    taxonomy: str
    """Name of the label set, or ``custom``."""
    coverage: float
    """Coverage the caller asked of the prediction set, in (0, 1)."""
    calibrated: bool
    """Whether a calibrator fitted for this taxonomy, mode and precision was applied."""
    bundle: dict[str, str]
    """``name``, ``version``, ``precision`` and ``engine`` of what computed it."""
    timing_ms: dict[str, float]
    """Milliseconds of each step."""
    verbalized_confidence: float | None = None
    """Confidence the model stated, in (0, 1); None where it was not asked."""
    reasoning: dict[str, str] | None = None
    """Text of the five parts in reason mode."""
    image: str | None = None
    """The path the caller gave; None for pixels in memory."""
    conformal: Conformal | None = None
    """Fitted thresholds of the prediction sets; None without a calibrator. Not written to JSON."""
    calibrator: str | None = None
    """What the calibrator was fitted on, in words; None without one. Not written to JSON."""
    out_of_scope: str | None = None
    """What no calibrator of the bundle covers in this call (label set, mode, precision, engine), in words; None where
    one covers all of it. Not written to JSON."""
    out_of_time: bool = False
    """Whether a time budget cut the reasoning short: the distribution is that of the reasonings that were complete or,
    where `mode` is ``direct``, of the answer without any. Not written to JSON."""
    drift: Drift | None = None
    """Where the image lies among the calibration images; None where the calibrator recorded none. Not written to
    JSON."""
    recorded_set: tuple[str, ...] | None = None
    """The set at `coverage`, for a prediction read from JSON, where `conformal` is not known."""

    def __post_init__(self) -> None:
        total = math.fsum(self.distribution.values())
        if not all(0.0 <= p <= 1.0 for p in self.distribution.values()) or not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ConfigError(f"distribution is {self.distribution!r}, expected probabilities that sum to one")
        top = max(self.distribution, key=self.distribution.__getitem__)
        if self.label != top:
            raise ConfigError(f"label is {self.label!r}, but the most probable one is {top!r}")
        if self.confidence != self.distribution[top]:
            raise ConfigError(f"confidence is {self.confidence!r}, but {top!r} has {self.distribution[top]!r}")
        if not 0.0 < self.coverage < 1.0:
            raise ConfigError(f"coverage is {self.coverage!r}, expected a number between 0 and 1, both excluded")
        stated = self.verbalized_confidence
        if stated is not None and not 0.0 < stated < 1.0:
            raise ConfigError(f"verbalized_confidence is {stated!r}, expected a number between 0 and 1, both excluded")
        if set(self.bundle) - {BUNDLE_SOURCE} != set(BUNDLE_KEYS):
            raise ConfigError(f"bundle has keys {sorted(self.bundle)}, expected {', '.join(BUNDLE_KEYS)}")
        strangers = set(self.recorded_set or ()) - set(self.distribution)
        if strangers:
            raise ConfigError(f"prediction_set holds {sorted(strangers)}, which are not in the distribution")

    def prediction_set(self, coverage: float | None = None) -> tuple[str, ...]:
        """Returns the labels of the set, most probable first.

        With a calibrator the set holds the right label in at least ``coverage`` of images like those it was fitted on;
        without, it is the fewest labels whose probabilities sum to ``coverage``, and promises nothing.

        Args:
            coverage: In (0, 1); None is the coverage the prediction was asked for.

        Raises:
            InputError: If the coverage is not in (0, 1), or is another than the recorded one of a calibrated prediction
                that was read from JSON, which does not carry the thresholds.
        """
        asked = self.coverage if coverage is None else coverage
        if self.recorded_set is not None and self.conformal is None:
            if asked == self.coverage:
                return self.recorded_set
            if self.calibrated:
                raise InputError(
                    f"this prediction was read from a file, which holds its set at coverage {self.coverage}, "
                    f"not at {asked}; predict again with that coverage"
                )
        labels = tuple(self.distribution)
        positions = prediction_set(tuple(self.distribution.values()), asked, self.conformal)
        return tuple(labels[position] for position in positions)

    def to_dict(self, *, details: bool = False) -> dict[str, Any]:
        """Returns the JSON line of this prediction, with exactly the keys `LINE_KEYS`, in that order.

        Args:
            details: Also write the other fields, in a table ``details``, from which `from_dict` makes an equal record,
                prediction sets at any coverage included.
        """
        line = {key: getattr(self, key) for key in LINE_KEYS if key != "prediction_set"}
        line["prediction_set"] = list(self.prediction_set())
        line["distribution"] = dict(self.distribution)
        line["bundle"] = {key: self.bundle[key] for key in (*BUNDLE_KEYS, BUNDLE_SOURCE) if key in self.bundle}
        line["timing_ms"] = dict(self.timing_ms)
        line["reasoning"] = None if self.reasoning is None else dict(self.reasoning)
        ordered = {key: line[key] for key in LINE_KEYS}
        if details:
            ordered["details"] = {key: to_mapping(getattr(self, key)) for key in DETAIL_KEYS}
        return ordered

    @classmethod
    def from_dict(cls, mapping: Mapping[str, object]) -> Prediction:
        """Returns the prediction of a JSON line that `to_dict` made, with details or without.

        Raises:
            ArtifactError: Naming missing, unknown or impossible entries.
        """
        details = mapping.get("details", {"recorded_set": mapping.get("prediction_set")})
        if not isinstance(details, Mapping):
            raise ArtifactError(f"prediction line: details is {details!r}, expected a table")
        faults = [f"missing key {key}" for key in LINE_KEYS if key not in mapping]
        faults += [f"unknown key {key}" for key in mapping if key not in (*LINE_KEYS, "details")]
        faults += [f"unknown key details.{key}" for key in details if key not in DETAIL_KEYS]
        if faults:
            raise ArtifactError("prediction line: " + "; ".join(faults))
        fields = {key: value for key, value in mapping.items() if key not in ("prediction_set", "details")}
        try:
            return from_mapping(cls, {**fields, **details}, "prediction line")
        except ConfigError as error:
            raise ArtifactError(str(error)) from error

    def with_image(self, image: str | None) -> Prediction:
        """Returns the same prediction under another image name."""
        return dataclasses.replace(self, image=image)

    def bars(self) -> str:
        """Returns one line a label, most probable first: name, probability in per cent, bar."""
        width = max(len(label) for label in self.distribution)
        ranked = sorted(self.distribution.items(), key=lambda item: -item[1])
        lines = (f"  {name:<{width}}  {p:6.1%}  {'█' * round(p * _BAR_WIDTH)}" for name, p in ranked)
        return "\n".join(line.rstrip() for line in lines)

    def describe(self) -> str:
        """Returns the prediction as a person reads it: label, bars, set, calibration, and any reasoning."""
        lines = [f"{self.image or 'image'}: {self.label} ({self.confidence:.1%} sure)", self.bars()]
        lines.append(
            f"  {self.coverage:.0%} set: {', '.join(self.prediction_set())}" + ("" if self.calibrated else " *")
        )
        if self.verbalized_confidence is not None:
            lines.append(f"  stated confidence: {self.verbalized_confidence:.2f}")
        lines.append(f"  {self._calibration_line()}")
        lines += [f"  {note}" for note in self.notes()]
        if self.reasoning is not None:
            width = max(len(tag) for tag in REASONING_TAGS)
            lines.append("  reasoning:")
            lines += [f"    {tag:<{width}}  {text}" for tag, text in self.reasoning.items()]
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Returns what else a reader should know before believing calibrated numbers, one sentence each."""
        notes = [self.out_of_scope] if self.calibrated and self.out_of_scope is not None else []
        if self.out_of_time:
            found = "no reasoning was complete" if self.mode == "direct" else "not all reasonings were complete"
            notes.append(f"the time budget ran out: {found}")
        if self.drift is not None and self.drift.p_value <= UNUSUAL:
            notes.append(f"this image does not look like those of the calibration (p = {self.drift.p_value:.2g})")
        return notes

    def _calibration_line(self) -> str:
        made_by = "{name} {version}, {precision}, {engine}, {mode} mode".format(**self.bundle, mode=self.mode)
        if not self.calibrated:
            return (
                f"* not calibrated for {self.taxonomy} ({made_by}): "
                "read the percentages and the set as a ranking, not as probabilities"
            )
        return f"calibrated for {self.taxonomy} ({made_by})" + (f": {self.calibrator}" if self.calibrator else "")

    def __repr__(self) -> str:
        state = "calibrated" if self.calibrated else "not calibrated"
        late = ", out of time" if self.out_of_time else ""
        name = "" if self.image is None else f"{self.image!r}: "
        head = f"{name}{self.label} {self.confidence:.1%}, {self.taxonomy}, {self.mode} mode, {state}{late}"
        return f"<Prediction {head}>\n{self.bars()}"

    def _repr_html_(self) -> str:
        """Returns the prediction as a table with bars, for notebooks."""
        return prediction_html(self)
