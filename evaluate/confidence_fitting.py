"""Fits the confidence maps that `emocaliber.runtime.confidence` applies, and chooses one, or none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from emocaliber.runtime.confidence import (
    PROBABILITY_EDGE,
    BetaConfidence,
    ConfidenceFusion,
    ConfidenceMap,
    IsotonicConfidence,
    logit,
    map_confidence,
    sigmoid,
)

from .folds import FOLDS, clearly_better
from .scalings import Objective, binary_log_losses, minimised

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PENALTY = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChosenMap:
    """The confidence map that cross-validation chose."""

    mapping: ConfidenceMap | None
    """Fitted on all samples; None leaves the probabilities as they are."""
    held_out: Floats
    """(N, K) probabilities of every sample, mapped by a fit that has not seen it."""
    log_losses: dict[str, float]
    """Held-out log loss of the top label's confidence under ``none`` and every map that was tried, in nats."""


def choose_map(probabilities: Floats, targets: Floats, verbalized: Floats | None, fold: Ints) -> ChosenMap:
    """Returns the map under which it is most probable, on held-out samples, whether the top label is right.

    In the order none, fusion, beta, isotonic, a richer map is taken only if it is `clearly_better` than the one before.

    Args:
        probabilities: (N, K), calibrated, of samples the calibrator was not fitted on.
        targets: (N, K), rows that sum to one.
        verbalized: (N,), stated confidences; None where there are none, and no fusion is tried.
        fold: (N,), of `assign_folds`.
    """
    index, top = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    correct = targets[index, top]
    kept, chosen = probabilities, "none"
    losses = {"none": binary_log_losses(probabilities[index, top], correct)}
    for kind in ("fusion", "beta", "isotonic"):
        if kind == "fusion" and verbalized is None:
            continue
        held_out = np.empty_like(probabilities)
        for k in range(FOLDS):
            inside, outside = fold == k, fold != k
            stated = None if verbalized is None else verbalized[inside]
            mapping = _fit(kind, probabilities, correct, verbalized, outside)
            held_out[inside] = map_confidence(mapping, probabilities[inside], stated)
        losses[kind] = binary_log_losses(held_out[index, top], correct)
        if clearly_better(losses[kind], losses[chosen]):
            kept, chosen = held_out, kind
    everywhere = np.ones(len(probabilities), dtype=np.bool_)
    return ChosenMap(
        mapping=None if chosen == "none" else _fit(chosen, probabilities, correct, verbalized, everywhere),
        held_out=kept,
        log_losses={kind: float(values.mean()) for kind, values in losses.items()},
    )


def fit_fusion(top: Floats, verbalized: Floats, correct: Floats) -> ConfidenceFusion:
    """Returns the logistic regression of correctness on ``(1, logit p_top, logit c)``, pulled towards ``(0, 1, 0)``.

    That point is "leave the probability as it is", so a stated confidence has to earn its weight.

    Args:
        top: (N,), calibrated probability of the top label.
        verbalized: (N,), stated confidence in it.
        correct: (N,), in [0, 1], (expected) correctness of the top label.
    """
    features = np.stack([np.ones_like(top), logit(top), logit(verbalized)], axis=1)
    home = np.array([0.0, 1.0, 0.0])
    fitted = minimised(logistic_objective(features, correct, home), home, None)
    return ConfidenceFusion(intercept=float(fitted[0]), top=float(fitted[1]), verbalized=float(fitted[2]))


def fit_beta(top: Floats, correct: Floats) -> BetaConfidence:
    """Returns the logistic regression of correctness on ``(1, ln p, -ln(1 - p))``, pulled towards ``(0, 1, 1)``.

    Kull, Silva Filho and Flach 2017 (AISTATS), with weights >= 0 so that the map never falls.

    Args:
        top: (N,), calibrated probability of the top label.
        correct: (N,), in [0, 1].
    """
    p = np.clip(top, PROBABILITY_EDGE, 1.0 - PROBABILITY_EDGE)
    features = np.stack([np.ones_like(p), np.log(p), -np.log1p(-p)], axis=1)
    home = np.array([0.0, 1.0, 1.0])
    fitted = minimised(logistic_objective(features, correct, home), home, [(None, None), (0.0, None), (0.0, None)])
    return BetaConfidence(intercept=float(fitted[0]), success=float(fitted[1]), failure=float(fitted[2]))


def fit_isotonic(top: Floats, correct: Floats) -> IsotonicConfidence:
    """Returns the rising map that is nearest to correctness in least squares (Zadrozny and Elkan 2002).

    Each level has a knot at both its ends, with straight lines between. Confidences are kept ``1 / (N + 2)`` away from
    0 and 1: no finite sample proves certainty.

    Args:
        top: (N,), calibrated probability of the top label.
        correct: (N,), in [0, 1].
    """
    tops, group, counts = np.unique(top, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=correct) / counts
    levels = isotonic_regression(means, weights=counts).x
    edge = 1.0 / (len(top) + 2)
    levels = np.clip(levels, edge, 1.0 - edge)
    changes = np.diff(levels) > 0
    ends = np.concatenate([[True], changes]) | np.concatenate([changes, [True]])
    return IsotonicConfidence(
        tops=tuple(float(x) for x in tops[ends]), confidences=tuple(float(y) for y in levels[ends])
    )


def logistic_objective(features: Floats, correct: Floats, home: Floats) -> Objective:
    """Returns the penalised mean binary log loss as a function of (P,) weights, and its gradient.

    With ``f = sigmoid(X w)``: ``dL/dw = mean_n (f - q)_n x_n + 2 / N (w - home)``.
    """
    strength = _PENALTY / len(features)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        logits = features @ parameters
        loss = float((np.logaddexp(0.0, logits) - correct * logits).mean())
        error = (sigmoid(logits) - correct) / len(correct)
        away = parameters - home
        return loss + strength * float(away @ away), features.T @ error + 2 * strength * away

    return objective


def _fit(
    kind: str, probabilities: Floats, correct: Floats, verbalized: Floats | None, chosen: NDArray[np.bool_]
) -> ConfidenceMap:
    """Returns the map of this kind, fitted on the chosen samples."""
    top = probabilities[chosen].max(axis=1)
    if kind == "fusion":
        assert verbalized is not None
        return fit_fusion(top, verbalized[chosen], correct[chosen])
    return fit_beta(top, correct[chosen]) if kind == "beta" else fit_isotonic(top, correct[chosen])
