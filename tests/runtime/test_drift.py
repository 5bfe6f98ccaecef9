"""Drift: distances and p-values by hand, the window's false alarms by simulation, the guard's stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2

from emocaliber.runtime.drift import Drift, DriftGuard, DriftReference, chi_squared_tail, window_p_value
from emocaliber.runtime.errors import ArtifactError, InputError

FIELDS = {
    "mean": (1.0, 0.0, 0.0),
    "directions": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "variances": (4.0, 1.0),
    "rest": 0.25,
    "images": 4,
    "distances": (1.0, 2.0, 3.0, 4.0),
}
REFERENCE = DriftReference(**FIELDS)


def at(*coordinates: float) -> Drift:
    return Drift(p_value=0.5, coordinates=coordinates)


def test_distances_and_p_values_by_hand() -> None:
    features = np.array([[1.0, 0.0, 0.0], [3.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, math.sqrt(0.5)]])
    # 2^2 / 4 + 1^2 / 1 = 2; 1^2 / 0.25 = 4; 0.5 / 0.25 = 2.
    np.testing.assert_allclose(REFERENCE.squared_distances(features), [0.0, 2.0, 4.0, 2.0])
    placed = REFERENCE.of(np.array([[1.0, 0.0, 0.0], [3.0, 1.0, 0.0], [1.0, 0.0, 9.0]]))
    # All four are as far, and the image: 5 / 5. Three and the image: 4 / 5. None but the image: 1 / 5.
    assert [drift.p_value for drift in placed] == pytest.approx([1.0, 0.8, 0.2])
    assert placed[1].coordinates == pytest.approx((1.0, 1.0))


def test_a_window_by_hand() -> None:
    # Mean (0.5, 0.5): 0.5 / (1/2 + 1/4) = 2/3; with two degrees of freedom the tail is exp(-1/3).
    assert window_p_value([at(1.0, 0.0), at(0.0, 1.0)], REFERENCE) == pytest.approx(math.exp(-1 / 3))


@pytest.mark.parametrize(("statistic", "pairs"), [(0.0, 1), (3.0, 1), (20.0, 8), (1.5, 8), (900.0, 8), (1e40, 8)])
def test_chi_squared_tail_agrees_with_scipy(statistic: float, pairs: int) -> None:
    assert chi_squared_tail(statistic, pairs) == pytest.approx(chi2.sf(statistic, 2 * pairs), rel=1e-9, abs=1e-300)


def test_the_guard_watches_the_last_images_only() -> None:
    guard = DriftGuard(REFERENCE, window=3, false_alarm_rate=0.05)
    assert [guard.update(at(9.0, 9.0)) for _ in range(2)] == [False, False]
    assert guard.p_value is None
    assert guard.update(at(9.0, 9.0))
    assert guard.p_value == pytest.approx(math.exp(-162 / 2 / (1 / 3 + 1 / 4)))
    assert not [guard.update(at(0.0, 0.0)) for _ in range(3)][-1]
    assert guard.p_value == 1.0


def test_impossible_guards_are_refused() -> None:
    for changes in ({"window": 0}, {"false_alarm_rate": 0.0}):
        with pytest.raises(InputError, match="drift guard with window"):
            DriftGuard(REFERENCE, **changes)
    with pytest.raises(InputError, match="another calibrator"):
        DriftGuard(REFERENCE).update(at(0.0, 0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="no images"):
        window_p_value([], REFERENCE)
    with pytest.raises(InputError, match="3 dimensions"):
        REFERENCE.of(np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.0, 0.0)}, "not the 2 dimensions"),
        ({"directions": ((1.0, 0.0, 0.0),), "variances": (1.0,)}, "even number"),
        ({"directions": (), "variances": ()}, "even number"),
        ({"variances": (1.0,)}, "1 variances"),
        ({"variances": (1.0, 0.0)}, "not positive"),
        ({"rest": 0.0}, "not positive"),
        ({"distances": ()}, "missing"),
        ({"distances": (2.0, 1.0)}, "increasing"),
        ({"images": 3}, "more than images"),
        ({"rest": math.nan}, "not finite"),
    ],
)
def test_impossible_references_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        DriftReference(**{**FIELDS, **changes})
