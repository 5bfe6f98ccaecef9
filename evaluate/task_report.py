"""The report of one evaluation run: its tasks as rows, what they are held against, its mistakes and some images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.samples import Sample

from .comparing import comparisons
from .conformal_fitting import COVERAGES
from .predictions import Outcome
from .records import (
    BaselineRow,
    BenchmarkRow,
    Confusion,
    CoverageRow,
    Example,
    ReportData,
    RiskCurve,
    StageResult,
)
from .rows import Row, reference_distribution, right_label, voted_distribution
from .selective import aurc, risk_coverage_curve
from .vecbench import GROUPS, PUBLISHED, canonical_task, group_of

Floats = NDArray[np.float64]

_THUMBNAIL = 232
_POINTS = 200
_UNANSWERED = "no answer"

_NOTES = {
    "strict": "Strict scoring: a sample without an answer, or whose text breaks the grammar, counts as wrong in "
    "accuracy and F1.",
    "official": "Official scoring, as the scripts published with EmoCaliber: answers are found as substrings, lines "
    "with an unreadable confidence are dropped, and the ECE (ten bins) leaves a confidence of 1 out of its bins.",
}


def build_report(
    rows: Sequence[Row],
    scores: dict[str, Any],
    *,
    facts: dict[str, str],
    outcomes: Sequence[Outcome] = (),
    folders: Sequence[Path] = (Path(),),
    other: str | None = None,
    examples: int = 9,
) -> ReportData:
    """Returns what the page shows for one run.

    Args:
        rows: The labelled samples that `scores` are of.
        scores: From strict or official scoring, with ``comparison`` where there is another run.
        facts: Name to value, shown under the title.
        outcomes: Every sample with its prediction; empty where only responses are known.
        folders: Where relative image paths may start.
        other: What the other run is called.
        examples: Images in the gallery and among the mistakes, at most.
    """
    mode = next((o.prediction.mode for o in outcomes if o.prediction is not None), None)
    if mode is None:
        mode = "reason" if any(row.text is not None and "<think>" in row.text for row in rows) else "direct"
    tasks = list(scores["tasks"])
    stages = [_stage(task, scores["tasks"][task], [row for row in rows if row.task == task], mode) for task in tasks]
    if len(tasks) > 1:
        for group, figures in scores["groups"].items():
            members = [row for row in rows if group_of(row.task) == group]
            if len({row.task for row in members}) > 1:
                stages.append(_stage(group, figures, members, mode))
        stages.append(_stage("all tasks", scores["overall"], rows, mode))
    compared = scores.get("comparison")
    return ReportData(
        title="EmoCaliber evaluation",
        subtitle="How often the model is right, and how far its confidence can be believed.",
        stages=tuple(stages),
        examples=tuple(_examples(outcomes, examples)),
        notes=tuple(_notes(rows, scores, outcomes)),
        facts=facts,
        coverage=tuple(coverage_rows(outcomes)),
        comparisons=() if compared is None else comparisons(compared, other or "the other"),
        benchmark=tuple(_benchmark(scores)),
        baselines=tuple(_baselines(scores)),
        risks=tuple(_risks(rows, tasks)),
        confusions=tuple(_confusion([row for row in rows if row.task == task]) for task in tasks),
        ranked=False,
        mistakes=tuple(_mistakes(rows, folders, examples)),
    )


def _notes(rows: Sequence[Row], scores: dict[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    notes = [_NOTES[scores["scoring"]]]
    missing = sum(row.answer is None for row in rows)
    if missing:
        notes.append(f"{missing} of {len(rows)} samples have no answer.")
    if scores.get("errors"):
        notes.append(f"{scores['errors']} lines say that the model failed on their image.")
    if scores.get("dropped"):
        notes.append(f"{scores['dropped']} lines were dropped: their confidence is no number, or they hold an error.")
    notes.append(
        "Intervals: 95 %, {resamples:,} bootstrap resamples drawn within tasks, seed {seed}.".format(
            **scores["bootstrap"]
        )
    )
    if scores["scoring"] == "official":
        notes.append(
            "The accuracy and F1 of all tasks are those of the scripts' overall row, which looks for candidates "
            "anywhere in the response, reasoning included."
        )
    if not all(o.prediction.calibrated for o in outcomes if o.prediction is not None):
        notes.append("Some predictions are not calibrated: their sets promise no coverage.")
    return notes


def _benchmark(scores: dict[str, Any]) -> list[BenchmarkRow]:
    """Returns the tasks of VECBench under their groups, with the paper's figures; empty for other tasks."""
    made = []
    of_tasks = scores.get("metric_log", scores)["tasks"]
    by_name = {canonical_task(task): figures for task, figures in of_tasks.items()}
    for group in GROUPS:
        members = [task for task in by_name if group_of(task) == group]
        if not members:
            continue
        figures = scores["groups"][group]
        shown = {**figures, "acc": figures["acc_task_mean"], "ece": figures.get("ece_paper", figures["ece"])}
        entries = [(task, {name: by_name[task][name] for name in ("acc", "f1")}, False) for task in members]
        for name, measured, is_group in (*entries, (group, shown, True)):
            published = dataclasses.asdict(PUBLISHED[name])
            n = figures["n"] if is_group else by_name[name]["n"]
            kept = {key: measured.get(key) for key in published}
            made.append(BenchmarkRow(name=name, n=n, measured=kept, published=published, is_group=is_group))
    return made


