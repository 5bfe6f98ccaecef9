"""Fits the calibrators that `emocaliber.runtime.calibration` applies: methods compared by cross-validation.

Every fit minimises the cross-entropy of the calibrated probabilities to the target distributions (annotators' votes, a
known posterior, or one-hot labels). The confidence map and the conformal thresholds are fitted on out-of-fold
probabilities, so that they see the calibrator as new images will, not as its own training data did.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emocaliber.runtime.calibration import Calibrator, Method
from emocaliber.runtime.confidence import map_confidence
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.taxonomy import Taxonomy

from .confidence_fitting import ChosenMap, choose_map
from .conformal_fitting import choose_conformal
from .drift_fitting import fit_drift
from .folds import FOLDS, assign_folds, clearly_better
from .scalings import MATRIX_PENALTIES, Scaling, fit_scaling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_SAMPLES = 100
"""Fewest samples a calibrator is fitted on: with 98 or fewer no threshold can promise a coverage of 0.99."""

MIN_SAMPLES_A_LABEL = 10
"""Fewest samples for each label of the set, on average: ten for each number that the bias method fits."""

_TINY = 1e-12
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scaled:
    """The label scaling that cross-validation chose."""

    method: Method
    scaling: Scaling
    held_out: Floats
    log_losses: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fitted:
    """Label scaling and confidence map, fitted together."""

    scaled: _Scaled
    mapped: ChosenMap

    def apply(self, scores: Floats, verbalized: Floats | None) -> Floats:
        """Returns (N, K) calibrated probabilities."""
        probabilities = self.scaled.scaling.apply(scores)
        if self.mapped.mapping is None:
            return probabilities
        return map_confidence(self.mapped.mapping, probabilities, verbalized)


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
    features: ArrayLike | None = None,
    seed: int = 0,
) -> Calibrator:
    """Returns the calibrator that generalises best, with its prediction sets and the log loss of all that was tried.

    Temperature (Guo et al. 2017), bias-corrected temperature (Alexandari et al. 2020) and matrix scaling regularised
    towards the identity (ODIR; Kull et al. 2019) are compared by 5-fold cross-validated log loss, and so are the
    confidence maps of `choose_map`. A richer method is taken only if it is `clearly_better` than the simpler one.

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
        features: (N, D), of the vision encoder, by which drift is noticed later; None records nothing.
        seed: Of the folds.

    Raises:
        InputError: If there are fewer samples than `minimum_samples`, a number is not finite, or shapes do not fit.
    """
    s, t = _checked(scores, targets, labels)
    stated = None if verbalized is None else _checked_confidence(verbalized, len(s))
    fold = assign_folds(len(s), seed)
    fitted = _fit(s, t, stated, fold)
    scaling, mapped = fitted.scaled.scaling, fitted.mapped
    return Calibrator(
        taxonomy=taxonomy,
        mode=mode,
        precision=precision,
        engine=engine,
        labels=tuple(labels),
        method=fitted.scaled.method,
        temperature=scaling.temperature,
        bias=tuple(float(b) for b in scaling.bias),
        weight=None if scaling.weight is None else tuple(tuple(float(w) for w in row) for row in scaling.weight),
        confidence=mapped.mapping,
        conformal=choose_conformal(mapped.held_out, t, fold),
        n=len(s),
        fitted_on=fitted_on,
        log_loss=cross_entropy(mapped.held_out, t),
        candidates=fitted.scaled.log_losses,
        confidence_candidates=mapped.log_losses,
        drift=None if features is None else fit_drift(features, seed),
    )


def cross_fitted(scores: ArrayLike, targets: ArrayLike, verbalized: ArrayLike | None = None, seed: int = 0) -> Floats:
    """Returns (N, K) calibrated probabilities, each sample's by a calibrator whose every choice was made without it.

    What `fit_calibrator` is worth on new images: `Calibrator.log_loss` is of methods chosen on the same folds.

    Args:
        scores: (N, K), as in `fit_calibrator`.
        targets: (N, K), as there.
        verbalized: (N,), as there.
        seed: Of the folds.

    Raises:
        InputError: As `fit_calibrator`.
    """
    given = np.asarray(scores, dtype=np.float64)
    s, t = _checked(given, targets, tuple(f"label {k}" for k in range(given.shape[-1])))
    stated = None if verbalized is None else _checked_confidence(verbalized, len(s))
    fold = assign_folds(len(s), seed)
    held_out = np.empty_like(s)
    for k in range(FOLDS):
        inside, outside = fold == k, fold != k
        part = None if stated is None else stated[outside]
        fitted = _fit(s[outside], t[outside], part, assign_folds(int(outside.sum()), seed + 1))
        held_out[inside] = fitted.apply(s[inside], None if stated is None else stated[inside])
    return held_out


def minimum_samples(labels: int) -> int:
    """Returns the fewest samples that a calibrator over so many labels is fitted on."""
    return max(MIN_SAMPLES, MIN_SAMPLES_A_LABEL * labels)


def cross_entropy(probabilities: Floats, targets: Floats) -> float:
    """Returns the mean of ``-sum_k t_k ln p_k`` in nats; probabilities (N, K) are clipped at 1e-12 from below."""
    return float(_cross_entropies(probabilities, targets).mean())


def _cross_entropies(probabilities: Floats, targets: Floats) -> Floats:
    losses: Floats = -(targets * np.log(np.maximum(probabilities, _TINY))).sum(axis=1)
    return losses


def _fit(scores: Floats, targets: Floats, stated: Floats | None, fold: Ints) -> _Fitted:
    scaled = _choose_scaling(scores, targets, fold)
    return _Fitted(scaled=scaled, mapped=choose_map(scaled.held_out, targets, stated, fold))


def _choose_scaling(scores: Floats, targets: Floats, fold: Ints) -> _Scaled:
    """Returns the chosen method, fitted on all samples; the matrix comes with its best penalty."""
    grid: tuple[tuple[Method, tuple[float, ...]], ...] = (
        ("temperature", (0.0,)),
        ("bias", (0.0,)),
        ("matrix", MATRIX_PENALTIES),
    )
    losses: dict[str, Floats] = {}
    chosen: tuple[Method, float, Floats] | None = None
    for method, penalties in grid:
        tried = [(penalty, _cross_validated(method, penalty, scores, targets, fold)) for penalty in penalties]
        penalty, held_out = min(tried, key=lambda pair: cross_entropy(pair[1], targets))
        losses[method] = _cross_entropies(held_out, targets)
        if chosen is None or clearly_better(losses[method], losses[chosen[0]]):
            chosen = method, penalty, held_out
    assert chosen is not None
    method, penalty, held_out = chosen
    return _Scaled(
        method=method,
        scaling=fit_scaling(method, scores, targets, penalty),
        held_out=held_out,
        log_losses={name: float(values.mean()) for name, values in losses.items()},
    )


def _cross_validated(method: Method, penalty: float, scores: Floats, targets: Floats, fold: Ints) -> Floats:
    """Returns (N, K) probabilities of every sample by a fit that has not seen it."""
    held_out = np.empty_like(scores)
    for k in range(FOLDS):
        outside = fold != k
        scaling: Scaling = fit_scaling(method, scores[outside], targets[outside], penalty)
        held_out[~outside] = scaling.apply(scores[~outside])
    return held_out


def _checked(scores: ArrayLike, targets: ArrayLike, labels: tuple[str, ...]) -> tuple[Floats, Floats]:
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    Taxonomy(name="calibrated", labels=tuple(labels))
    if s.ndim != 2 or s.shape[1] != len(labels) or t.shape != s.shape:
        raise InputError(f"scores have shape {s.shape}, targets {t.shape}; expected (N, {len(labels)}) both")
    least = minimum_samples(len(labels))
    if len(s) < least:
        raise InputError(f"a calibrator over {len(labels)} labels needs at least {least} samples, got {len(s)}")
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
