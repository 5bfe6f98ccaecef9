"""Metrics against hand-worked numbers and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from emocaliber.evaluate import (
    accuracy,
    auroc,
    bayes_accuracy,
    brier_losses,
    brier_score,
    expected_calibration_error,
    f1_scores,
    js_divergence,
    kl_divergence,
    mean_set_size,
    multiclass_brier,
    negative_log_likelihood,
    reliability_curve,
    set_coverage,
    summarise,
)
from emocaliber.runtime.errors import InputError

PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
LABELS = np.array([0, 2, 1, 2])


@pytest.fixture
def random_case():
    generator = np.random.default_rng(3)
    probs = generator.dirichlet(np.ones(5), 300)
    labels = generator.integers(0, 5, 300)
    return probs, labels


def test_accuracy_takes_the_first_of_equal_labels():
    # Rows 0 and 3 are right; row 2 is a tie between labels 0 and 1 and answers 0, which is wrong.
    assert accuracy(PROBS, LABELS) == 0.5


def test_bayes_accuracy_is_the_mean_of_the_largest_probability():
    assert bayes_accuracy(PROBS) == pytest.approx((0.7 + 0.6 + 0.5 + 0.6) / 4)


def test_kl_of_equal_distributions_is_zero():
    assert kl_divergence(PROBS, PROBS) == 0.0
    assert js_divergence(PROBS, PROBS) == 0.0


def test_kl_by_hand_with_zeros():
    # 0 ln 0 = 0, and 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4) = 1/2 ln(4/3)
    assert kl_divergence([[0.5, 0.5]], [[0.25, 0.75]]) == pytest.approx(0.5 * math.log(4 / 3))
    assert kl_divergence([[1.0, 0.0]], [[0.5, 0.5]]) == pytest.approx(math.log(2))
    assert kl_divergence([[1.0, 0.0]], [[0.0, 1.0]]) == pytest.approx(12 * math.log(10))


def test_js_of_disjoint_distributions_is_ln_2():
    assert js_divergence([[1.0, 0.0]], [[0.0, 1.0]]) == pytest.approx(math.log(2))


def test_negative_log_likelihood_matches_sklearn(random_case):
    probs, labels = random_case
    assert negative_log_likelihood(probs, labels) == pytest.approx(reference.log_loss(labels, probs))


def test_cross_entropy_to_one_hot_is_the_likelihood(random_case):
    probs, labels = random_case
    one_hot = np.eye(5)[labels]
    assert negative_log_likelihood(probs, one_hot) == pytest.approx(reference.log_loss(labels, probs))


def test_multiclass_brier_by_hand_and_in_expectation():
    # (0.3^2 + 0.2^2 + 0.1^2) = 0.14
    assert multiclass_brier([[0.7, 0.2, 0.1]], [0]) == pytest.approx(0.14)
    losses = [multiclass_brier([[0.7, 0.2, 0.1]], [k]) for k in range(3)]
    weights = [0.5, 0.25, 0.25]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True))
    assert multiclass_brier([[0.7, 0.2, 0.1]], [weights]) == pytest.approx(expected)


def test_f1_matches_sklearn(random_case):
    probs, labels = random_case
    answers = probs.argmax(axis=1)
    macro, weighted = f1_scores(answers, labels)
    assert macro == pytest.approx(reference.f1_score(labels, answers, average="macro"))
    assert weighted == pytest.approx(reference.f1_score(labels, answers, average="weighted"))


def test_f1_counts_a_missing_answer_as_a_miss_only():
    # Label 0: TP 1, FN 1 -> 2/3; label 1: TP 1 -> 1. Macro 5/6; weighted (2 * 2/3 + 1) / 3 = 7/9.
    macro, weighted = f1_scores([0, -1, 1], [0, 0, 1])
    assert macro == pytest.approx(5 / 6)
    assert weighted == pytest.approx(7 / 9)


def test_brier_matches_sklearn_and_takes_expectations(random_case):
    probs, labels = random_case
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == labels
    assert brier_score(confidence, correct) == pytest.approx(reference.brier_score_loss(correct, confidence))
    # q (1 - c)^2 + (1 - q) c^2 = 0.25 * 0.16 + 0.75 * 0.36 = 0.31
    assert brier_losses([0.6], [0.25]) == pytest.approx([0.31])


def test_ece_with_hand_worked_closed_bins():
    # Five bins: [0, .2] holds 0.0 and 0.2, (.2, .4] holds 0.4, (.8, 1] holds 0.9 and 1.0.
    confidence = [0.0, 0.2, 0.4, 0.9, 1.0]
    correct = [0, 1, 1, 1, 0]
    # |0.1 - 0.5| * 2/5 + |0.4 - 1| * 1/5 + |0.95 - 0.5| * 2/5 = 0.16 + 0.12 + 0.18
    assert expected_calibration_error(confidence, correct, n_bins=5) == pytest.approx(0.46)
    curve = reliability_curve(confidence, correct, n_bins=5)
    assert curve.count.tolist() == [2, 1, 2]
    assert curve.lower.tolist() == pytest.approx([0.0, 0.2, 0.8])
    assert curve.confidence.tolist() == pytest.approx([0.1, 0.4, 0.95])
    assert curve.correct.tolist() == pytest.approx([0.5, 1.0, 0.5])


def test_ece_counts_bins_and_not_edges():
    # One bin: |mean confidence - mean correct| = |0.5 - 1|; two bins: (|0.2 - 1| + |0.8 - 1|) / 2 is the same here,
    # so the second answer is wrong instead: one bin |0.5 - 0.5| = 0, two bins (0.8 + 0.8) / 2.
    assert expected_calibration_error([0.2, 0.8], [1, 0], n_bins=1) == pytest.approx(0.0)
    assert expected_calibration_error([0.2, 0.8], [1, 0], n_bins=2) == pytest.approx(0.8)


def test_ece_of_perfect_calibration_is_zero():
    confidence = np.repeat([0.1, 0.5, 0.9], 10)
    correct = np.concatenate([np.arange(10) < 1, np.arange(10) < 5, np.arange(10) < 9])
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.0)
    assert expected_calibration_error([0.3, 0.7], [0.3, 0.7]) == pytest.approx(0.0)


def test_equal_mass_bins_hold_equal_counts_and_keep_ties_together():
    confidence = np.array([0.5, 0.51, 0.52, 0.53, 0.9, 0.91])
    curve = reliability_curve(confidence, np.ones(6), n_bins=3, binning="mass")
    assert curve.count.tolist() == [2, 2, 2]
    # Half share the lowest confidence: they are a bin, not part of the next.
    halves = reliability_curve([0.5, 0.5, 0.9, 0.9], [1, 0, 1, 1], n_bins=2, binning="mass")
    assert halves.count.tolist() == [2, 2]
    assert halves.confidence.tolist() == pytest.approx([0.5, 0.9])
    tied = reliability_curve(np.full(9, 0.7), np.ones(9), n_bins=3, binning="mass")
    assert tied.count.tolist() == [9]
    # (|0.505 - 1| + |0.525 - 1| + |0.905 - 1|) / 3
    error = expected_calibration_error(confidence, np.ones(6), n_bins=3, binning="mass")
    assert error == pytest.approx((0.495 + 0.475 + 0.095) / 3)


def test_auroc_matches_sklearn_with_ties(random_case):
    probs, labels = random_case
    confidence = np.round(probs.max(axis=1), 1)
    correct = probs.argmax(axis=1) == labels
    assert auroc(confidence, correct) == pytest.approx(reference.roc_auc_score(correct, confidence))


def test_auroc_is_none_without_both_kinds():
    assert auroc([0.2, 0.8], [1, 1]) is None
    assert auroc([0.8], [0.5]) is None


def test_fractional_auroc_is_the_pairwise_sum():
    generator = np.random.default_rng(1)
    confidence, chance = np.round(generator.random(20), 1), generator.random(20)
    wins = pairs = 0.0
    for i in range(20):
        for j in range(20):
            if i != j:
                weight = chance[i] * (1 - chance[j])
                pairs += weight
                wins += weight * (0.5 if confidence[i] == confidence[j] else float(confidence[i] > confidence[j]))
    assert auroc(confidence, chance) == pytest.approx(wins / pairs)


def test_sets():
    sets = np.array([[True, False, False], [True, True, False]])
    assert set_coverage(sets, [0, 2]) == 0.5
    assert set_coverage(sets, [[0.6, 0.4, 0.0], [0.25, 0.25, 0.5]]) == pytest.approx((0.6 + 0.5) / 2)
    assert mean_set_size(sets) == 1.5


def test_summarise_gives_the_agreed_keys():
    plain = summarise(PROBS, LABELS, confidence=PROBS.max(axis=1))
    assert set(plain) == {"accuracy", "bayes_accuracy", "kl", "ece", "brier", "auroc", "nll", "n"}
    assert plain["kl"] is None
    assert plain["bayes_accuracy"] is None
    assert plain["n"] == 4
    full = summarise(
        PROBS,
        LABELS,
        confidence=PROBS.max(axis=1),
        posterior=PROBS,
        verbalized=[0.5] * 4,
        sets=PROBS > 0.15,
        correctness="posterior",
    )
    assert full["kl"] == 0.0
    assert full["ece"] == pytest.approx(0.0)
    # Correct with chances 0.7, 0.6, 0.5, 0.6, and 0.5 said: (q + (1 - q)) / 4 each.
    assert full["verbalized_brier"] == pytest.approx(0.25)
    assert full["verbalized_ece"] == pytest.approx(0.1)
    # The sets have the 2, 2, 2 and 3 labels above 0.15; of the first two they leave out 0.1.
    assert full["set_coverage"] == pytest.approx((0.9 + 0.9 + 1 + 1) / 4)
    assert full["set_size"] == pytest.approx(2.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([[0.5, 0.6]], [0]), "miss a sum of one"),
        (lambda: accuracy([[0.5, math.nan]], [0]), "not finite"),
        (lambda: accuracy(PROBS, [0, 1, 2, 3]), "outside 0 to 2"),
        (lambda: accuracy(PROBS, [0.0, 1.0, 2.0, 0.0]), "expected 4 positions"),
        (lambda: kl_divergence(PROBS, PROBS[:2]), "cannot be compared"),
        (lambda: brier_score([1.2], [1]), r"confidence holds a number outside \[0, 1\]"),
        (lambda: brier_score([], []), "N >= 1"),
        (lambda: expected_calibration_error([0.5], [1], n_bins=0), "n_bins is 0"),
        (lambda: set_coverage([[0.5, 0.5]], [0]), "expected booleans"),
        (lambda: summarise(PROBS, LABELS, confidence=[0.5] * 4, correctness="votes"), "none are given"),
    ],
)
def test_unusable_arrays_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
