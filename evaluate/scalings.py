"""The label scalings behind a calibrator: temperature, bias-corrected temperature, and regularised matrix.

All minimise a smooth objective by L-BFGS with analytic gradients. Scores are centred per row, as the runtime does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from emocaliber.runtime.calibration import Method, scaled_probabilities, softmax
from emocaliber.runtime.confidence import PROBABILITY_EDGE

Floats = NDArray[np.float64]
Objective = Callable[[Floats], tuple[float, Floats]]

MATRIX_PENALTIES = (0.03, 0.3, 3.0, 30.0)
"""Penalties among which cross-validation chooses for matrix scaling."""

TEMPERATURE_RANGE = (0.01, 100.0)
"""Fitted temperatures stay inside: scores that say nothing would else drive T to infinity."""

_BIAS_SCALE = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaling:
    """Fitted parameters of ``p = softmax(W (s - mean s) / T + b)``."""

    temperature: float
    """T, inside `TEMPERATURE_RANGE`."""
    bias: Floats
    """b, (K,), mean zero."""
    weight: Floats | None
    """W, (K, K); None is the identity."""

    def apply(self, scores: Floats) -> Floats:
        """Returns (N, K) probabilities for (N, K) raw scores."""
        weight = None if self.weight is None else self.weight.tolist()
        return scaled_probabilities(scores, self.temperature, self.bias.tolist(), weight)


def fit_scaling(method: Method, scores: Floats, targets: Floats, penalty: float = 0.0) -> Scaling:
    """Returns the parameters that minimise the cross-entropy to the targets, plus the method's penalty.

    ``temperature`` fits T. ``bias`` fits T and b. ``matrix`` keeps the fitted T and fits W, from the identity, and b
    under ``penalty * (mean_{i != j} W_ij^2 + mean_j b_j^2)``: off-diagonal and intercept regularisation (Kull et al.
    2019, arXiv 1910.12656).

    Args:
        method: Which parameters are free.
        scores: (N, K), raw, finite.
        targets: (N, K), rows that sum to one.
        penalty: Strength for ``matrix``, > 0; the others have none.
    """
    centred = scores - scores.mean(axis=1, keepdims=True)
    count = scores.shape[1]
    low, high = (-math.log(edge) for edge in reversed(TEMPERATURE_RANGE))
    start = np.zeros(1 + count) if method == "bias" else np.zeros(1)
    objective = bias_objective(centred, targets) if method == "bias" else temperature_objective(centred, targets)
    fitted = minimised(objective, start, [(low, high)] + [(None, None)] * (len(start) - 1))
    temperature = math.exp(-float(fitted[0]))
    if method != "matrix":
        bias = fitted[1:] - fitted[1:].mean() if method == "bias" else np.zeros(count)
        return Scaling(temperature=temperature, bias=bias, weight=None)
    begin = np.concatenate([np.eye(count).ravel(), np.zeros(count)])
    fitted = minimised(matrix_objective(centred / temperature, targets, penalty), begin, None)
    bias = fitted[count * count :]
    weight = fitted[: count * count].reshape(count, count)
    return Scaling(temperature=temperature, bias=bias - bias.mean(), weight=weight)


def temperature_objective(centred: Floats, targets: Floats) -> Objective:
    """Returns the cross-entropy as a function of (1,) ``a = -ln T``, and its gradient.

    With ``p = softmax(e^a z)``: ``dL/da = mean_n sum_k (p - t)_nk e^a z_nk``.
    """

    def objective(parameters: Floats) -> tuple[float, Floats]:
        logits = np.exp(parameters[0]) * centred
        loss, error = _cross_entropy(logits, targets)
        return loss, np.array([(error * logits).sum()])

    return objective


def bias_objective(centred: Floats, targets: Floats) -> Objective:
    """Returns the cross-entropy as a function of (1 + K,) ``(a, b)``, and its gradient: ``dL/db = mean_n (p - t)_n``.

    A ridge of ``|b|^2 / (2 N 3^2)``, a normal prior of 3 nats on b, picks one of the equal solutions (b is free up to a
    constant) and keeps labels that nobody chose possible.
    """
    ridge = 1.0 / (2 * len(centred) * _BIAS_SCALE**2)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        scaled, bias = np.exp(parameters[0]) * centred, parameters[1:]
        loss, error = _cross_entropy(scaled + bias, targets)
        gradient = np.concatenate([[(error * scaled).sum()], error.sum(axis=0) + 2 * ridge * bias])
        return loss + ridge * float(bias @ bias), gradient

    return objective


def matrix_objective(scaled: Floats, targets: Floats, penalty: float) -> Objective:
    """Returns the penalised cross-entropy as a function of (K K + K,) ``(W, b)``, row by row, and its gradient.

    ``dL/dW = mean_n (p - t)_n z_n^T + 2 penalty / (K (K - 1)) offdiag(W)`` and
    ``dL/db = mean_n (p - t)_n + 2 penalty / K b``.
    """
    count = scaled.shape[1]
    off_diagonal = 1.0 - np.eye(count)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        weight, bias = parameters[: count * count].reshape(count, count), parameters[count * count :]
        loss, error = _cross_entropy(scaled @ weight.T + bias, targets)
        off = weight * off_diagonal
        loss += penalty * (float((off**2).sum()) / (count * (count - 1)) + float(bias @ bias) / count)
        for_weight = error.T @ scaled + 2 * penalty / (count * (count - 1)) * off
        for_bias = error.sum(axis=0) + 2 * penalty / count * bias
        return loss, np.concatenate([for_weight.ravel(), for_bias])

    return objective


def binary_log_losses(probability: Floats, correct: Floats) -> Floats:
    """Returns (N,) ``-q ln p - (1 - q) ln(1 - p)`` in nats, p clipped to [1e-6, 1 - 1e-6]."""
    p = np.clip(probability, PROBABILITY_EDGE, 1.0 - PROBABILITY_EDGE)
    losses: Floats = -correct * np.log(p) - (1.0 - correct) * np.log1p(-p)
    return losses


def _cross_entropy(logits: Floats, targets: Floats) -> tuple[float, Floats]:
    """Returns the mean cross-entropy and its gradient (N, K) with respect to the logits."""
    peak = logits.max(axis=1, keepdims=True)
    log_sums = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    loss = float((targets * (log_sums - logits)).sum() / len(logits))
    return loss, (softmax(logits) - targets) / len(logits)


def minimised(objective: Objective, start: Floats, bounds: list[tuple[float | None, float | None]] | None) -> Floats:
    """Returns the parameters at the minimum of a smooth objective (L-BFGS-B), from ``start``, inside the bounds."""
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 500, "ftol": 1e-8, "gtol": 1e-6},
    )
    return np.asarray(result.x, dtype=np.float64)
