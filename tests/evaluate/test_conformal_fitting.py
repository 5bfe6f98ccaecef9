"""Prediction sets: their promise on fresh data, crepes as reference, and the choice of APS or RAPS."""

import numpy as np
import pytest
from crepes import ConformalClassifier

from emocaliber.evaluate import COVERAGES, fit_conformal
from emocaliber.evaluate.conformal_fitting import choose_conformal
from emocaliber.evaluate.folds import assign_folds
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.conformal import conformal_scores, prediction_set


def world(n, seed=0, k=5, annotators=1):
    """Returns overconfident probabilities, and the votes that so many annotators cast by the true posterior."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (n, k))
    posterior = softmax(logits)
    votes = generator.multinomial(annotators, posterior) / annotators
    return softmax(2.0 * logits + generator.normal(0, 0.5, (n, k))), votes, posterior


@pytest.mark.parametrize("annotators", [1, 10])
@pytest.mark.parametrize(("penalty", "free"), [(0.0, 1), (0.1, 2)])
def test_sets_cover_a_drawn_label_of_fresh_images(annotators, penalty, free):
    p, votes, _ = world(2000, seed=1, annotators=annotators)
    fitted = fit_conformal(p, votes, penalty=penalty, free=free)
    fresh, _, posterior = world(20000, seed=9)
    for coverage in (0.8, 0.9, 0.95):
        inside = fitted.scores(fresh) <= fitted.threshold(coverage)
        observed = (inside * posterior).sum(axis=1).mean()
        # Three standard errors of the calibration quantile: votes of several annotators only make it surer.
        assert abs(observed - coverage) < 3 * np.sqrt(coverage * (1 - coverage) / 2000)
    raw = conformal_scores(fresh) <= 0.9
    assert (raw * posterior).sum(axis=1).mean() < 0.87, "without thresholds the sets cover too little"


def test_chosen_sets_cover_over_many_small_calibration_sets():
    fresh, _, posterior = world(4000, seed=99)
    observed = []
    for seed in range(60):
        p, votes, _ = world(120, seed=seed)
        chosen = choose_conformal(p, votes, assign_folds(120, seed))
        inside = chosen.scores(fresh) <= chosen.threshold(0.9)
        observed.append((inside * posterior).sum(axis=1).mean())
    # One set of 120 varies by 0.027; the mean of 60 by 0.0035. The promise is at least 0.9, and 1 / 121 more at most.
    assert 0.89 < np.mean(observed) < 0.925


@pytest.mark.parametrize(("penalty", "free"), [(0.0, 1), (0.1, 2)])
def test_sets_agree_with_crepes(penalty, free):
    p, votes, _ = world(300, seed=3)
    fresh, _, _ = world(200, seed=4)
    fitted = fit_conformal(p, votes, penalty=penalty, free=free)
    alphas = conformal_scores(p, penalty, free)[np.arange(300), votes.argmax(axis=1)]
    reference = ConformalClassifier().fit(alphas)
    for coverage in COVERAGES:
        expected = reference.predict_set(fitted.scores(fresh), confidence=coverage, smoothing=False)
        ours = fitted.scores(fresh) <= fitted.threshold(coverage)
        np.testing.assert_array_equal(ours, np.asarray(expected, dtype=bool))


def test_raps_is_taken_where_tails_are_noise():
    # Nine true labels of ten are among the first two, yet a long flat tail takes up to 0.7 of the probability.
    generator = np.random.default_rng(0)
    n, k = 1500, 20
    tail = generator.dirichlet(np.full(k - 2, 5.0), size=n) * generator.uniform(0.1, 0.7, (n, 1))
    first = (1 - tail.sum(axis=1)) * 0.65
    p = np.column_stack([first, 1 - tail.sum(axis=1) - first, tail])
    right = np.where(generator.random(n) < 0.9, (generator.random(n) < 0.35).astype(int), generator.integers(2, k, n))
    chosen = choose_conformal(p, np.eye(k)[right], assign_folds(n, 0))
    assert chosen.method == "raps"
    assert chosen.sizes["raps"] < chosen.sizes["aps"]


def test_aps_is_kept_where_raps_gains_nothing():
    p, votes, _ = world(500, seed=5, k=2)
    chosen = choose_conformal(p, votes, assign_folds(500, 0))
    assert (chosen.method, chosen.penalty) == ("aps", 0.0)
    assert chosen.sizes["aps"] == chosen.sizes["raps"], "with two labels both order them alike"
    assert chosen.coverages == COVERAGES


def test_too_few_samples_admit_every_label():
    p, votes, _ = world(20, seed=6)
    fitted = fit_conformal(p, votes, (0.9, 0.99), penalty=0.1, free=2)
    # 21 * 0.99 > 20. The largest score there can be: 1, and 0.1 for three of five labels.
    assert fitted.thresholds[1] == pytest.approx(1.3)
    assert prediction_set(p[0], 0.99, fitted) == tuple(np.argsort(-p[0], kind="stable"))


def test_conformal_thresholds_by_hand():
    # Four samples over two labels: scores of the right labels are 0, 0, 0.6 and 0.9.
    p = np.array([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.9, 0.1]])
    t = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    # (4 + 1) * 0.4 = 2 -> second smallest; * 0.6 = 3 -> third; * 0.8 = 4 -> fourth; * 0.9 = 4.5 > 4 -> every label.
    conformal = fit_conformal(p, t, (0.4, 0.6, 0.8, 0.9))
    assert conformal.thresholds == pytest.approx((0.0, 0.6, 0.9, 1.0))
    assert prediction_set((0.9, 0.1), 0.9, conformal) == (0, 1)


def test_votes_weigh_the_conformal_scores():
    p = np.array([[0.8, 0.2], [0.7, 0.3]])
    t = np.array([[0.75, 0.25], [0.75, 0.25]])
    # Mass at score 0: 1.5; at 0.7: 1.75; at 0.8: 2. Asked 3 * c: 1.5, 1.65, 2.
    assert fit_conformal(p, t, (0.5, 0.55, 2 / 3)).thresholds == pytest.approx((0.0, 0.7, 0.8))
