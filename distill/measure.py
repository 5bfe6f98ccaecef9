"""Figures of a stage on held-out samples, the same way for teacher and student, float and quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emocaliber.evaluate.metrics import kl_divergence
from emocaliber.evaluate.records import StageResult
from emocaliber.evaluate.row_figures import row_intervals
from emocaliber.evaluate.rows import Row, vote_share
from emocaliber.evaluate.summary import Correctness, expected_correctness, summarise
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.samples import Sample

Floats = NDArray[np.float64]
BATCH = 100

_BOUNDED = (
    "accuracy", "kl", "ece", "ece_votes", "brier", "brier_votes", "auroc", "set_coverage", "set_coverage_votes",
    "verbalized_ece", "verbalized_brier", "verbalized_auroc",
)  # fmt: skip
"""Metrics that are given an interval."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """What is known of N held-out samples; K candidates."""

    labels: NDArray[np.int64]
    """(N,) positions of the answers."""
    posterior: Floats | None
    """(N, K) true distributions, where every sample has one."""
    votes: Floats | None
    """(N, K) annotators' votes as distributions, where every sample has some."""


def truth_of(samples: Sequence[Sample]) -> Truth:
    """Returns the truth of the samples, all of one taxonomy.

    Raises:
        InputError: If a sample has no answer.
    """
    candidates = samples[0].resolve()
    missing = [sample.id for sample in samples if sample.answer is None]
    if missing:
        raise InputError(f"{len(missing)} held-out samples have no answer, the first is {missing[0]}")
    posteriors = [posterior for sample in samples if (posterior := sample.true_posterior()) is not None]
    votes = [sample.distribution() for sample in samples if sample.votes is not None]
    return Truth(
        labels=np.array([candidates.index(sample.answer or "") for sample in samples]),
        posterior=np.array(posteriors) if len(posteriors) == len(samples) else None,
        votes=np.array(votes) if len(votes) == len(samples) else None,
    )


def teacher_outputs(
    model: TransformersModel, samples: Sequence[Sample], mode: Mode, *, verbalize: bool
) -> tuple[Floats, Floats | None]:
    """Returns (N, K) distributions and, if asked, (N,) stated confidences of a model in memory, reasoning greedily.

    The samples are of one taxonomy.
    """
    probabilities, stated = [], []
    for start in range(0, len(samples), BATCH):
        images = [sample.image for sample in samples[start : start + BATCH]]
        scored = model.score(images, samples[0].resolve().labels, mode, verbalize=verbalize)
        probabilities.append(softmax(scored.label_scores).mean(axis=1))
        if scored.verbalized is not None:
            stated.append(scored.verbalized)
    return np.concatenate(probabilities), np.concatenate(stated) if stated else None


def bundle_outputs(
    model: EmotionModel, samples: Sequence[Sample], mode: Mode
) -> tuple[Floats, Floats | None, list[Prediction]]:
    """Returns (N, K) distributions, (N,) stated confidences in reason mode, and the predictions of a bundle."""
    predictions: list[Prediction] = []
    for start in range(0, len(samples), BATCH):
        images = [sample.image for sample in samples[start : start + BATCH]]
        predictions += model.predict_batch(images, taxonomy=samples[0].taxonomy, mode=mode)
    stated = [p.verbalized_confidence for p in predictions if p.verbalized_confidence is not None]
    return (
        np.array([list(p.distribution.values()) for p in predictions]),
        np.array(stated) if len(stated) == len(predictions) else None,
        predictions,
    )


def set_members(predictions: Sequence[Prediction], coverage: float) -> NDArray[np.bool_]:
    """Returns (N, K) booleans: which candidates stand in each prediction set."""
    return np.array(
        [[label in set(p.prediction_set(coverage)) for label in p.distribution] for p in predictions], dtype=np.bool_
    )


def stage_result(
    name: str,
    title: str,
    mode: Mode,
    truth: Truth,
    probabilities: Floats,
    *,
    verbalized: Floats | None = None,
    sets: NDArray[np.bool_] | None = None,
    wall_s: float | None = None,
) -> StageResult:
    """Returns the figures of one stage with bootstrap intervals, ready for ``metrics.json``.

    Figures are taken against the labels. Where the true posterior is known, ``ece_posterior``, ``brier_posterior``
    (their verbalised twins too) and ``set_coverage_posterior`` are taken against it: of labels drawn from it the same
    expectation, with less noise. Where there are votes, those with ``_votes`` say how they hold for a drawn annotator,
    and so does the reliability diagram.

    Args:
        name: Short unique name.
        title: What a reader sees.
        mode: How the predictions were made.
        truth: Of the first N held-out samples or more; cut to the predictions' length.
        probabilities: (N, K).
        verbalized: (N,) stated confidences.
        sets: (N, K) prediction sets at 90 %.
        wall_s: Seconds the stage took.
    """
    count = len(probabilities)
    labels = truth.labels[:count]
    posterior = None if truth.posterior is None else truth.posterior[:count]
    votes = None if truth.votes is None else truth.votes[:count]
    confidence = probabilities.max(axis=1)
    given = {"confidence": confidence, "posterior": posterior, "votes": votes, "sets": sets, "verbalized": verbalized}
    metrics = summarise(probabilities, labels, **given)
    by_votes = votes is not None
    correct = expected_correctness(probabilities, labels, votes=votes, correctness="votes" if by_votes else "labels")
    known: dict[Correctness, Floats | None] = {"posterior": posterior, "votes": votes}
    for against, distribution in known.items():
        if distribution is not None:
            figures = summarise(probabilities, labels, **given, correctness=against)
            kept = [key for key in figures if key.endswith(("ece", "brier", "set_coverage"))]
            metrics |= {f"{key}_{against}": figures[key] for key in kept}
    intervals = _intervals(probabilities, labels, posterior if posterior is not None else votes, votes, metrics, given)
    metrics["seconds"] = wall_s
    return StageResult(
        name=name,
        title=title,
        mode=mode,
        metrics=metrics,
        intervals=intervals,
        confidence=confidence,
        correct=correct,
        by_votes=by_votes,
    )


def _intervals(
    probabilities: Floats,
    labels: NDArray[np.int64],
    known: Floats | None,
    votes: Floats | None,
    metrics: Mapping[str, float | None],
    given: Mapping[str, Any],
) -> dict[str, tuple[float, float]]:
    """Returns 95 % bootstrap intervals of the metrics that have one, as `evaluate` makes them."""
    names = tuple(str(k) for k in range(probabilities.shape[1]))
    sets, stated = given["sets"], given["verbalized"]
    rows = []
    for i, p in enumerate(probabilities):
        chosen = None if sets is None else [name for name, inside in zip(names, sets[i], strict=True) if inside]
        voted = None if votes is None else tuple(votes[i])
        rows.append(
            Row(
                task="",
                labels=names,
                right=names[labels[i]],
                answer=names[int(p.argmax())],
                confidence=float(p.max()),
                verbalized=None if stated is None else float(stated[i]),
                distances=None if known is None else {"kl": kl_divergence([known[i]], [p])},
                votes=voted,
                covered=None if chosen is None else float(names[labels[i]] in chosen),
                covered_votes=None if chosen is None else vote_share(voted, names, chosen),
            )
        )
    spelt = {"accuracy": "acc"}
    found = row_intervals(rows, {spelt.get(name, name): metrics[name] for name in _BOUNDED if name in metrics})
    bounds = {name: found.get(spelt.get(name, name)) for name in _BOUNDED}
    return {name: (pair[0], pair[1]) for name, pair in bounds.items() if pair is not None}
