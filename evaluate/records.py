"""The records evaluation hands around: intervals, reliability bins, and what a report shows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import Mode

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval."""

    estimate: float
    """The statistic on the whole sample."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    level: float
    """Share of resampled statistics inside, in (0, 1)."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReliabilityBins:
    """The bins of a reliability diagram that hold samples; arrays (B,), in rising order of confidence."""

    lower: Floats
    """Lower edge of each bin."""
    upper: Floats
    """Upper edge of each bin, which belongs to it."""
    count: Ints
    """Samples in the bin, >= 1."""
    confidence: Floats
    """Mean confidence of these samples."""
    correct: Floats
    """Their (expected) accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageResult:
    """One row of the report: a model, or one stage of a pipeline, on the same held-out samples as the others."""

    name: str
    """Short unique name, such as ``calibrate``."""
    title: str
    """What a reader sees, such as ``3 · calibrate (GRPO)``."""
    mode: Mode
    """How the predictions were made."""
    metrics: dict[str, float | None]
    """Metric name to value, None where undefined; names as `summarise` gives them, and ``seconds``."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Metric name to both ends of its interval."""
    baseline: dict[str, float | None] = field(default_factory=dict)
    """Metric name to what a constant for each task reaches, as far as it is known."""
    confidence: Floats
    """(N,), in [0, 1], for the reliability diagram."""
    correct: Floats
    """(N,), in [0, 1], (expected) correctness of the same samples."""
    by_votes: bool = False
    """Whether `correct` is the share of the votes for each answer, not whether the answer is the right label."""

    def __post_init__(self) -> None:
        if self.confidence.shape != self.correct.shape or self.confidence.ndim != 1:
            raise InputError(
                f"stage {self.name}: confidence {self.confidence.shape} and correct {self.correct.shape}, expected (N,)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One image of the report's gallery."""

    image_png: bytes
    """The picture as PNG or JPEG bytes."""
    labels: tuple[str, ...]
    """The candidates."""
    true: tuple[float, ...] | None
    """True distribution (posterior or votes), in the order of `labels`; None where nobody knows."""
    predicted: tuple[float, ...]
    """Predicted distribution, in the order of `labels`."""
    prediction_set: tuple[str, ...]
    """The labels of the prediction set."""
    label: str
    """Predicted label."""
    confidence: float
    """Confidence in it, in [0, 1]."""
    reasoning: dict[str, str] | None = None
    """Reasoning part to text; None in direct mode."""
    caption: str = ""
    """A line under the image, such as what the scene shows."""
    answer: str | None = None
    """The label taken as right."""

    def __post_init__(self) -> None:
        for name, values in (("predicted", self.predicted), ("true", self.true)):
            if values is not None and len(values) != len(self.labels):
                raise InputError(f"example has {len(values)} {name} probabilities for {len(self.labels)} labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRow:
    """How prediction sets asked for one coverage did on held-out samples."""

    name: str
    """The model or stage, such as ``student (int8)``."""
    target: float
    """The coverage asked for, in (0, 1)."""
    coverage: float
    """Share of sets that held the right label."""
    size: float
    """Mean number of labels in a set."""
    n: int
    """Number of sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A paired difference between two stages on the same samples."""

    title: str
    """What was compared, such as ``Brier of the verbalised confidence, calibrate minus verbalize``."""
    interval: Interval
    """The difference, after minus before."""
    lower_is_better: bool = True
    """Whether a negative difference is an improvement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRow:
    """One task or group of VECBench beside the paper's figures."""

    name: str
    """Task or group."""
    n: int
    """Samples."""
    measured: dict[str, float | None]
    """``acc``, ``f1``, ``ece``, ``brier``, ``auroc`` of this run, as fractions, as far as they are defined."""
    published: dict[str, float | None]
    """The same of the paper."""
    is_group: bool = False
    """Whether this is a group of tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRow:
    """Confidences beside the constant that knows only how often each task is answered rightly."""

    name: str
    """Task, group, or all."""
    brier: float
    """Brier score of the confidences."""
    constant_brier: float
    """Brier score of the constant."""
    auroc: float | None
    """AUROC of the confidences, all pairs."""
    constant_auroc: float | None
    """AUROC of the constant, all pairs; one half within a task."""
    auroc_within: float | None
    """AUROC of the confidences, pairs within a task only."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RiskCurve:
    """Error rate among the most confident share, against that share."""

    name: str
    """Task, or all."""
    coverage: Floats
    """(P,), rising, in (0, 1]."""
    risk: Floats
    """(P,), in [0, 1]."""
    aurc: float
    """Area under the whole curve."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confusion:
    """How often each label was answered for each right label of one task."""

    task: str
    """Name of the task."""
    labels: tuple[str, ...]
    """Right labels, the rows."""
    answers: tuple[str, ...]
    """Answers, the columns."""
    counts: Ints
    """(labels, answers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything one report shows."""

    title: str
    """Heading of the page."""
    subtitle: str
    """One or two sentences: what this is."""
    stages: tuple[StageResult, ...]
    """Rows of the table, in order."""
    examples: tuple[Example, ...] = ()
    """The gallery."""
    notes: tuple[str, ...] = ()
    """Sentences a reader has to know: limits, how things were measured."""
    facts: dict[str, str] = field(default_factory=dict)
    """Name to value, such as seed, versions, number of samples."""
    coverage: tuple[CoverageRow, ...] = ()
    """The prediction-set table."""
    comparisons: tuple[Comparison, ...] = ()
    """Paired differences."""
    benchmark: tuple[BenchmarkRow, ...] = ()
    """The table beside the paper's figures."""
    baselines: tuple[BaselineRow, ...] = ()
    """The table beside a constant confidence."""
    risks: tuple[RiskCurve, ...] = ()
    """Risk-coverage curves, at most four are drawn."""
    confusions: tuple[Confusion, ...] = ()
    """Confusion matrices."""
    ranked: bool = True
    """Whether the rows compete, so that the best of a column is marked; tasks of one run do not."""
    mistakes: tuple[Example, ...] = ()
    """The most confident wrong answers; an empty image is not drawn, and empty `labels` draw no bars."""
