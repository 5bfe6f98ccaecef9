"""Official scoring: what the scripts published with EmoCaliber compute, quirks included, for comparison with the paper.

The quirks, all kept on purpose:

- The prediction is the first candidate, in the order of the line, that is a *substring* of the answer: ``contentment``
  is found where ``discontentment`` was written; see `emocaliber.runtime.grammar.parse_response_official`.
- A confidence that is no number drops its line from everything; a missing one drops it only where confidence is needed.
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
from typing import Any

import numpy as np

from emocaliber.runtime.grammar import parse_response_official, render_response

from .calibration_metrics import half_open_calibration_error
from .confidence_figures import constant_confidence
from .metrics import auroc, brier_score, f1_scores
from .predictions import Outcome
from .responses import ResponseLine
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
    source: ResponseLine
    """Where it was read."""


def read_official(lines: Sequence[ResponseLine]) -> tuple[list[OfficialLine], int]:
    """Returns the lines that the published scripts keep, in order, and how many they drop."""
    kept = []
    for line in lines:
        if line.response is None:
            continue
        response = parse_response_official(line.response, line.candidates)
        if response is None:
            continue
        lowered = line.response.lower()
        kept.append(
            OfficialLine(
                task=canonical_task(line.task),
                truth=line.ground_truth.lower(),
                answer=response.answer,
                anywhere=next((candidate for candidate in line.candidates if candidate in lowered), "unknown"),
                confidence=response.confidence,
                source=line,
            )
        )
    return kept, len(lines) - len(kept)


def score_official(lines: Sequence[ResponseLine]) -> dict[str, Any]:
    """Returns ``{"scoring", "tasks", "groups", "overall", "dropped"}``, ready for JSON; undefined figures are None.

    ``groups`` has all three groups. Their ``acc`` is pooled, as the scripts log it; ``acc_task_mean`` is the mean over
    tasks, as the paper prints it. ``thresholds`` lists ``acc``, ``f1`` and ``coverage`` from each threshold up.
    ``baseline`` are the figures of the constant confidence of each task. Tasks have the groups' figures too, which the
    scripts do not give, but for their ``acc``, which is over all samples, confidence or not.
    """
    kept, dropped = read_official(lines)
    tasks = {task: _task([line for line in kept if line.task == task]) for task in dict.fromkeys(x.task for x in kept)}
    groups = {}
    for group in GROUPS:
        members = [line for line in kept if group_of(line.task) == group]
        of_group = [figures for task, figures in tasks.items() if group_of(task) == group]
        means = {f"{name}_task_mean": _mean([figures[name] for figures in of_group]) for name in ("acc", "f1")}
        groups[group] = {**_group(members), **means, "thresholds": [_from(members, t) for t in THRESHOLDS]}
    return {
        "scoring": "official",
        "tasks": tasks,
        "groups": groups,
        "overall": {
            "acc": _mean([line.anywhere == line.truth for line in kept]),
            "f1": _weighted_f1([line.anywhere for line in kept], [line.truth for line in kept]),
            "n": len(kept),
            "n_confidence": sum(line.confidence is not None for line in kept),
        },
        "dropped": dropped,
    }


def make_official_row(line: ResponseLine) -> Row | None:
    """Returns the line for report and comparison, or None where it is dropped.

    ``unknown`` is no answer; the confidence is clipped, and none where it is not a number.
    """
    kept, _ = read_official([line])
    if not kept:
        return None
    [read] = kept
    stated = math.nan if read.confidence is None else read.confidence
    return Row(
        task=read.task,
        labels=tuple(candidate.lower() for candidate in line.candidates),
        right=read.truth,
        answer=None if read.answer == "unknown" else read.answer,
        confidence=None if math.isnan(stated) else min(max(stated, 0.0), 1.0),
        image=line.image,
        text=line.response,
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


def _task(lines: Sequence[OfficialLine]) -> dict[str, Any]:
    return {**_group(lines), "acc": _mean([line.answer == line.truth for line in lines])}


def _group(lines: Sequence[OfficialLine]) -> dict[str, Any]:
    stating = [line for line in lines if line.confidence is not None]
    confidence = np.clip(np.array([line.confidence for line in stating], dtype=np.float64), 0, 1)
    correct = np.array([line.answer == line.truth for line in stating], dtype=np.float64)
    constant = constant_confidence(correct, [line.task for line in stating]) if stating else correct
    return {
        "acc": _mean(correct),
        "f1": _f1(lines),
        **_calibration(confidence, correct),
        "n": len(lines),
        "n_confidence": len(stating),
        "mean_confidence": _mean(confidence),
        "baseline": _calibration(constant, correct),
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
    return {"ece": ece, "brier": brier_score(confidence, correct), "auroc": auroc(confidence, correct)}


def _from(lines: Sequence[OfficialLine], threshold: float) -> dict[str, float | None]:
    sure = [line for line in lines if line.confidence is not None and line.confidence >= threshold]
    return {
        "threshold": threshold,
        "acc": _mean([line.answer == line.truth for line in sure]),
        "f1": _f1(sure),
        "coverage": len(sure) / len(lines) if lines else None,
    }


def _f1(lines: Sequence[OfficialLine]) -> float | None:
    return _weighted_f1([line.answer for line in lines], [line.truth for line in lines])


def _weighted_f1(answers: Sequence[str], truths: Sequence[str]) -> float | None:
    if not truths:
        return None
    names = {label: position for position, label in enumerate(dict.fromkeys((*truths, *answers)))}
    return f1_scores([names[answer] for answer in answers], [names[truth] for truth in truths])[1]


def _mean(values: Any) -> float | None:
    if not len(values):
        return None
    mean = float(np.mean(values))
    return None if math.isnan(mean) else mean
