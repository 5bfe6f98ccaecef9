"""Confidence maps against scikit-learn, and the choice between them."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from emocaliber.evaluate.confidence_fitting import choose_map, fit_beta, fit_fusion, fit_isotonic
from emocaliber.evaluate.folds import assign_folds
from emocaliber.runtime.confidence import BetaConfidence, IsotonicConfidence


def drawn(n, chance, seed=0):
    """Returns probabilities of a top label, and whether it is right with a chance that is a function of them."""
    generator = np.random.default_rng(seed)
    top = generator.uniform(0.35, 0.99, n)
    return top, (generator.random(n) < chance(top)).astype(float)


def test_fusion_matches_sklearn_where_the_penalty_is_equal():
    generator = np.random.default_rng(0)
    top, stated = generator.uniform(0.2, 0.9, 400), generator.uniform(0.1, 0.9, 400)
    correct = (generator.random(400) < 0.5 * top + 0.5 * stated).astype(float)
    fusion = fit_fusion(top, stated, correct)
    logits = np.stack([np.log(top / (1 - top)), np.log(stated / (1 - stated))], axis=1)
    # sklearn pulls towards zero and leaves the intercept free: with 400 samples both matter little.
    model = LogisticRegression(C=0.5).fit(logits, correct)
    assert [fusion.top, fusion.verbalized] == pytest.approx(model.coef_[0].tolist(), abs=0.03)
    assert fusion.intercept == pytest.approx(float(model.intercept_[0]), abs=0.03)


def test_beta_matches_sklearn():
    top, correct = drawn(20000, lambda p: p**3 / (p**3 + 2 * (1 - p)))
    beta = fit_beta(top, correct)
    model = LogisticRegression(C=1e6, tol=1e-8).fit(np.stack([np.log(top), -np.log(1 - top)], axis=1), correct)
    at = np.linspace(0.36, 0.98, 40)
    expected = model.predict_proba(np.stack([np.log(at), -np.log(1 - at)], axis=1))[:, 1]
    # sklearn's pull is all but off; ours is 1 / 20000, and the two features lie close together.
    assert beta.confidence(at) == pytest.approx(expected, abs=0.003)
    assert beta.confidence(at) == pytest.approx(at**3 / (at**3 + 2 * (1 - at)), abs=0.015)


def test_beta_never_falls():
    top, correct = drawn(500, lambda p: 1 - p)
    beta = fit_beta(top, correct)
    assert min(beta.success, beta.failure) >= 0


@pytest.mark.parametrize("decimals", [1, 2, 12])
def test_isotonic_matches_sklearn(decimals):
    top, correct = drawn(400, lambda p: 0.2 + 0.6 * (p > 0.7))
    top = top.round(decimals)
    correct = 0.5 * correct + 0.25
    model = IsotonicRegression(out_of_bounds="clip").fit(top, correct)
    at = np.linspace(0.3, 1.0, 200)
    assert fit_isotonic(top, correct).confidence(at) == pytest.approx(model.predict(at), abs=1e-9)


def test_isotonic_is_never_certain():
    isotonic = fit_isotonic(np.array([0.5, 0.6, 0.7, 0.8]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert (isotonic.confidences[0], isotonic.confidences[-1]) == pytest.approx((1 / 6, 5 / 6))


def chosen_for(chance, n, seed):
    """Returns the choice among maps where the top label of three is right with this chance."""
    top, correct = drawn(n, chance, seed=seed)
    probabilities = np.stack([top, 0.6 * (1 - top), 0.4 * (1 - top)], axis=1)
    targets = np.stack([correct, 1 - correct, np.zeros_like(correct)], axis=1)
    return choose_map(probabilities, targets, None, assign_folds(n, 0))


@pytest.mark.parametrize(
    ("chance", "kind"),
    [
        (lambda p: p**3 / (p**3 + 4 * (1 - p)), BetaConfidence),
        (lambda p: 0.36 + 0.6 * (p > 0.65), IsotonicConfidence),
    ],
)
def test_a_map_is_taken_where_it_is_needed(chance, kind):
    chosen = chosen_for(chance, 6000, 2)
    assert type(chosen.mapping) is kind
    assert set(chosen.log_losses) == {"none", "beta", "isotonic"}
    assert chosen.log_losses[chosen.mapping.kind] < chosen.log_losses["none"]
    assert chosen.held_out.sum(axis=1) == pytest.approx(np.ones(6000))


def test_a_map_is_rarely_taken_where_none_is_needed():
    # Beyond one standard error by chance: at most one in six if the gain were zero, and it is below zero.
    taken = [chosen_for(lambda p: p, 400, seed).mapping is not None for seed in range(40)]
    assert np.mean(taken) < 0.25
