"""The figures of one model on one set of samples, under the names every report and ``metrics.json`` uses."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.errors import InputError

from .metrics import (
    accuracy,
    as_distributions,
    as_labels,
    auroc,
    bayes_accuracy,
    brier_score,
    expected_calibration_error,
    kl_divergence,
    mean_set_size,
    negative_log_likelihood,
    set_coverage,
)

Floats = NDArray[np.float64]
Correctness = Literal["labels", "votes", "posterior"]


def summarise(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    confidence: ArrayLike,
    posterior: ArrayLike | None = None,
    votes: ArrayLike | None = None,
    sets: ArrayLike | None = None,
    verbalized: ArrayLike | None = None,
    correctness: Correctness = "labels",
) -> dict[str, float | None]:
    """Returns the figures of one model on N samples; undefined ones are None.

    Always: ``accuracy`` (against `labels`), ``bayes_accuracy`` and ``kl`` (true to predicted, nats; of the posterior,
    else the votes, else None), ``ece``, ``brier``, ``auroc`` (of `confidence`), ``nll`` (of `labels`, nats), ``n``.
    With `verbalized`: ``verbalized_ece``, ``verbalized_brier``, ``verbalized_auroc``. With `sets`: ``set_coverage``,
    ``set_size``.

    Args:
        probs: (N, K), predicted distributions; the most probable label is the answer.
        labels: (N,), positions of the labels taken as right.
        confidence: (N,), in [0, 1], probability that the answer is right, as the model gives it.
        posterior: (N, K), true distributions, where known.
        votes: (N, K), annotators' votes as distributions, where there are any.
        sets: (N, K), booleans, the prediction sets.
        verbalized: (N,), in [0, 1], the confidence the model put into words.
        correctness: What confidences and sets are held against: `labels` (an answer is right or wrong), or the chance
            of being right that `votes` or the `posterior` give it; with labels drawn from these, the same expectation
            with less noise.

    Raises:
        InputError: If shapes or values do not fit, or ``correctness`` names a distribution that is not given.
    """
    p = as_distributions(probs)
    correct = expected_correctness(p, labels, posterior=posterior, votes=votes, correctness=correctness)
    reference = posterior if posterior is not None else votes
    result: dict[str, float | None] = {
        "accuracy": accuracy(p, labels),
        "bayes_accuracy": None if reference is None else bayes_accuracy(reference),
        "kl": None if reference is None else kl_divergence(reference, p),
        "ece": expected_calibration_error(confidence, correct),
        "brier": brier_score(confidence, correct),
        "auroc": auroc(confidence, correct),
        "nll": negative_log_likelihood(p, labels),
        "n": len(p),
    }
    if verbalized is not None:
        result["verbalized_ece"] = expected_calibration_error(verbalized, correct)
        result["verbalized_brier"] = brier_score(verbalized, correct)
        result["verbalized_auroc"] = auroc(verbalized, correct)
    if sets is not None:
        truth = {"labels": labels, "votes": votes, "posterior": posterior}[correctness]
        assert truth is not None
        result["set_coverage"] = set_coverage(sets, truth)
        result["set_size"] = mean_set_size(sets)
    return result


def expected_correctness(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    posterior: ArrayLike | None = None,
    votes: ArrayLike | None = None,
    correctness: Correctness = "labels",
) -> Floats:
    """Returns (N,), in [0, 1], the (chance of) correctness of each row's most probable label; arguments as `summarise`.

    Raises:
        InputError: If shapes or values do not fit, or the distribution asked for is not given.
    """
    p = as_distributions(probs)
    right = as_labels(labels, p)
    answers = p.argmax(axis=1)
    if correctness == "labels":
        hits: Floats = (answers == right).astype(np.float64)
        return hits
    given = {"votes": votes, "posterior": posterior}[correctness]
    if given is None:
        raise InputError(f"correctness is held against the {correctness}, but none are given")
    truth = as_distributions(given)
    if truth.shape != p.shape:
        raise InputError(f"{correctness} have shape {truth.shape}, predictions {p.shape}")
    chances: Floats = truth[np.arange(len(p)), answers]
    return chances
