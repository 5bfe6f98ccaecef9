"""Official scoring: what the scripts published with EmoCaliber compute, quirks included, for comparison with the paper.

The quirks, all kept on purpose:

- The prediction is the first candidate, in the order of the line, that is a *substring* of the answer: ``contentment``
  is found where ``discontentment`` was written; see `emocaliber.runtime.grammar.parse_response_official`.
- A confidence that is no number drops its line from all but ``metric.log``; a missing one only from what needs it.
- The accuracy of a group is over the samples that have a confidence, its F1 over all.
- Confidences are clipped to [0, 1]; the ECE's last bin leaves out 1.0, which counts in the denominator.
- ``overall`` looks for the candidates, as spelt, in the whole lower-cased response, reasoning included: a reasoning
  that weighs two emotions is scored by their order in the candidate list.

What they leave undefined (not a number, no samples) is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

from emocaliber.runtime.grammar import official_answer, parse_response_official, render_response

from .baseline import constant_figures
from .calibration_metrics import half_open_calibration_error
from .confidence_figures import constant_confidence
from .metrics import brier_score
from .predictions import Outcome
from .responses import ResponseLine
from .row_figures import BOOTSTRAP, row_intervals
from .rows import Row, right_label
from .vecbench import GROUPS, canonical_task, group_of

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Confidences at and above which accuracy, F1 and coverage of the groups are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialLine:
    """One line as the published scripts read it."""

    task: str
    """Spelt as VECBench does."""
    truth: str
    """Lower-cased."""
    answer: str
    """The prediction: a lower-cased candidate, or ``unknown``."""
    anywhere: str
    """The prediction of the overall row: the first candidate, as spelt, in the whole lower-cased response."""
    confidence: float | None
    """Any float, not a number included; None where there is none."""
    dropped: bool
    """Whether its confidence is no number, so that only ``metric.log`` has the line."""
    source: ResponseLine
    """Where it was read."""


def read_official(lines: Sequence[ResponseLine]) -> list[OfficialLine]:
    """Returns the lines that hold a response, in order: those of images that failed are set aside first."""
    return [_read(line, line.response) for line in lines if line.response is not None]


def _read(line: ResponseLine, text: str) -> OfficialLine:
    response = parse_response_official(text, line.candidates)
    lowered = text.lower()
    return OfficialLine(
        task=canonical_task(line.task),
        truth=line.ground_truth.lower(),
        answer=official_answer(text, line.candidates),
        anywhere=next((candidate for candidate in line.candidates if candidate in lowered), "unknown"),
        confidence=None if response is None else response.confidence,
        dropped=response is None,
        source=line,
    )


def score_official(lines: Sequence[ResponseLine]) -> dict[str, Any]:
    """Returns ``{"scoring", "bootstrap", "tasks", "groups", "overall", "metric_log", "errors", "dropped"}`` for JSON.

    Undefined figures are None. The scripts score twice: all responses, into ``metric.log`` (``metric_log`` here), from
    which the paper's accuracy and F1 of the tasks come, then those whose confidence can be read, into
    ``metric_conf.log``, which all other figures here are. ``errors`` counts lines without a response, ``dropped`` these
    and the lines whose confidence is no number.

    ``groups`` has all three groups. Their ``acc`` is pooled, as the scripts log it; ``acc_task_mean`` is the mean over
    tasks, as the paper prints it. ``thresholds`` lists ``acc``, ``f1`` and ``coverage`` from each threshold up. Tasks
    have the groups' figures too, which the scripts do not give, but for their ``acc``, which is over all samples,
    confidence or not. ``baseline`` and ``intervals`` are as in strict scoring.
    """
    read = read_official(lines)
    kept = [line for line in read if not line.dropped]
    tasks = {task: _figures(members, "acc") for task, members in _by_task(kept).items()}
    groups = {}
    for group in GROUPS:
        of_group = [figures for task, figures in tasks.items() if group_of(task) == group]
        members = [line for line in kept if group_of(line.task) == group]
        means = {f"{name}_task_mean": _mean([figures[name] for figures in of_group]) for name in ("acc", "f1")}
        thresholds = [_from(members, threshold) for threshold in THRESHOLDS]
        groups[group] = {**_figures(members, "acc_stating"), **means, "thresholds": thresholds}
    return {
        "scoring": "official",
        "bootstrap": BOOTSTRAP,
        "tasks": tasks,
        "groups": groups,
        "overall": {**_overall(kept), "n_confidence": sum(line.confidence is not None for line in kept)},
        "metric_log": {
            "tasks": {task: _answers(members) for task, members in _by_task(read).items()},
            "overall": _overall(read),
        },
        "errors": len(lines) - len(read),
        "dropped": len(lines) - len(kept),
    }


def _by_task(lines: Sequence[OfficialLine]) -> dict[str, list[OfficialLine]]:
    return {name: [line for line in lines if line.task == name] for name in dict.fromkeys(line.task for line in lines)}


def make_official_row(line: ResponseLine) -> Row | None:
    """Returns the line for report and comparison, or None where it is dropped.

    The answer may be ``unknown``; the confidence is clipped, and none where it is not a number.
    """
    read = read_official([line])
    return _row(read[0]) if read and not read[0].dropped else None


def _row(line: OfficialLine) -> Row:
    stated = math.nan if line.confidence is None else line.confidence
    return Row(
        task=line.task,
        labels=tuple(candidate.lower() for candidate in line.source.candidates),
        right=line.truth,
        answer=line.answer,
        confidence=None if math.isnan(stated) else min(max(stated, 0.0), 1.0),
        image=line.source.image,
        text=line.source.response,
    )


def responses_of(outcomes: Sequence[Outcome]) -> list[ResponseLine]:
    """Returns labelled predictions as response lines: the text a model would write that answers as the bundle does.

    The confidence stands in full precision. A sample without an answer becomes an error line, which is dropped.
    """
    lines = []
    for outcome in outcomes:
        right, prediction = right_label(outcome.sample), outcome.prediction
        if right is None:
            continue
        text = None
        if prediction is not None:
            stated = f"<confidence>{prediction.confidence!r}</confidence>"
            text = render_response(prediction.label, None, None) + stated
        lines.append(
            ResponseLine(
                task=outcome.sample.taxonomy,
                ground_truth=right,
                candidates=outcome.sample.resolve().labels,
                response=text,
                image=outcome.sample.image,
                id=outcome.sample.id,
            )
        )
    return lines


def _figures(lines: Sequence[OfficialLine], accuracy: Literal["acc", "acc_stating"]) -> dict[str, Any]:
    """Returns the figures of a task, whose accuracy is over all lines, or of a group, over those with a confidence."""
    stating = [line for line in lines if line.confidence is not None]
    confidence = np.clip(np.array([line.confidence for line in stating], dtype=np.float64), 0, 1)
    correct = np.array([line.answer == line.truth for line in stating], dtype=np.float64)
    judged = lines if accuracy == "acc" else stating
    figures = {**_answers(lines), "acc": _accuracy(judged), **_calibration(confidence, correct)}
    rows, sure = [_row(line) for line in lines], [row for row in map(_row, stating) if row.confidence is not None]
    intervals = row_intervals(rows, {"f1": figures["f1"]}) if rows else {}
    if judged:
        intervals |= row_intervals([_row(line) for line in judged], {"acc": figures["acc"]})
    if len(sure) == len(stating) > 0:
        paper = row_intervals(sure, {"ece_paper": figures["ece"], "brier": figures["brier"], "auroc": figures["auroc"]})
        intervals |= {"ece" if name == "ece_paper" else name: bounds for name, bounds in paper.items()}
    constant = constant_figures(rows, None) if rows else {}
    return {
        **figures,
        "n_confidence": len(stating),
        "mean_confidence": _mean(confidence),
        "baseline": {
            "acc": constant.get("acc"),
            "f1": constant.get("f1"),
            **_calibration(constant_confidence(correct, [line.task for line in stating]), correct),
        },
        "intervals": intervals,
    }


def _answers(lines: Sequence[OfficialLine]) -> dict[str, Any]:
    return {"acc": _accuracy(lines), "f1": _f1(lines), "n": len(lines)}


def _overall(lines: Sequence[OfficialLine]) -> dict[str, Any]:
    found, truths = [line.anywhere for line in lines], [line.truth for line in lines]
    return {
        "acc": _mean([line.anywhere == line.truth for line in lines]),
        "f1": _weighted_f1(found, truths),
        "n": len(lines),
    }


def _calibration(confidence: Any, correct: Any) -> dict[str, float | None]:
    """Returns ECE, Brier score and AUROC; not a number among the confidences leaves only the ECE defined.

    It then lies in no bin, yet counts in the denominator, like 1.0.
    """
    if not len(confidence):
        return {"ece": None, "brier": None, "auroc": None}
    missing = np.isnan(confidence)
    # 1.0 stands for "in no bin" in place of what is not a number.
    ece = half_open_calibration_error(np.where(missing, 1.0, confidence), correct)
    if missing.any():
        return {"ece": ece, "brier": None, "auroc": None}
    area = float(roc_auc_score(correct, confidence)) if 0 < correct.mean() < 1 else None
    return {"ece": ece, "brier": brier_score(confidence, correct), "auroc": area}


def _from(lines: Sequence[OfficialLine], threshold: float) -> dict[str, float | None]:
    sure = [line for line in lines if line.confidence is not None and line.confidence >= threshold]
    return {
        "threshold": threshold,
        "acc": _accuracy(sure),
        "f1": _f1(sure),
        "coverage": len(sure) / len(lines) if lines else None,
    }


def _accuracy(lines: Sequence[OfficialLine]) -> float | None:
    return _mean([line.answer == line.truth for line in lines])


def _f1(lines: Sequence[OfficialLine]) -> float | None:
    return _weighted_f1([line.answer for line in lines], [line.truth for line in lines])


def _weighted_f1(answers: Sequence[str], truths: Sequence[str]) -> float | None:
    if not truths:
        return None
    return float(f1_score(truths, answers, average="weighted", zero_division=0.0))


def _mean(values: Any) -> float | None:
    if not len(values):
        return None
    mean = float(np.mean(values))
    return None if math.isnan(mean) else mean
