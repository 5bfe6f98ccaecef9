"""Figures of a stage on held-out samples, the same way for teacher and student, float and quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emocaliber.evaluate.intervals import bootstrap_mean
from emocaliber.evaluate.metrics import brier_losses
from emocaliber.evaluate.records import StageResult
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
    """Returns the figures of one stage with bootstrap intervals of its Brier scores, ready for ``metrics.json``.

    Figures are taken against the labels. Where the true posterior is known, ``ece_posterior``, ``brier_posterior``
    (their verbalised twins too) and ``set_coverage_posterior`` are taken against it: of labels drawn from it the same
    expectation, with less noise. Where there are votes, those with ``_votes`` say how they hold for a drawn annotator.

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
    correct = expected_correctness(probabilities, labels)
    known: dict[Correctness, Floats | None] = {"posterior": posterior, "votes": votes}
    for against, distribution in known.items():
        if distribution is not None:
            figures = summarise(probabilities, labels, **given, correctness=against)
            kept = [key for key in figures if key.endswith(("ece", "brier", "set_coverage"))]
            metrics |= {f"{key}_{against}": figures[key] for key in kept}
    intervals = {"brier": bootstrap_mean(brier_losses(confidence, correct)).bounds}
    if verbalized is not None:
        intervals["verbalized_brier"] = bootstrap_mean(brier_losses(verbalized, correct)).bounds
    metrics["seconds"] = wall_s
    return StageResult(
        name=name, title=title, mode=mode, metrics=metrics, intervals=intervals, confidence=confidence, correct=correct
    )
