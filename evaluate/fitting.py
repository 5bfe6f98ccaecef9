"""Fits the calibrators that `emocaliber.runtime.calibration` applies: methods compared by cross-validation.

Every fit minimises the cross-entropy of the calibrated probabilities to the target distributions (annotators' votes, a
known posterior, or one-hot labels). Fusion of the verbalised confidence and the conformal thresholds are fitted on
out-of-fold probabilities, so that they see the calibrator as new images will, not as its own training data did.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.calibration import Calibrator, ConfidenceFusion, Conformal, Method, conformal_scores
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.taxonomy import Taxonomy

from .scalings import MATRIX_PENALTIES, Scaling, binary_log_losses, fit_fusion, fit_scaling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
"""Coverages for which thresholds are fitted."""

MIN_SAMPLES = 100
"""Fewest samples a calibrator is fitted on: below, neither the folds nor the 0.99 threshold mean anything."""

FOLDS = 5
"""Folds of the cross-validation."""

_TINY = 1e-12
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One method at one penalty, with what cross-validation says of it."""

    method: Method
    penalty: float
    held_out: Floats
    log_loss: float


def fit_calibrator(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    labels: tuple[str, ...],
    taxonomy: str,
    mode: Mode,
    precision: str,
    engine: str,
    fitted_on: str,
    verbalized: ArrayLike | None = None,
    seed: int = 0,
) -> Calibrator:
    """Returns the calibrator that generalises best, with its conformal thresholds and every method's log loss.

    Temperature (Guo et al. 2017), bias-corrected temperature (Alexandari et al. 2020) and matrix scaling regularised
    towards the identity (ODIR; Kull et al. 2019) are compared by 5-fold cross-validated log loss. A verbalised
    confidence is taken in only if that lowers the held-out log loss further.

    Args:
        scores: (N, K), raw label scores in nats, of exactly the model, mode, precision and engine to calibrate.
        targets: (N, K), rows that sum to one: votes, a known posterior, or one-hot labels.
        labels: The K candidates in the order of the columns.
        taxonomy: Name of the label set.
        mode: Prediction mode of the scores.
        precision: Bundle precision of the scores.
        engine: Engine that computed them.
        fitted_on: The samples, in words; goes into the record.
        verbalized: (N,), in (0, 1), the confidences the model stated; None where it states none.
        seed: Of the folds.

    Raises:
        InputError: If there are fewer than `MIN_SAMPLES` samples, a number is not finite, or shapes do not fit.
    """
    s, t = _checked(scores, targets, labels)
    stated = None if verbalized is None else _checked_confidence(verbalized, len(s))
    fold = _assign_folds(len(s), seed)
    tried = _try_all(s, t, fold)
    best = min(tried.values(), key=lambda candidate: candidate.log_loss)
    scaling = fit_scaling(best.method, s, t, best.penalty)
    held_out, fusion = best.held_out, None
    if stated is not None:
        held_out, fusion = _fuse(best.held_out, t, stated, fold)
    return Calibrator(
        taxonomy=taxonomy,
        mode=mode,
        precision=precision,
        engine=engine,
        labels=tuple(labels),
        method=best.method,
        temperature=scaling.temperature,
        bias=tuple(float(b) for b in scaling.bias),
        weight=None if scaling.weight is None else tuple(tuple(float(w) for w in row) for row in scaling.weight),
        confidence=fusion,
        conformal=fit_conformal(held_out, t),
        n=len(s),
        fitted_on=fitted_on,
        log_loss=cross_entropy(held_out, t),
        candidates={name: candidate.log_loss for name, candidate in tried.items()},
    )


def fit_conformal(probabilities: ArrayLike, targets: ArrayLike, coverages: tuple[float, ...] = COVERAGES) -> Conformal:
    """Returns thresholds for which prediction sets hold a label drawn from the target at least as often as asked.

    Split conformal prediction with the APS score (Vovk et al. 2005; Romano et al. 2020, without randomisation). Votes
    are weights: the threshold is the smallest score s with ``sum_i sum_y t_iy [score_iy <= s] >= (n + 1) coverage``,
    the finite-sample quantile; where n is too small for it, 1, which admits every label.

    Args:
        probabilities: (N, K), calibrated, of samples the calibrator was not fitted on.
        targets: (N, K), rows that sum to one.
        coverages: Increasing, in (0, 1).

    Raises:
        InputError: If shapes differ or a number is not finite.
    """
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 2 or not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise InputError(f"conformal thresholds need finite (N, K) arrays, got {p.shape} and {t.shape}")
    flat = conformal_scores(p).ravel()
    order = np.argsort(flat, kind="stable")
    ordered, mass = flat[order], np.cumsum(t.ravel()[order])
    thresholds = []
    for coverage in coverages:
        position = int(np.searchsorted(mass, (len(p) + 1) * coverage - 1e-9, side="left"))
        thresholds.append(float(ordered[position]) if position < len(ordered) else 1.0)
    return Conformal(method="aps", coverages=tuple(coverages), thresholds=tuple(thresholds))


