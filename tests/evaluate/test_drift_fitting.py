"""Drift references: scikit-learn as reference, false alarms and power by simulation and on real photographs."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from emocaliber.evaluate import drift_fitting, fit_drift
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.drift import window_p_value
from emocaliber.runtime.errors import InputError


def images(n, generator, shift=0.0, scale=1.0):
    """Returns features of an uneven normal, heavier in the tails than one: what a vision encoder may give."""
    spread = np.geomspace(3.0, 0.1, 24)
    values = generator.normal(size=(n, 24)) * np.sqrt(generator.gamma(4.0, 0.25, (n, 1))) * spread * scale
    values[:, :4] += shift * spread[:4]
    return values @ np.linalg.qr(np.random.default_rng(7).normal(size=(24, 24)))[0] + 5.0


def rates(generator, repeats, **changed):
    """Returns the shares of single images and of windows of 50 that alarm at 0.01, over new references each time."""
    single, windows = [], []
    for _ in range(repeats):
        reference = fit_drift(images(250, generator), seed=1)
        placed = reference.of(images(200, generator, **changed))
        single.append(np.mean([drift.p_value <= 0.01 for drift in placed]))
        windows += [window_p_value(placed[i : i + 50], reference) <= 0.01 for i in range(0, 200, 50)]
    return np.mean(single), np.mean(windows)


def test_distances_are_those_of_probabilistic_components():
    x = images(400, np.random.default_rng(0))
    reference = fit_drift(x)
    model = PCA(n_components=len(reference.directions)).fit(x)
    centred = x - model.mean_
    expected = np.einsum("nd,de,ne->n", centred, model.get_precision(), centred)
    assert len(reference.directions) == 16
    assert reference.squared_distances(x) == pytest.approx(expected, rel=1e-4)


def test_false_alarms_are_as_stated():
    single, windows = rates(np.random.default_rng(1), 150)
    # 600 windows: 0.01 with a standard error of 0.004. Single images: discrete, so rather below 0.01.
    assert single <= 0.012
    assert windows <= 0.022


@pytest.mark.parametrize("changed", [{"shift": 1.0}, {"scale": 3.0}])
def test_other_images_are_noticed(changed):
    single, windows = rates(np.random.default_rng(2), 10, **changed)
    if "shift" in changed:
        assert windows > 0.99
        assert single < 0.2, "a shift that no single image gives away"
    else:
        assert single > 0.5


def test_small_sets_keep_few_directions_and_large_ones_few_distances():
    generator = np.random.default_rng(3)
    assert [len(fit_drift(images(n, generator)).directions) for n in (100, 240)] == [4, 8]
    large = fit_drift(images(900, generator))
    assert (large.images, len(large.distances), len(large.directions)) == (900, 500, 16)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((40, 8)), r"got \(40, 8\)"),
        (np.full((100, 8), np.nan), "finite"),
        (np.zeros((100, 2)), "D >= 3"),
        (np.ones((100, 8)), "look the same"),
    ],
)
def test_unusable_features_are_named(features, message):
    with pytest.raises(InputError, match=message):
        fit_drift(features)


@pytest.fixture(scope="module")
def photographs(real_sets):
    """Returns features of photographs of two sets and of faces, by the embedded bundle."""
    found = {}
    with EmotionModel.load() as model:
        for name, pattern, count in (("emotion6", "*.jpg", 1400), ("ferplus", "*.png", 200), ("bass", "*", 200)):
            files = sorted(p for p in Path(real_sets, name, "images").rglob(pattern) if p.is_file())
            chosen = np.random.default_rng(0).permutation(len(files))[:count]
            found[name] = model.score([files[i] for i in chosen], labels=["calm", "tense"]).features
    return found


@pytest.mark.slow
def test_rates_on_photographs(photographs):
    """Prints the figures of docs/calibration.md."""
    generator = np.random.default_rng(0)
    pool = photographs["emotion6"]
    for count in (100, 250, 500):
        single, windows, faces, silhouettes = [], [], [], []
        for _ in range(100):
            order = generator.permutation(len(pool))
            reference = fit_drift(pool[order[:count]])
            placed = reference.of(pool[order[count : count + 500]])
            single += [drift.p_value <= 0.01 for drift in placed]
            windows += [window_p_value(placed[i : i + 50], reference) <= 0.01 for i in range(0, 500, 50)]
            for found, name in ((faces, "ferplus"), (silhouettes, "bass")):
                others = reference.of(photographs[name][generator.permutation(200)[:50]])
                found.append(window_p_value(others, reference) <= 0.01)
        means = [float(np.mean(found)) for found in (single, windows, faces, silhouettes)]
        print(count, *(f"{mean:.3f}" for mean in means))  # noqa: T201
        assert max(means[:2]) < 0.03
        assert min(means[2:]) > (0.5 if count == 100 else 0.95)
    assert drift_fitting.MAX_DISTANCES == 500
