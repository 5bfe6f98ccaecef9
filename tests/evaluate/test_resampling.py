"""Figures of resamples: equal to the metrics, on the whole sample and on samples repeated by hand."""

import numpy as np
import pytest

from emocaliber.evaluate import (
    aurc,
    auroc,
    auroc_within,
    brier_decomposition,
    brier_score,
    brier_skill,
    classwise_calibration_error,
    debiased_calibration_error,
    excess_aurc,
    expected_calibration_error,
    f1_scores,
    half_open_calibration_error,
    smooth_calibration_error,
)
from emocaliber.evaluate.confidence_figures import CONFIDENCE_FIGURES, confidence_figures, constant_confidence
from emocaliber.evaluate.intervals import resample_counts
from emocaliber.evaluate.row_figures import row_intervals, row_statistics
from emocaliber.evaluate.rows import Row

LABELS = ("a", "b", "c")


def rows(n, seed=0, decimals=2):
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        predicted = generator.dirichlet([1, 1, 1])
        answer, right = generator.choice(LABELS, size=2)
        missing = generator.random() < 0.2
        made.append(
            Row(
                task=str(generator.choice(["x", "y"])),
                labels=LABELS,
                right=str(right),
                answer=None if missing else str(answer),
                confidence=None if missing else round(float(generator.random()), decimals),
                predicted=tuple(predicted),
                nll=float(-np.log(predicted[LABELS.index(right)])),
            )
        )
    return made


def repeated(made, counts):
    return [row for row, count in zip(made, counts, strict=True) for _ in range(int(count))]


def metrics(made):
    """Returns the figures of rows by the public metrics, one sample after the other."""
    sure = [row for row in made if row.confidence is not None]
    c, q = np.array([row.confidence for row in sure]), np.array([row.correct for row in sure])
    tasks = [row.task for row in sure]
    number = {label: k for k, label in enumerate(LABELS)}
    right = [number[row.right] for row in made]
    macro, weighted = f1_scores([-1 if row.answer is None else number[row.answer] for row in made], right)
    return {
        "acc": np.mean([row.correct for row in made]),
        "f1": weighted,
        "macro_f1": macro,
        "parse_rate": len(sure) / len(made),
        "nll": np.mean([row.nll for row in made]),
        "ece_classwise": classwise_calibration_error([row.predicted for row in made], right),
        "ece": expected_calibration_error(c, q),
        "ece_paper": half_open_calibration_error(c, q),
        "brier": brier_score(c, q),
        "brier_skill": brier_skill(brier_score(c, q), brier_score(constant_confidence(q, tasks), q)),
        "auroc": auroc(c, q),
        "auroc_within": auroc_within(c, q, tasks),
        "aurc": aurc(c, q),
        "e_aurc": excess_aurc(c, q),
        "ece_smooth": smooth_calibration_error(c, q),
    }


@pytest.mark.parametrize("decimals", [1, 12])
def test_figures_of_resamples_are_those_of_the_repeated_samples(decimals):
    made = rows(150, decimals=decimals)
    counts = np.concatenate([np.ones((1, 150)), *resample_counts(150, resamples=3, seed=7)])
    wanted = metrics(made)
    got = row_statistics(made, wanted)(counts)
    assert set(got) == set(wanted)
    for row, count in enumerate(counts):
        expected = metrics(repeated(made, count))
        for name, value in expected.items():
            assert got[name][row] == pytest.approx(value, abs=2e-3 if name == "ece_smooth" else 1e-9), name


def test_figures_over_bins_of_equal_count_keep_the_bins_of_the_sample():
    made = [row for row in rows(200, decimals=12) if row.confidence is not None]
    c, q = np.array([row.confidence for row in made]), np.array([row.correct for row in made])
    parts = brier_decomposition(c, q)
    got = row_statistics(made, CONFIDENCE_FIGURES)(np.ones((1, len(made))))
    assert set(got) == set(CONFIDENCE_FIGURES)
    assert got["ece_equal_mass"][0] == pytest.approx(expected_calibration_error(c, q, binning="mass"))
    assert got["ece_debiased"][0] == pytest.approx(debiased_calibration_error(c, q))
    for name in ("reliability", "resolution", "uncertainty", "within"):
        assert got[f"brier_{name}"][0] == pytest.approx(getattr(parts, name), abs=1e-12)
    assert got["log_loss"][0] == pytest.approx(confidence_figures(c, q, ["x"] * len(c))["log_loss"])
    # Four values, four bins, of gaps 0.9, 0.2, 0.2, 0.9: the first drawn twice, the last not at all.
    few = [
        Row(task="x", labels=LABELS, right="a", answer=a, confidence=x)
        for a, x in zip("abab", (0.1, 0.2, 0.8, 0.9), strict=True)
    ]
    gap = row_statistics(few, ["ece_equal_mass"])(np.array([[2.0, 1, 1, 0]]))["ece_equal_mass"]
    assert gap[0] == pytest.approx((2 * 0.9 + 0.2 + 0.2) / 4)


def test_counts_are_drawn_within_tasks_and_the_same_for_a_seed():
    tasks = ["x"] * 30 + ["y"] * 10
    [first] = resample_counts(40, resamples=50, seed=3, strata=tasks)
    [again] = resample_counts(40, resamples=50, seed=3, strata=tasks)
    assert (first == again).all()
    assert (first[:, :30].sum(axis=1) == 30).all()
    assert (first[:, 30:].sum(axis=1) == 10).all()
    assert first.max() > 1


def test_intervals_agree_with_theory():
    made = rows(4000, seed=2)
    figures = metrics(made)
    intervals = row_intervals(made, figures)
    assert set(intervals) == set(figures)
    p = figures["acc"]
    half = 1.96 * np.sqrt(p * (1 - p) / 4000)
    assert intervals["acc"] == pytest.approx([p - half, p + half], abs=2e-3)
    for name, (low, high) in intervals.items():
        assert low <= figures[name] <= high, name


def test_the_interval_of_a_small_calibration_error_holds_its_estimate():
    """Repeats inflate it: without recentring the interval lies above the estimate."""
    generator = np.random.default_rng(3)
    c = generator.random(150)
    made = [
        Row(task="x", labels=LABELS, right="a", answer="a" if generator.random() < x else "b", confidence=float(x))
        for x in c
    ]
    errors = {"ece", "ece_paper", "ece_equal_mass", "ece_debiased", "ece_smooth"}
    figures = confidence_figures(c, np.array([row.correct for row in made]), ["x"] * 150)
    for name, (low, high) in row_intervals(made, {name: figures[name] for name in errors}).items():
        assert 0 <= low <= figures[name] < high < 0.25, name