def cross_entropy(probabilities: Floats, targets: Floats) -> float:
    """Returns the mean of ``-sum_k t_k ln p_k`` in nats; probabilities (N, K) are clipped at 1e-12 from below."""
    return float(-(targets * np.log(np.maximum(probabilities, _TINY))).sum(axis=1).mean())


def _try_all(scores: Floats, targets: Floats, fold: Ints) -> dict[str, _Candidate]:
    tried: dict[str, _Candidate] = {}
    grid: tuple[tuple[Method, tuple[float, ...]], ...] = (
        ("temperature", (0.0,)),
        ("bias", (0.0,)),
        ("matrix", MATRIX_PENALTIES),
    )
    for method, penalties in grid:
        candidates = [_cross_validate(method, penalty, scores, targets, fold) for penalty in penalties]
        tried[method] = min(candidates, key=lambda candidate: candidate.log_loss)
    return tried


def _cross_validate(method: Method, penalty: float, scores: Floats, targets: Floats, fold: Ints) -> _Candidate:
    held_out = np.empty_like(scores)
    for k in range(FOLDS):
        outside = fold != k
        scaling: Scaling = fit_scaling(method, scores[outside], targets[outside], penalty)
        held_out[~outside] = scaling.apply(scores[~outside])
    return _Candidate(method=method, penalty=penalty, held_out=held_out, log_loss=cross_entropy(held_out, targets))


def _fuse(held_out: Floats, targets: Floats, stated: Floats, fold: Ints) -> tuple[Floats, ConfidenceFusion | None]:
    """Returns held-out probabilities and the fusion that made them better, or the same ones and None."""
    index = np.arange(len(held_out))
    top = held_out.argmax(axis=1)
    correct = targets[index, top]
    fused = np.empty_like(held_out)
    for k in range(FOLDS):
        outside = fold != k
        fusion = fit_fusion(held_out[outside].max(axis=1), stated[outside], correct[outside])
        fused[~outside] = fusion.apply(held_out[~outside], stated[~outside])
    # The other labels keep their proportions, so only the top label's binary log loss can change.
    if binary_log_losses(fused[index, top], correct).mean() >= binary_log_losses(held_out[index, top], correct).mean():
        return held_out, None
    return fused, fit_fusion(held_out.max(axis=1), stated, correct)


def _assign_folds(n: int, seed: int) -> Ints:
    fold = np.arange(n, dtype=np.int64) % FOLDS
    np.random.default_rng(seed).shuffle(fold)
    return fold


def _checked(scores: ArrayLike, targets: ArrayLike, labels: tuple[str, ...]) -> tuple[Floats, Floats]:
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    Taxonomy(name="calibrated", labels=tuple(labels))
    if s.ndim != 2 or s.shape[1] != len(labels) or t.shape != s.shape:
        raise InputError(f"scores have shape {s.shape}, targets {t.shape}; expected (N, {len(labels)}) both")
    if len(s) < MIN_SAMPLES:
        raise InputError(f"a calibrator needs at least {MIN_SAMPLES} samples, got {len(s)}")
    if not (np.isfinite(s).all() and np.isfinite(t).all()):
        raise InputError("scores or targets hold a number that is not finite (NaN or infinity)")
    if (t < 0).any() or float(np.abs(t.sum(axis=1) - 1.0).max()) > _SUM_TOLERANCE:
        raise InputError("targets are not distributions: every row must be >= 0 and sum to one")
    return s, t / t.sum(axis=1, keepdims=True)


def _checked_confidence(verbalized: ArrayLike, n: int) -> Floats:
    stated = np.asarray(verbalized, dtype=np.float64)
    if stated.shape != (n,):
        raise InputError(f"verbalized has shape {stated.shape}, expected ({n},)")
    if not (np.isfinite(stated).all() and (stated >= 0).all() and (stated <= 1).all()):
        raise InputError("verbalized holds a number outside [0, 1] or not finite")
    return stated
