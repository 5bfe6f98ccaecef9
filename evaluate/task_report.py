"""The report of one evaluation run: its tasks as rows, its prediction sets, and some of its images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.samples import Sample

from .fitting import COVERAGES
from .predictions import Outcome
from .records import CoverageRow, Example, ReportData, StageResult
from .scoring import Row, make_row, reference_distribution, right_label

_THUMBNAIL = 232


def build_report(
    outcomes: Sequence[Outcome], scores: dict[str, Any], *, facts: dict[str, str], examples: int = 9
) -> ReportData:
    """Returns what the page shows for one run.

    Args:
        outcomes: Every sample with its prediction.
        scores: From `emocaliber.evaluate.scoring.score_strict`.
        facts: Name to value, shown under the title.
        examples: Images in the gallery, at most; evenly spaced over the samples.
    """
    rows = [row for outcome in outcomes if (row := make_row(outcome)) is not None]
    mode = next((o.prediction.mode for o in outcomes if o.prediction is not None), "direct")
    tasks = list(scores["tasks"])
    stages = [_stage(task, scores["tasks"][task], [row for row in rows if row.task == task], mode) for task in tasks]
    if len(tasks) > 1:
        stages.append(_stage("all tasks", scores["overall"], rows, mode))
    missing = scores["overall"]["n"] - scores["overall"]["answered"]
    notes = ["Strict scoring: a sample without an answer counts as wrong in accuracy and F1."]
    if missing:
        notes.append(f"{missing} of {scores['overall']['n']} samples have no answer.")
    if not all(o.prediction.calibrated for o in outcomes if o.prediction is not None):
        notes.append("Some predictions are not calibrated: their sets promise no coverage.")
    return ReportData(
        title="EmoCaliber evaluation",
        subtitle="How often the model is right, and how far its confidence can be believed.",
        stages=tuple(stages),
        examples=tuple(_examples(outcomes, examples)),
        notes=tuple(notes),
        facts=facts,
        coverage=tuple(coverage_rows(outcomes)),
    )


def coverage_rows(outcomes: Sequence[Outcome]) -> list[CoverageRow]:
    """Returns observed coverage and set size of each task, at every fitted coverage where the thresholds are known.

    Predictions read from a file carry one set, at the coverage they were asked for.
    """
    rows = []
    for task in dict.fromkeys(outcome.sample.taxonomy for outcome in outcomes):
        pairs = [
            (o.prediction, right)
            for o in outcomes
            if o.sample.taxonomy == task and o.prediction is not None and (right := right_label(o.sample)) is not None
        ]
        if not pairs:
            continue
        own = {prediction.coverage for prediction, _ in pairs}
        asked = sorted(own) if any(prediction.recorded_set is not None for prediction, _ in pairs) else COVERAGES
        for coverage in asked:
            kept = [(p, right) for p, right in pairs if p.recorded_set is None or p.coverage == coverage]
            sets = [(prediction.prediction_set(coverage), right) for prediction, right in kept]
            rows.append(
                CoverageRow(
                    name=task,
                    target=coverage,
                    coverage=float(np.mean([right in chosen for chosen, right in sets])),
                    size=float(np.mean([len(chosen) for chosen, _ in sets])),
                    n=len(sets),
                )
            )
    return rows


def thumbnail(source: str, edge: int = _THUMBNAIL) -> bytes:
    """Returns the image as JPEG bytes, its longer edge at most ``edge`` pixels.

    Raises:
        InputError: If the image cannot be read.
    """
    picture = Image.fromarray(decode_image(source))
    picture.thumbnail((edge, edge))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()


def _stage(title: str, figures: dict[str, Any], rows: Sequence[Row], mode: Any) -> StageResult:
    answered = [row for row in rows if row.confidence is not None]
    renamed = {"acc": "accuracy", "bayes_acc": "bayes_accuracy"}
    return StageResult(
        name=title,
        title=title,
        mode=mode,
        metrics={renamed.get(name, name): value for name, value in figures.items() if name != "intervals"},
        intervals={renamed.get(name, name): (bounds[0], bounds[1]) for name, bounds in figures["intervals"].items()},
        confidence=np.array([row.confidence for row in answered], dtype=np.float64),
        correct=np.array([row.correct for row in answered], dtype=np.float64),
    )


def _examples(outcomes: Sequence[Outcome], wanted: int) -> list[Example]:
    answered = [(outcome.sample, outcome.prediction) for outcome in outcomes if outcome.prediction is not None]
    positions = np.unique(np.linspace(0, len(answered) - 1, num=min(wanted, len(answered)), dtype=int))
    made = (_example(*answered[position]) for position in positions)
    return [example for example in made if example is not None]


def _example(sample: Sample, prediction: Prediction) -> Example | None:
    """Returns the gallery entry, or None where the image is not at hand: predictions may come from another machine."""
    try:
        image = thumbnail(sample.image)
    except InputError:
        return None
    labels = sample.resolve().labels
    known = reference_distribution(sample)
    return Example(
        image_png=image,
        labels=labels,
        true=None if known is None else tuple(known),
        predicted=tuple(prediction.distribution[label] for label in labels),
        prediction_set=prediction.prediction_set(),
        label=prediction.label,
        confidence=prediction.confidence,
        reasoning=prediction.reasoning,
        answer=right_label(sample),
    )
