"""Prediction sets: hand-worked scores and sets, and impossible thresholds refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emocaliber.runtime.conformal import Conformal, conformal_scores, prediction_set
from emocaliber.runtime.errors import ArtifactError, InputError

THRESHOLDS = Conformal(method="aps", coverages=(0.8, 0.9), thresholds=(0.5, 0.7))


def test_conformal_scores_by_hand() -> None:
    np.testing.assert_allclose(conformal_scores(np.array([0.2, 0.5, 0.3])), [0.8, 0.0, 0.5])
    # Ties go by list order.
    np.testing.assert_allclose(conformal_scores(np.array([[0.25, 0.5, 0.25]])), [[0.5, 0.0, 0.75]])


def test_threshold_of_the_smallest_sufficient_coverage() -> None:
    assert [THRESHOLDS.threshold(c) for c in (0.5, 0.8, 0.85, 0.9, 0.95)] == [0.5, 0.5, 0.7, 0.7, math.inf]


def test_prediction_sets_by_hand() -> None:
    probabilities = (0.2, 0.5, 0.3)
    assert prediction_set(probabilities, 0.8, THRESHOLDS) == (1, 2)
    assert prediction_set(probabilities, 0.99, THRESHOLDS) == (1, 2, 0)
    # Without thresholds: the fewest labels that hold the coverage.
    assert prediction_set(probabilities, 0.5, None) == (1,)
    assert prediction_set(probabilities, 0.6, None) == (1, 2)
    assert prediction_set(probabilities, 0.01, None) == (1,)
    for coverage in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="coverage"):
            prediction_set(probabilities, coverage, None)


def test_regularised_scores_by_hand() -> None:
    # Ranks 3, 1, 2; one label is free: the second adds 0.1, the third 0.2.
    np.testing.assert_allclose(conformal_scores(np.array([0.2, 0.5, 0.3]), 0.1, 1), [1.0, 0.0, 0.6])
    np.testing.assert_allclose(conformal_scores(np.array([0.2, 0.5, 0.3]), 0.1, 2), [0.9, 0.0, 0.5])


def test_regularised_sets_by_hand() -> None:
    raps = Conformal(method="raps", penalty=0.1, free=1, coverages=(0.8, 0.9), thresholds=(0.55, 1.0))
    assert prediction_set((0.2, 0.5, 0.3), 0.8, raps) == (1,)
    assert prediction_set((0.2, 0.5, 0.3), 0.9, raps) == (1, 2, 0)
    assert prediction_set((0.2, 0.5, 0.3), 0.99, raps) == (1, 2, 0), "beyond the fitted coverages: every label"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "raps"}, "raps has penalty 0.0"),
        ({"penalty": 0.1}, "aps has penalty 0.1"),
        ({"method": "raps", "penalty": 0.1, "free": 0}, "0 free labels"),
        ({"sizes": {"aps": math.inf}}, "not finite"),
    ],
)
def test_impossible_methods_are_refused(changes: dict[str, object], message: str) -> None:
    fields = {"method": "aps", "coverages": (0.9,), "thresholds": (0.5,), **changes}
    with pytest.raises(ArtifactError, match=message):
        Conformal(**fields)


@pytest.mark.parametrize(
    ("coverages", "thresholds", "message"),
    [
        ((), (), "at least one"),
        ((0.8, 0.9), (0.5,), "2 coverages and 1 thresholds"),
        ((0.9, 0.8), (0.5, 0.7), "increasing"),
        ((0.8, 1.0), (0.5, 0.7), "increasing"),
        ((0.8, 0.9), (0.7, 0.5), "rise"),
        ((0.8, 0.9), (0.5, 1.5), "rise"),
        ((0.8, 0.9), (0.5, math.nan), "not finite"),
    ],
)
def test_impossible_thresholds_are_refused(
    coverages: tuple[float, ...], thresholds: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        Conformal(method="aps", coverages=coverages, thresholds=thresholds)
