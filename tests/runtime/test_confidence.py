"""Confidence maps: hand-worked values, the order of labels kept, and impossible records refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emocaliber.runtime.confidence import BetaConfidence, ConfidenceFusion, IsotonicConfidence, map_confidence
from emocaliber.runtime.errors import ArtifactError

LN2 = math.log(2)


def test_fusion_by_hand() -> None:
    probabilities = np.array([[0.1, 0.6, 0.3]])
    same = ConfidenceFusion(intercept=0.0, top=1.0, verbalized=0.0)
    np.testing.assert_allclose(map_confidence(same, probabilities, np.array([0.2])), probabilities)
    # Odds 1.5 doubled are 3: 0.75; the rest keeps 1 to 3.
    doubled = ConfidenceFusion(intercept=LN2, top=1.0, verbalized=0.0)
    np.testing.assert_allclose(map_confidence(doubled, probabilities, np.array([0.2])), [[0.0625, 0.75, 0.1875]])
    # Odds 1.5 times odds 9 of a stated 0.9: 13.5 / 14.5.
    both = ConfidenceFusion(intercept=0.0, top=1.0, verbalized=1.0)
    assert map_confidence(both, probabilities, np.array([0.9]))[0, 1] == pytest.approx(13.5 / 14.5)


@pytest.mark.parametrize("intercept", [-50.0, -3.0, 0.0, 50.0])
def test_fusion_keeps_the_top_label_and_a_distribution(intercept: float) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(5, 0.4), size=200)
    fusion = ConfidenceFusion(intercept=intercept, top=0.7, verbalized=0.5)
    fused = map_confidence(fusion, probabilities, rng.uniform(0.05, 0.95, size=200))
    np.testing.assert_array_equal(fused.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(fused.sum(axis=1), 1.0, atol=1e-12)
    assert fused.min() >= 0.0


def test_fusion_of_a_certain_label() -> None:
    stated = ConfidenceFusion(intercept=0.0, top=0.0, verbalized=1.0)
    fused = map_confidence(stated, np.array([1.0, 0.0, 0.0]), np.array(0.8))
    np.testing.assert_allclose(fused, [0.8, 0.1, 0.1])


def test_beta_by_hand() -> None:
    probabilities = np.array([[0.1, 0.6, 0.3]])
    same = BetaConfidence(intercept=0.0, success=1.0, failure=1.0)
    np.testing.assert_allclose(map_confidence(same, probabilities), probabilities)
    # Odds 0.6^2 / 0.4 = 0.9, times e^ln2 = 1.8: 9/14; the rest keeps 1 to 3.
    bent = BetaConfidence(intercept=LN2, success=2.0, failure=1.0)
    np.testing.assert_allclose(map_confidence(bent, probabilities), [[5 / 56, 9 / 14, 15 / 56]])


def test_isotonic_by_hand() -> None:
    knots = IsotonicConfidence(tops=(0.4, 0.6, 0.8), confidences=(0.5, 0.5, 0.9))
    # Level to 0.6, half way up at 0.7, level beyond the last knot.
    np.testing.assert_allclose(knots.confidence(np.array([0.3, 0.5, 0.7, 0.95])), [0.5, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(map_confidence(knots, np.array([0.05, 0.7, 0.25])), [0.05, 0.7, 0.25])


def test_a_map_never_makes_another_label_the_top_one() -> None:
    low = IsotonicConfidence(tops=(0.5,), confidences=(0.1,))
    mapped = map_confidence(low, np.array([[0.3, 0.5, 0.2]]))
    # The runner-up has 3/5 of the rest: equal at 3/8 each, and the top label a hair above.
    np.testing.assert_allclose(mapped, [[3 / 8, 3 / 8, 2 / 8]], atol=1e-8)
    assert mapped[0].argmax() == 1


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        (ConfidenceFusion, {"intercept": math.nan, "top": 1.0, "verbalized": 0.0}, "not finite"),
        (BetaConfidence, {"intercept": 0.0, "success": -1.0, "failure": 1.0}, "both >= 0"),
        (IsotonicConfidence, {"tops": (), "confidences": ()}, "0 knots"),
        (IsotonicConfidence, {"tops": (0.5, 0.5), "confidences": (0.1, 0.2)}, "must increase"),
        (IsotonicConfidence, {"tops": (0.5, 0.6), "confidences": (0.2, 0.1)}, "must not fall"),
        (IsotonicConfidence, {"tops": (0.5, 1.2), "confidences": (0.1, 0.2)}, "knot lies outside"),
        (IsotonicConfidence, {"tops": (0.5, 0.6), "confidences": (0.1, 1.2)}, "confidence lies outside"),
    ],
)
def test_impossible_maps_are_refused(record: type, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        record(**fields)
