"""Calibration and selective metrics against hand-worked numbers and direct definitions."""

import numpy as np
import pytest
import relplot

from emocaliber.evaluate.calibration_metrics import (
    brier_decomposition,
    brier_skill,
    classwise_calibration_error,
    debiased_calibration_error,
    half_open_calibration_error,
    smooth_calibration_error,
)
from emocaliber.evaluate.confidence_figures import (
    CONFIDENCE_FIGURES,
    confidence_figures,
    constant_confidence,
)
from emocaliber.evaluate.selective import aurc, auroc_within, excess_aurc, risk_coverage_curve
from emocaliber.runtime.errors import InputError


def test_half_open_bins_leave_out_one_and_count_it():
    # [.5, .6): |0.5 - 1| * 1/4; [.9, 1): |0.9 - 0| * 1/4; the two at 1.0 add nothing.
    assert half_open_calibration_error([0.5, 0.9, 1.0, 1.0], [1, 0, 0, 0]) == pytest.approx((0.5 + 0.9) / 4)
    assert half_open_calibration_error([1.0, 1.0], [0, 0]) == 0.0


def test_debiased_error_by_hand():
    # One bin of four at 0.5, three right: (0.75 - 0.5)^2 - 0.75 * 0.25 / 3 = 0.0625 - 0.0625 = 0.
    assert debiased_calibration_error([0.5] * 4, [1, 1, 1, 0], n_bins=1) == pytest.approx(0.0, abs=1e-7)
    # At 0.25: 0.5^2 - 0.0625 = 0.1875.
    assert debiased_calibration_error([0.25] * 4, [1, 1, 1, 0], n_bins=1) == pytest.approx(np.sqrt(0.1875))
    # A bin of one adds nothing: 4/5 of the above.
    error = debiased_calibration_error([0.25] * 4 + [0.9], [1, 1, 1, 0, 0], n_bins=2)
    assert error == pytest.approx(np.sqrt(0.1875 * 4 / 5))


def test_debiased_square_is_zero_on_average_for_calibrated_confidences():
    # The plain square would average sum_b o (1 - o) / n_b * n_b / N = about 15 * 0.16 / 150 = 0.016.
    generator = np.random.default_rng(0)
    squares = []
    for _ in range(300):
        c = generator.random(150)
        squares.append(debiased_calibration_error(c, generator.random(150) < c) ** 2)
    assert np.mean(squares) < 0.006


def direct_smooth_error(confidence, correct, width, points=1500):
    """The integral over t of the kernel sum, reflections written out as images of each confidence."""
    t = (np.arange(points) + 0.5) / points
    total = np.zeros(points)
    for c, q in zip(confidence, correct, strict=True):
        for shift in range(-3, 4):
            for image in (2 * shift + c, 2 * shift - c):
                total += (q - c) * np.exp(-((t - image) ** 2) / (2 * width**2)) / (width * np.sqrt(2 * np.pi))
    return float(np.abs(total / len(confidence)).mean())


@pytest.mark.parametrize("seed", range(4))
def test_smooth_error_is_the_fixed_point_of_its_definition(seed):
    generator = np.random.default_rng(seed)
    c = generator.beta(3, 1.5, 60)
    q = (generator.random(60) < c**2).astype(float)
    error = smooth_calibration_error(c, q)
    assert 0.01 < error < 0.6
    assert direct_smooth_error(c, q, error) == pytest.approx(error, abs=2e-3)


def test_smooth_error_of_the_extremes():
    # Always surely wrong: at any width the whole residual 1 stays, so the fixed point is 1.
    assert smooth_calibration_error(np.ones(10), np.zeros(10)) == pytest.approx(1.0, abs=1e-4)
    assert smooth_calibration_error([0.0, 1.0], [0, 1]) == 0.0
    assert smooth_calibration_error([0.5, 0.5], [1, 0]) == pytest.approx(0.0, abs=1e-5)
    # A constant 0.8 that is right half of the time is 0.3 off.
    assert smooth_calibration_error([0.8] * 10, [1, 0] * 5) == pytest.approx(0.3, abs=1e-3)


def test_classwise_error_by_hand():
    # Label 0: 0.9 and 0.6 against 1 and 0: (0.1 + 0.6) / 2; label 1 mirrors it.
    assert classwise_calibration_error([[0.9, 0.1], [0.6, 0.4]], [0, 1]) == pytest.approx(0.35)


