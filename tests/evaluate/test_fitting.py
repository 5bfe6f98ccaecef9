"""Calibrator fitting: known parameters recovered, gradients, simple methods kept where richer ones prove nothing."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from emocaliber.evaluate import COVERAGES, cross_fitted, fit_calibrator, kl_divergence, minimum_samples
from emocaliber.evaluate.confidence_fitting import logistic_objective
from emocaliber.evaluate.folds import clearly_better
from emocaliber.evaluate.scalings import bias_objective, fit_scaling, matrix_objective, temperature_objective
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.confidence import ConfidenceFusion
from emocaliber.runtime.errors import InputError

LABELS = ("anger", "fear", "joy", "sadness", "surprise")
ABOUT = {
    "labels": LABELS,
    "taxonomy": "toy",
    "mode": "direct",
    "precision": "int8",
    "engine": "cpu",
    "fitted_on": "toy",
}


def world(n, seed=0, spread=1.5, k=5):
    """Returns logits whose softmax is the true posterior, the posterior, and one-hot labels drawn from it."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, spread, (n, k))
    posterior = softmax(logits)
    drawn = (posterior.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1)
    return logits, posterior, np.eye(k)[np.minimum(drawn, k - 1)]


def test_temperature_is_recovered():
    logits, posterior, one_hot = world(6000)
    scaling = fit_scaling("temperature", 2.5 * logits - 40.0, one_hot)
    assert scaling.temperature == pytest.approx(2.5, rel=0.05)
    exact = fit_scaling("temperature", 2.5 * logits, posterior)
    assert exact.temperature == pytest.approx(2.5, rel=1e-3)


def test_scores_that_are_calibrated_already_stay_so():
    logits, posterior, _ = world(2000)
    calibrator = fit_calibrator(np.log(posterior), posterior, **ABOUT)
    assert calibrator.temperature == pytest.approx(1.0, abs=1e-3)
    assert kl_divergence(posterior, calibrator.probabilities(logits)) < 1e-3


def test_bias_is_recovered_up_to_a_constant():
    logits, posterior, _ = world(3000)
    shift = np.array([1.0, -1.0, 0.5, 0.0, -0.5])
    scaling = fit_scaling("bias", 0.5 * (logits - shift), posterior)
    assert scaling.temperature == pytest.approx(0.5, rel=0.01)
    assert scaling.bias == pytest.approx(shift - shift.mean(), abs=0.02)


def test_matrix_is_chosen_where_labels_are_mixed_up():
    logits, posterior, one_hot = world(4000, seed=2)
    mixed = logits @ (np.eye(5) + 0.6 * np.roll(np.eye(5), 1, axis=1))
    calibrator = fit_calibrator(mixed, one_hot, **ABOUT)
    assert calibrator.method == "matrix"
    assert calibrator.candidates["matrix"] < calibrator.candidates["temperature"] - 0.05
    assert kl_divergence(posterior, calibrator.probabilities(mixed)) < 0.02


def test_simple_wins_where_data_are_few():
    _, posterior, one_hot = world(150, seed=4)
    calibrator = fit_calibrator(3 * np.log(posterior), one_hot, **ABOUT)
    assert calibrator.method == "temperature"
    assert calibrator.log_loss == calibrator.candidates["temperature"]
    assert calibrator.confidence is None
    assert set(calibrator.confidence_candidates) == {"none", "beta", "isotonic"}
    assert set(calibrator.candidates) == {"temperature", "bias", "matrix"}
    assert calibrator.weight is None
    assert not any(calibrator.bias)


def test_a_strong_penalty_leaves_the_identity():
    logits, _, one_hot = world(500)
    weight = fit_scaling("matrix", logits, one_hot, 1e6).weight
    assert weight is not None
    assert np.abs(weight - np.diag(np.diag(weight))).max() < 1e-3


def test_gradients_agree_with_finite_differences():
    logits, _, one_hot = world(40)
    centred = logits - logits.mean(axis=1, keepdims=True)
    generator = np.random.default_rng(0)
    features = np.stack([np.ones(40), generator.normal(size=40), generator.normal(size=40)], axis=1)
    for objective, size in (
        (temperature_objective(centred, one_hot), 1),
        (bias_objective(centred, one_hot), 6),
        (matrix_objective(centred, one_hot, 0.7), 30),
        (logistic_objective(features, generator.random(40), np.array([0.0, 1.0, 0.0])), 3),
    ):
        at = generator.normal(0, 0.5, size)
        assert check_grad(lambda x, f=objective: f(x)[0], lambda x, f=objective: f(x)[1], at) < 1e-5