def _baselines(scores: dict[str, Any]) -> list[BaselineRow]:
    entries = [*scores["tasks"].items(), *scores["groups"].items()]
    if len(scores["tasks"]) > 1:
        entries.append(("all tasks", scores["overall"]))
    return [
        BaselineRow(
            name=name,
            brier=figures["brier"],
            constant_brier=figures["baseline"]["brier"],
            auroc=figures["auroc"],
            constant_auroc=figures["baseline"]["auroc"],
            auroc_within=figures.get("auroc_within"),
        )
        for name, figures in entries
        if figures.get("brier") is not None
    ]


def _risks(rows: Sequence[Row], tasks: Sequence[str]) -> list[RiskCurve]:
    """Returns the curves of all samples, of each group, then of each task, thinned to a drawable number of points."""
    named = [("all tasks", list(rows))] if len(tasks) > 1 else []
    named += [(group, [row for row in rows if group_of(row.task) == group]) for group in GROUPS]
    named += [(task, [row for row in rows if row.task == task]) for task in tasks]
    curves = []
    for name, members in named:
        confidence, correct = _confidence(members)
        if not confidence.size:
            continue
        coverage, risk = risk_coverage_curve(confidence, correct)
        kept = np.unique(np.linspace(0, len(risk) - 1, num=min(_POINTS, len(risk)), dtype=int))
        area = aurc(confidence, correct)
        curves.append(RiskCurve(name=name, coverage=coverage[kept], risk=risk[kept], aurc=area))
    return curves


def _confusion(rows: Sequence[Row]) -> Confusion:
    labels = tuple(dict.fromkeys((*rows[0].labels, *(row.right for row in rows))))
    answers = list(dict.fromkeys((*labels, *(row.answer for row in rows if row.answer is not None))))
    if any(row.answer is None for row in rows):
        answers.append(_UNANSWERED)
    counts = np.zeros((len(labels), len(answers)), dtype=np.int64)
    for row in rows:
        answer = _UNANSWERED if row.answer is None else row.answer
        counts[labels.index(row.right), answers.index(answer)] += 1
    return Confusion(task=rows[0].task, labels=labels, answers=tuple(answers), counts=counts)


def _mistakes(rows: Sequence[Row], folders: Sequence[Path], wanted: int) -> list[Example]:
    wrong = [row for row in rows if row.answer is not None and row.confidence is not None and not row.correct]
    wrong.sort(key=lambda row: -(row.confidence or 0.0))
    return [_mistake(row, folders) for row in wrong[:wanted]]


