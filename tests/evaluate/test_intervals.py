"""Bootstrap intervals: agreement with theory, pairing, reproducibility."""

import numpy as np
import pytest

from emocaliber.evaluate import auroc, bootstrap_mean, bootstrap_statistic, paired_difference
from emocaliber.runtime.errors import InputError


def test_mean_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.006)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.006)


def test_interval_covers_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    intervals = [bootstrap_mean(generator.normal(0, 1, 80), level=0.8, resamples=300) for _ in range(300)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.73 < covered < 0.86


def test_pairing_removes_what_both_share():
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 10, 500)
    before, after = shared, shared - 0.5 + generator.normal(0, 0.1, 500)
    interval = paired_difference(before, after)
    assert interval.low < -0.5 < interval.high < 0
    assert interval.high - interval.low < 0.05


def test_equal_seeds_give_equal_intervals():
    values = np.arange(50.0)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_blocks_draw_the_resamples_asked_for(monkeypatch):
    from emocaliber.evaluate import intervals

    whole = bootstrap_mean(np.arange(100.0), resamples=50)
    monkeypatch.setattr(intervals, "_BLOCK", 700)
    assert bootstrap_mean(np.arange(100.0), resamples=50) == whole


def test_clusters_widen_the_interval():
    values = np.repeat(np.random.default_rng(2).normal(0, 1, 40), 10)
    clusters = np.repeat(np.arange(40), 10)
    free, grouped = bootstrap_mean(values), bootstrap_mean(values, clusters=clusters)
    assert grouped.estimate == pytest.approx(free.estimate)
    # Ten copies of each value: the honest interval is sqrt(10) times as wide.
    assert (grouped.high - grouped.low) / (free.high - free.low) == pytest.approx(np.sqrt(10), rel=0.15)


def test_strata_keep_the_differences_of_tasks_out():
    # Two tasks far apart and without spread inside: drawn within tasks, the mean cannot move.
    values, tasks = np.repeat([0.0, 10.0], 20), np.repeat(["a", "b"], 20)
    free, kept = bootstrap_mean(values), bootstrap_mean(values, strata=tasks)
    assert free.high - free.low > 2
    assert (kept.low, kept.estimate, kept.high) == (5.0, 5.0, 5.0)
    assert paired_difference(0 * values, values, strata=tasks).bounds == (5.0, 5.0)
    interval = bootstrap_statistic(lambda index: float(values[index].mean()), 40, resamples=20, strata=tasks)
    assert interval is not None
    assert interval.bounds == (5.0, 5.0)


def test_statistic_interval_and_undefined_statistic():
    confidence = np.linspace(0, 1, 200)
    correct = (np.random.default_rng(0).random(200) < confidence).astype(float)
    interval = bootstrap_statistic(lambda index: auroc(confidence[index], correct[index]), 200, resamples=200)
    assert interval is not None
    assert interval.low < interval.estimate < interval.high
    assert bootstrap_statistic(lambda index: auroc(confidence[index], np.ones(200)), 200) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), "finite numbers"),
        (lambda: bootstrap_mean([1.0, np.nan]), "finite numbers"),
        (lambda: bootstrap_mean([1.0], level=1.0), "level is 1.0"),
        (lambda: bootstrap_mean([1.0], resamples=0), "resamples is 0"),
        (lambda: bootstrap_mean([1.0], clusters=[0, 1]), "clusters have shape"),
        (lambda: bootstrap_mean([1.0], strata=["a", "b"]), "strata have shape"),
        (lambda: bootstrap_mean([1.0], strata=["a"], clusters=[0]), "not both"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "1 before, 2 after"),
    ],
)
def test_unusable_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