def test_labels_nobody_chose_stay_possible():
    logits, _, one_hot = world(300)
    one_hot[:, 0] = 0.0
    one_hot[one_hot.sum(axis=1) == 0, 1] = 1.0
    bias = fit_scaling("bias", logits, one_hot).bias
    assert -30 < bias[0] < -2


def test_fusion_is_taken_where_it_helps_and_left_where_it_does_not():
    logits, posterior, one_hot = world(2500, seed=3)
    blurred = logits + np.random.default_rng(8).normal(0, 1.0, logits.shape)
    p = softmax(blurred)
    chance = posterior[np.arange(2500), p.argmax(axis=1)]
    knowing = fit_calibrator(blurred, one_hot, verbalized=np.clip(chance, 0.05, 0.95), **ABOUT)
    assert isinstance(knowing.confidence, ConfidenceFusion)
    assert knowing.confidence.verbalized > 0.3
    assert knowing.log_loss < min(knowing.candidates.values())
    assert knowing.confidence_candidates["fusion"] < knowing.confidence_candidates["none"]
    mute = fit_calibrator(blurred, one_hot, verbalized=np.full(2500, 0.5), **ABOUT)
    assert mute.confidence is None
    exact = fit_calibrator(logits, posterior, verbalized=np.random.default_rng(1).uniform(0.1, 0.9, 2500), **ABOUT)
    assert exact.confidence is None


def test_the_record_says_where_it_comes_from_and_repeats():
    logits, _, one_hot = world(200)
    first, second = (fit_calibrator(logits, one_hot, seed=5, **ABOUT) for _ in range(2))
    assert first == second
    assert (first.taxonomy, first.mode, first.precision, first.engine) == ("toy", "direct", "int8", "cpu")
    assert (first.n, first.fitted_on, first.labels) == (200, "toy", LABELS)
    assert first.conformal.coverages == COVERAGES


def spoiled(array, value):
    array = array.copy()
    array[3, 1] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t: (s[:99], t[:99], None), "over 5 labels needs at least 100 samples, got 99"),
        (lambda s, t: (spoiled(s, np.nan), t, None), "not finite"),
        (lambda s, t: (s, spoiled(t, np.nan), None), "not finite"),
        (lambda s, t: (s, spoiled(t, -0.5), None), "not distributions"),
        (lambda s, t: (s, 2 * t, None), "not distributions"),
        (lambda s, t: (s[:, :4], t[:, :4], None), r"expected \(N, 5\)"),
        (lambda s, t: (s, t, np.full(200, np.nan)), "verbalized holds"),
        (lambda s, t: (s, t, np.full(7, 0.5)), r"expected \(200,\)"),
    ],
)
def test_unusable_data_are_named(change, message):
    logits, _, one_hot = world(200)
    scores, targets, verbalized = change(logits, one_hot)
    with pytest.raises(InputError, match=message):
        fit_calibrator(scores, targets, verbalized=verbalized, **ABOUT)


def test_many_labels_need_more_samples():
    assert [minimum_samples(labels) for labels in (2, 10, 25)] == [100, 100, 250]


def test_clearly_better_is_beyond_one_standard_error():
    # Gains 0, 0, 0, 4: mean 1, standard deviation 2, standard error 1: not beyond. One more 4: mean 1.6, error 0.98.
    assert not clearly_better(np.zeros(4), np.array([0.0, 0.0, 0.0, 4.0]))
    assert clearly_better(np.zeros(5), np.array([0.0, 0.0, 0.0, 4.0, 4.0]))
    assert not clearly_better(np.ones(4), np.ones(4))


def test_cross_fitted_probabilities_do_not_see_their_own_label():
    logits, posterior, one_hot = world(400, seed=6)
    held_out = cross_fitted(3 * logits, one_hot)
    assert kl_divergence(posterior, held_out) < 0.02
    # Another label on one sample moves what the others get, never what it gets itself.
    changed = one_hot.copy()
    changed[7] = np.roll(one_hot[7], 1)
    again = cross_fitted(3 * logits, changed)
    np.testing.assert_array_equal(again[7], held_out[7])
    assert (again != held_out).any()


def test_drift_is_recorded_where_features_are_given():
    logits, _, one_hot = world(200)
    features = np.random.default_rng(0).normal(size=(200, 12))
    reference = fit_calibrator(logits, one_hot, features=features, **ABOUT).drift
    assert reference is not None
    assert (reference.images, len(reference.directions), len(reference.mean)) == (200, 8, 12)
    assert fit_calibrator(logits, one_hot, **ABOUT).drift is None