def test_brier_parts_by_hand_and_in_sum():
    # 0.5 with one of two right, 0.9 with two of two: accuracy 0.75.
    parts = brier_decomposition([0.5, 0.5, 0.9, 0.9], [1, 0, 1, 1], n_bins=2)
    assert parts.reliability == pytest.approx(0.5 * 0.1**2)
    assert parts.resolution == pytest.approx(0.5 * 0.25**2 + 0.5 * 0.25**2)
    assert parts.uncertainty == pytest.approx(0.75 * 0.25)
    assert parts.within == pytest.approx(0.0)
    generator = np.random.default_rng(0)
    c, q = generator.random(400), generator.random(400) < 0.4
    parts = brier_decomposition(c, q)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within
    assert total == pytest.approx(np.mean((c - q) ** 2))
    assert abs(parts.within) < 0.01


def test_brier_skill():
    assert brier_skill(0.1, 0.2) == pytest.approx(0.5)
    assert brier_skill(0.1, 0.0) is None


def test_risk_by_hand_with_ties():
    # 0.9 right, 0.8 wrong, then two at 0.5, one of them right: half an error each.
    coverage, risk = risk_coverage_curve([0.5, 0.9, 0.5, 0.8], [1, 1, 0, 0])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1.5 / 3, 2 / 4])
    assert aurc([0.5, 0.9, 0.5, 0.8], [1, 1, 0, 0]) == pytest.approx((0 + 0.5 + 0.5 + 0.5) / 4)
    # The best order has its errors last: 0, 0, 1/3, 2/4.
    assert excess_aurc([0.5, 0.9, 0.5, 0.8], [1, 1, 0, 0]) == pytest.approx((1.5 - 1 / 3 - 0.5) / 4)
    assert excess_aurc([0.9, 0.8, 0.2], [1, 1, 0]) == pytest.approx(0.0)


def test_a_constant_has_a_flat_curve_whatever_the_order():
    correct = [0, 0, 0, 1, 1, 1, 1, 1]
    for order in (correct, correct[::-1]):
        assert risk_coverage_curve([0.5] * 8, order)[1].tolist() == pytest.approx([3 / 8] * 8)


def test_auroc_within_tasks_by_hand():
    # a: 0.9 right, 0.8 wrong: 1 of 1. b: 0.2 right, 0.3 and 0.1 wrong: 1 of 2. c has no wrong answer.
    confidence, correct = [0.9, 0.8, 0.2, 0.3, 0.1, 0.5], [1, 0, 1, 0, 0, 1]
    tasks = ["a", "a", "b", "b", "b", "c"]
    assert auroc_within(confidence, correct, tasks) == pytest.approx(2 / 3)
    assert auroc_within([0.5, 0.5], [1, 0], ["a", "b"]) is None
    with pytest.raises(InputError, match="tasks have shape"):
        auroc_within([0.5, 0.5], [1, 0], ["a"])


def test_the_constant_has_pooled_auroc_but_none_within():
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=float)
    tasks = ["easy"] * 4 + ["hard"] * 4
    constant = constant_confidence(correct, tasks)
    assert constant.tolist() == [0.75] * 4 + [0.25] * 4
    figures = confidence_figures(constant, correct, tasks)
    assert tuple(figures) == CONFIDENCE_FIGURES
    # Right: three at 0.75, one at 0.25; wrong: one at 0.75, three at 0.25. Wins 9, ties 3 + 3.
    assert figures["auroc"] == pytest.approx((9 + 3) / 16)
    assert figures["auroc_within"] == 0.5
    assert figures["brier"] == pytest.approx(0.75 * 0.25)
    assert figures["brier_skill"] == pytest.approx(0.0)
    assert figures["ece"] == pytest.approx(0.0)


@pytest.mark.parametrize("n", [60, 400, 3000])
def test_smooth_error_agrees_with_relplot(n):
    # Its authors' own code, on a grid of its own: equal to a thousandth.
    generator = np.random.default_rng(n)
    c = generator.random(n) ** 0.5
    correct = (generator.random(n) < c**1.5).astype(float)
    assert smooth_calibration_error(c, correct) == pytest.approx(relplot.smECE(c, correct), abs=1e-3)