def _mistake(row: Row, folders: Sequence[Path]) -> Example:
    assert row.answer is not None
    assert row.confidence is not None
    distribution = row.predicted
    return Example(
        image_png=_picture(row.image, folders),
        labels=() if distribution is None else row.labels,
        true=None,
        predicted=distribution or (),
        prediction_set=(),
        label=row.answer,
        confidence=row.confidence,
        reasoning=None if row.text is None else {"response": row.text},
        caption=f"{row.task}" + ("" if row.image is None else f" · {Path(row.image).name}"),
        answer=row.right,
    )


def _picture(image: str | None, folders: Sequence[Path]) -> bytes:
    """Returns the thumbnail, or no bytes where the image is not at hand: predictions may come from another machine."""
    parts = () if image is None else Path(image).parts
    # The leading folders may be those of another machine; the last one stays, so that equal file names do not mix.
    tried = dict.fromkeys(folder.joinpath(*parts[k:]) for k in range(max(1, len(parts) - 1)) for folder in folders)
    for place in tried if parts else ():
        try:
            return thumbnail(str(place))
        except InputError:
            continue
    return b""


def coverage_rows(outcomes: Sequence[Outcome]) -> list[CoverageRow]:
    """Returns observed coverage and set size of each task, at every fitted coverage where the thresholds are known.

    Where all its samples have votes, rows of the coverage of these follow. Predictions read from a file carry one set,
    at the coverage they were asked for.
    """
    rows = []
    for task in dict.fromkeys(outcome.sample.taxonomy for outcome in outcomes):
        labelled = [
            (o.sample, o.prediction, right)
            for o in outcomes
            if o.sample.taxonomy == task and o.prediction is not None and (right := right_label(o.sample)) is not None
        ]
        if not labelled:
            continue
        rows += _coverage_rows(task, [(prediction, {right: 1.0}) for _, prediction, right in labelled])
        votes = [
            (prediction, dict(zip(sample.resolve().labels, given, strict=True)))
            for sample, prediction, _ in labelled
            if (given := voted_distribution(sample)) is not None
        ]
        if len(votes) == len(labelled):
            rows += _coverage_rows(f"{task}, votes", votes)
    return rows


def _coverage_rows(name: str, pairs: Sequence[tuple[Prediction, dict[str, float]]]) -> list[CoverageRow]:
    """Returns one row a coverage of the sets of predictions, each with the chance of labels to be right."""
    recorded = any(prediction.recorded_set is not None for prediction, _ in pairs)
    rows = []
    for coverage in sorted({prediction.coverage for prediction, _ in pairs}) if recorded else COVERAGES:
        kept = [(p, chances) for p, chances in pairs if p.recorded_set is None or p.coverage == coverage]
        sets = [(prediction.prediction_set(coverage), chances) for prediction, chances in kept]
        rows.append(
            CoverageRow(
                name=name,
                target=coverage,
                coverage=float(np.mean([sum(chances.get(label, 0.0) for label in chosen) for chosen, chances in sets])),
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
    renamed = {"acc": "accuracy", "bayes_acc": "bayes_accuracy"}
    by_votes = figures.get("ece_votes") is not None
    confidence, correct = _confidence(rows, by_votes=by_votes)
    return StageResult(
        name=title,
        title=title,
        mode=mode,
        metrics={renamed.get(name, name): value for name, value in figures.items() if _is_figure(value)},
        intervals={renamed.get(name, name): (low, high) for name, (low, high) in figures.get("intervals", {}).items()},
        baseline={renamed.get(name, name): value for name, value in figures.get("baseline", {}).items()},
        confidence=confidence,
        correct=correct,
        by_votes=by_votes,
    )


def _is_figure(value: object) -> bool:
    return value is None or isinstance(value, (int, float))


def _confidence(rows: Sequence[Row], *, by_votes: bool = False) -> tuple[Floats, Floats]:
    """Returns confidence and correctness, or the votes' agreement, of the rows that have a confidence."""
    pairs = [(row.confidence, row.agreement if by_votes else row.correct) for row in rows]
    stated, right = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2).T
    return stated, right


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
        true=known,
        predicted=tuple(prediction.distribution[label] for label in labels),
        prediction_set=prediction.prediction_set(),
        label=prediction.label,
        confidence=prediction.confidence,
        reasoning=prediction.reasoning,
        answer=right_label(sample),
    )
