"""Calibrators fitted on a bundle's own graphs, and `emocaliber bundle fit-calibrator` on a user's own images."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emocaliber.evaluate import bundle_fitting
from emocaliber.evaluate.bundle_fitting import calibrate_bundle, calibration_sets, calibration_split
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.manifest import Manifest
from emocaliber.runtime.samples import Sample, write_samples

COUNT = 110
POLARITY = ("negative", "positive")
OWN = ("calm", "tense", "bored")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns paths of small pictures in one colour each, dark to light."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = []
    for i in range(COUNT):
        colour = generator.integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(np.broadcast_to(colour, (12, 16, 3))).save(folder / f"{i}.png")
        paths.append(str(folder / f"{i}.png"))
    return paths


@pytest.fixture(scope="module")
def samples(images: list[str]) -> list[Sample]:
    generator = np.random.default_rng(1)
    return [
        Sample(image=image, taxonomy="sentiment-2", votes={"negative": 1.0 + k, "positive": 6.0 - k})
        for image, k in zip(images, generator.integers(0, 6, len(images)), strict=True)
    ]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    with Bundle.open(tiny_bundle) as opened:
        return opened.manifest


def own(images: list[str]) -> list[Sample]:
    return [
        Sample(image=image, taxonomy="moods", labels=OWN, answer=OWN[i % 3], split="calibration")
        for i, image in enumerate(images)
    ]


def fit(bundle: Path | str, data: Path, *words: str) -> int:
    return main(["bundle", "fit-calibrator", str(bundle), "--data", str(data), *words])


def test_every_mode_and_precision_gets_its_own(bundle: Path, samples: list[Sample]) -> None:
    fitted = calibrate_bundle(bundle, samples, fitted_on="plain colours", seed=1)
    keys = [(c.precision, c.mode) for c in fitted]
    assert keys == [("fp32", "direct"), ("fp32", "reason"), ("int8", "direct"), ("int8", "reason")]
    with Bundle.open(bundle) as opened:
        assert list(opened.calibrators) == fitted
    for calibrator in fitted:
        assert (calibrator.taxonomy, calibrator.labels, calibrator.n) == ("sentiment-2", POLARITY, COUNT)
        assert calibrator.fitted_on == "plain colours"
        assert calibrator.drift is not None
        assert ("fusion" in calibrator.confidence_candidates) == (calibrator.mode == "reason")
        with EmotionModel.load(bundle, precision=calibrator.precision) as model:
            assert model.engine == calibrator.engine
            prediction = model.predict(samples[0].image, taxonomy="sentiment-2", mode=calibrator.mode)
        assert prediction.calibrated
        assert prediction.drift is not None


def test_samples_of_several_taxonomies_are_fitted_apart(samples: list[Sample], manifest: Manifest) -> None:
    moods = own([sample.image for sample in samples])
    sets = calibration_sets([*samples, *moods], manifest)
    assert [given.taxonomy.name for given in sets] == ["sentiment-2", "moods"]
    assert sets[0].targets[0] == pytest.approx(samples[0].distribution())
    assert sets[1].targets[:3] == pytest.approx(np.eye(3))
    assert len(calibration_sets([*samples, *moods], manifest, ["moods"])) == 1


def test_the_calibration_split_is_the_default(samples: list[Sample]) -> None:
    train, held_out = (dataclasses.replace(samples[0], split=name) for name in ("train", "calibration"))
    assert calibration_split([train, held_out]) == [held_out]
    assert calibration_split([train, held_out], "train") == [train]
    assert calibration_split(samples) == samples
    with pytest.raises(InputError, match=r"split 'calibration'; the samples have: train \(1\)"):
        calibration_split([train])


def unlabelled(samples: list[Sample]) -> list[Sample]:
    return [*samples[:-1], dataclasses.replace(samples[-1], votes=None, id="blank")]


def relabelled(samples: list[Sample]) -> list[Sample]:
    other = Sample(image=samples[0].image, taxonomy="sentiment-2", labels=POLARITY[::-1], answer="positive", id="odd")
    return [*samples, other]


def unknown_order(samples: list[Sample]) -> list[Sample]:
    return [dataclasses.replace(s, taxonomy="emotion6-7", labels=POLARITY) for s in samples]


def one_sided(samples: list[Sample]) -> list[Sample]:
    return [dataclasses.replace(s, votes={"negative": 1.0}) for s in samples]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unlabelled, "1 of 110 samples of sentiment-2 have neither votes nor an answer, the first is blank"),
        (relabelled, "sample odd: taxonomy sentiment-2 has the labels positive, negative, but elsewhere"),
        (unknown_order, "taxonomy emotion6-7 has the labels negative, positive, but elsewhere anger"),
        (one_sided, "5 for each label; found 110: negative 110, positive 0. Label more images"),
        (lambda samples: samples[:99], "needs at least 100 images, and 5 for each label; found 99"),
    ],
)
def test_samples_that_cannot_be_used_are_named(
    samples: list[Sample], manifest: Manifest, change: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        calibration_sets(change(samples), manifest)
    with pytest.raises(InputError, match=r"no taxonomy fi-2; they have: sentiment-2 \(110 images\)"):
        calibration_sets(samples, manifest, ["fi-2"])


def test_own_labels_become_a_calibrated_taxonomy(
    tiny_bundle: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(own(images), tmp_path / "moods.jsonl")
    made = tmp_path / "fitted"
    assert fit(tiny_bundle, tmp_path / "moods.jsonl", "--out", str(made), "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["calibrators"]
    assert (row["taxonomy"], row["n"], row["mode"]) == ("moods", COUNT, "direct")
    assert row["fitted_on"] == f"{tmp_path.name}/moods.jsonl, calibration split"
    # Random weights know nothing: fitted, they are near the constant, which is a third each.
    assert row["after"]["kl"]["estimate"] == pytest.approx(np.log(3), abs=0.05)
    with EmotionModel.load(made) as model:
        by_labels = model.predict(images[0], labels=OWN)
        by_name = model.predict(images[0], taxonomy="moods")
        other_order = model.predict(images[0], labels=OWN[::-1])
        kept = model.predict(images[0], taxonomy="emotion6-7")
    assert (by_labels.taxonomy, by_labels.calibrated) == ("custom", True)
    assert (by_name.taxonomy, by_name.distribution) == ("moods", by_labels.distribution)
    assert not other_order.calibrated
    assert kept.calibrated, "the bundle's other calibrators stay"
    with Bundle.open(made) as opened:
        [record] = opened.manifest.provenance["refitted"].values()
    assert (record["samples"], record["images"]) == ("moods.jsonl", COUNT)
    card = (made / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| moods | direct | int8 |" in card
    assert f"{COUNT} images | {tmp_path.name}/moods.jsonl, calibration split |" in card


def test_a_bundle_is_replaced_in_one_step(
    bundle: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(samples, tmp_path / "samples.jsonl")
    before = {path.name for path in bundle.iterdir()}
    assert fit(bundle, tmp_path / "samples.jsonl", "--replace") == 0
    out = capsys.readouterr().out
    assert "after, cross-fitted" in out
    assert f"written to {bundle}" in out
    assert {path.name for path in bundle.iterdir()} == before
    with Bundle.open(bundle) as opened:
        assert len(opened.calibrators) == 3
    # The images that it was fitted on do not drift; one picture over and over does.
    assert main(["bundle", "drift", str(bundle), str(tmp_path / "samples.jsonl"), "--taxonomy", "sentiment-2"]) == 0
    assert f"{COUNT} images against {COUNT} calibration images\n  all together     p = 1" in capsys.readouterr().out
    with EmotionModel.load(bundle) as model:
        guard = model.drift_guard(taxonomy="sentiment-2", window=20)
        black = model.predict(np.zeros((12, 16, 3), np.uint8), taxonomy="sentiment-2").drift
        assert black is not None
        assert [guard.update(black) for _ in range(20)] == [False] * 19 + [True]
        with pytest.raises(InputError, match="has no calibrator for webemo-7"):
            model.drift_guard(taxonomy="webemo-7")
        with pytest.raises(InputError, match="recorded no calibration images for emotion6-7"):
            model.drift_guard()


def test_batch_says_that_images_have_drifted(
    bundle: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(samples, tmp_path / "samples.jsonl")
    assert fit(bundle, tmp_path / "samples.jsonl", "--replace") == 0
    capsys.readouterr()
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[::2] = 255
    (tmp_path / "stripes").mkdir()
    for i in range(5):
        Image.fromarray(stripes).save(tmp_path / "stripes" / f"{i}.png")
    common = ["--bundle", str(bundle), "--taxonomy", "sentiment-2", "--out"]
    assert main(["batch", str(tmp_path / "stripes"), *common, str(tmp_path / "s.jsonl")]) == 0
    assert "the 5 images do not look like those the probabilities were calibrated on (p = " in capsys.readouterr().err
    assert main(["batch", str(tmp_path / "samples.jsonl"), *common, str(tmp_path / "same.jsonl")]) == 0
    assert "do not look" not in capsys.readouterr().err


def test_unreadable_images_are_named_and_nothing_is_written(
    tiny_bundle: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [dataclasses.replace(s, image=str(tmp_path / f"none{i}.png")) for i, s in enumerate(samples[:7])]
    write_samples([*samples, *gone], tmp_path / "samples.jsonl")
    assert fit(tiny_bundle, tmp_path / "samples.jsonl", "--out", str(tmp_path / "fitted")) == 1
    message = capsys.readouterr().err
    assert "7 of 117 images cannot be read" in message
    assert "none4.png" in message
    assert "none5.png" not in message
    assert "and 2 more. Repair them, or take their lines out of the samples" in message
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_scores_that_are_not_finite_name_the_image(
    tiny_bundle: Path, samples: list[Sample], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = EmotionModel.score

    def spoiled(self: EmotionModel, *arguments: Any, **options: Any) -> Any:
        made = score(self, *arguments, **options)
        made.label_scores[1, 0] = np.nan
        return made

    monkeypatch.setattr(EmotionModel, "score", spoiled)
    [given] = calibration_sets(samples, manifest)
    with (
        EmotionModel.load(tiny_bundle) as model,
        pytest.raises(InputError, match=r"not finite, the first is .*/1\.png"),
    ):
        bundle_fitting.score_set(model, given, "direct")


def test_places_that_cannot_be_written_are_refused_before_any_work(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "none.jsonl"
    assert fit("default", data, "--replace") == 1
    assert "cannot change the bundle of the package; give a new folder with --out" in capsys.readouterr().err
    assert fit(tmp_path / "b.tar", data, "--replace") == 1
    assert "b.tar, which is no folder" in capsys.readouterr().err
    assert fit(tiny_bundle, data, "--out", str(tiny_bundle)) == 1
    assert "exists; give another place" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        fit(tiny_bundle, data)


def test_without_scipy_it_says_what_to_install(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("scipy", "emocaliber.evaluate"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert fit(tiny_bundle, Path("none.jsonl"), "--out", "x") == 1
    message = capsys.readouterr().err
    assert "'emocaliber bundle fit-calibrator' needs scipy" in message
    assert "pip install 'emocaliber[evaluate]'" in message
