"""`EmotionModel` end to end on the tiny bundle, whose calibrators have known, made-up numbers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, logit, softmax

from emocaliber.runtime import ArtifactError, BackendError, EmotionModel, InputError
from emocaliber.runtime import bundle as bundle_module
from emocaliber.runtime.scoring import Scored
from emocaliber.runtime.taxonomy import TAXONOMIES

LABELS = TAXONOMIES["emotion6-7"].labels
PARTS = {"element": "a dog", "human": "none", "context": "a park", "interaction": "play", "analysis": "it is calm"}
THOUGHT = "<think>" + "".join(f"<{tag}>{text}</{tag}>" for tag, text in PARTS.items()) + "</think>"


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[EmotionModel]:
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30 + 7 * n, 50, 3), dtype=np.uint8) for n in range(4)]


def test_direct_prediction_is_the_calibrated_softmax(model: EmotionModel, images: list[np.ndarray]) -> None:
    prediction = model.predict(images[0])
    scores = model.score([images[0]]).label_scores[0]
    # The bundle's direct calibrator: temperature 1.7, thresholds 0.7, 0.85, 0.93 for 80, 90, 95 %.
    expected = softmax(scores / 1.7)
    np.testing.assert_allclose(list(prediction.distribution.values()), expected, atol=1e-6)
    assert list(prediction.distribution) == list(LABELS)
    assert prediction.label == LABELS[int(expected.argmax())]
    assert prediction.confidence == max(prediction.distribution.values())
    assert (prediction.mode, prediction.taxonomy, prediction.coverage) == ("direct", "emotion6-7", 0.9)
    assert prediction.calibrated
    assert prediction.calibrator == "temperature fitted on 100 images of nothing: made up for tests (cpu)"
    assert prediction.verbalized_confidence is None
    assert prediction.reasoning is None
    assert prediction.bundle == {
        "name": "tiny-random",
        "version": "0.0.1",
        "precision": "int8",
        "engine": "onnxruntime-cpu",
    }
    assert set(prediction.timing_ms) == {"decode", "preprocess", "vision", "text", "total"}
    assert prediction.timing_ms["total"] == pytest.approx(sum(prediction.timing_ms.values()) / 2, abs=0.01)
    order = sorted(LABELS, key=lambda label: -prediction.distribution[label])
    before = np.cumsum([0.0, *(prediction.distribution[label] for label in order)])
    kept = tuple(label for label, mass in zip(order, before, strict=False) if mass <= 0.85)
    assert prediction.prediction_set(0.9) == kept


def test_reason_takes_the_stated_confidence_in(model: EmotionModel, images: list[np.ndarray]) -> None:
    prediction = model.predict(images[1], mode="reason")
    raw = model.score([images[1]], mode="reason")
    assert raw.verbalized is not None
    assert prediction.verbalized_confidence == pytest.approx(raw.verbalized[0], abs=1e-6)
    # The bundle's fusion: 0.1 + 0.8 logit(p_top) + 0.2 logit(stated).
    plain = softmax(raw.label_scores[0] / 1.7)
    expected = expit(0.1 + 0.8 * logit(plain.max()) + 0.2 * logit(raw.verbalized[0]))
    assert prediction.confidence == pytest.approx(expected, abs=1e-6)
    rest = np.delete(list(prediction.distribution.values()), plain.argmax())
    np.testing.assert_allclose(rest / rest.sum(), np.delete(plain, plain.argmax()) / (1 - plain.max()), atol=1e-6)
    assert prediction.reasoning is None, "random weights do not write grammatical reasonings"


@pytest.mark.parametrize("mode", ["direct", "reason"])
def test_batch_equals_singles(model: EmotionModel, images: list[np.ndarray], mode: str) -> None:
    batch = model.predict_batch(iter(images), mode=mode)
    assert len({prediction.confidence for prediction in batch}) == len(images)
    for image, together in zip(images, batch, strict=True):
        alone = model.predict(image, mode=mode)
        np.testing.assert_allclose(list(together.distribution.values()), list(alone.distribution.values()), atol=1e-5)
    assert model.predict_batch([]) == []


def test_chunks_keep_the_order(model: EmotionModel, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.score(images, mode="reason")
    monkeypatch.setattr(model._scorer, "batch_size", lambda *_: 3)
    chunked = model.score(images, mode="reason")
    np.testing.assert_allclose(chunked.label_scores, whole.label_scores, atol=1e-5)
    np.testing.assert_allclose(chunked.verbalized, whole.verbalized, atol=1e-5)
    assert chunked.texts == whole.texts
    assert model.score([], verbalize=True).label_scores.shape == (0, 7)
    assert model.score([]).verbalized is None


def test_every_kind_of_image_gives_the_same(model: EmotionModel, images: list[np.ndarray], tmp_path: Path) -> None:
    picture = Image.fromarray(images[0])
    picture.save(tmp_path / "a.png")
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded.getvalue(), picture, images[0]]
    predictions = model.predict_batch(kinds)
    assert len({prediction.confidence for prediction in predictions}) == 1
    assert [prediction.image for prediction in predictions] == [str(tmp_path / "a.png")] * 2 + [None] * 3


def test_sampled_reasonings(model: EmotionModel, images: list[np.ndarray]) -> None:
    def distribution(**settings: Any) -> list[float]:
        return list(model.predict(images[0], mode="reason", **settings).distribution.values())

    assert distribution(samples=3, seed=1) == distribution(samples=3, seed=1)
    assert distribution(samples=3, seed=1) != distribution(samples=3, seed=2)
    assert distribution(temperature=1.0) != distribution()
    assert distribution() == distribution(seed=9), "greedy reasoning draws nothing"


def test_samples_average_their_distributions(
    model: EmotionModel, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Uncalibrated, two reasonings: odds 3 to 1 and 1 to 7 average to (0.75 + 0.125) / 2.
    scores = np.log([[[3.0, 1.0], [1.0, 7.0]]])
    stub(model, monkeypatch, scores, ((f"junk{THOUGHT}", THOUGHT),))
    prediction = model.predict(images[0], labels=["calm", "tense"], mode="reason", samples=2)
    assert prediction.distribution["calm"] == pytest.approx(0.4375)
    assert prediction.label == "tense"
    assert prediction.reasoning == PARTS
    assert prediction.verbalized_confidence == 0.6


def stub(
    model: EmotionModel, monkeypatch: pytest.MonkeyPatch, scores: np.ndarray, texts: tuple[tuple[str, ...], ...]
) -> None:
    made = Scored(label_scores=scores, verbalized=np.array([0.6]), texts=texts, vision_ms=1.0, text_ms=1.0)
    monkeypatch.setattr(model._scorer, "score_seen", lambda *_, **__: made)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((THOUGHT,), PARTS),
        ((THOUGHT.replace("<human>none</human>", ""),), None),
        (("</think>",), None),
        ((f"{THOUGHT}</think>",), None),
        (("", THOUGHT.replace("dog", "cat"), THOUGHT), PARTS),
    ],
)
def test_reasoning_is_given_only_where_it_follows_the_grammar(
    model: EmotionModel,
    images: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    texts: tuple[str, ...],
    expected: dict[str, str] | None,
) -> None:
    # The last reasoning leads to the answer, the others to another label: it is the one to show.
    scores = np.log([[[1.0, 2.0]] * (len(texts) - 1) + [[99.0, 1.0]]])
    stub(model, monkeypatch, scores, (texts,))
    settings: dict[str, Any] = {"samples": len(texts)} if len(texts) > 1 else {}
    prediction = model.predict(images[0], labels=["calm", "tense"], mode="reason", **settings)
    assert prediction.label == "calm"
    assert prediction.reasoning == expected


def test_other_label_sets_are_marked_uncalibrated(model: EmotionModel, images: list[np.ndarray]) -> None:
    own = model.predict(images[0], labels=["calm", "tense", "bored"])
    assert (own.taxonomy, own.calibrated, own.calibrator, own.conformal) == ("custom", False, None, None)
    np.testing.assert_allclose(
        list(own.distribution.values()),
        softmax(model.score([images[0]], labels=["calm", "tense", "bored"]).label_scores[0]),
        atol=1e-6,
    )
    same_words = model.predict(images[0], labels=LABELS)
    assert (same_words.taxonomy, same_words.calibrated) == ("custom", False)
    assert not model.predict(images[0], taxonomy="webemo-7").calibrated
    assert not model.predict(images[0], taxonomy="sentiment-2").calibrated


def test_what_no_calibrator_covers_is_said(
    model: EmotionModel, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.predict(images[0]).out_of_scope is None
    own = model.predict(images[0], labels=["calm", "tense"], mode="reason")
    assert own.out_of_scope == (
        "bundle tiny-random has no calibrator for custom (calm, tense) in reason mode at int8; "
        "it is calibrated for emotion6-7 at int8 (direct, reason)"
    )
    many = model.predict(images[0], labels=[f"mood {n}" for n in range(40)]).out_of_scope
    assert many is not None
    assert "mood 11" in many
    assert "mood 20" not in many, "a long list is cut"
    monkeypatch.setattr(model, "engine", "onnxruntime-cuda")
    elsewhere = model.predict(images[0])
    assert elsewhere.calibrated
    assert elsewhere.out_of_scope == (
        "the calibrator of bundle tiny-random for emotion6-7 (direct, int8) was fitted on cpu, "
        "these scores are from onnxruntime-cuda"
    )
    assert elsewhere.out_of_scope in elsewhere.describe()
    monkeypatch.setattr(model, "engine", "openvino")
    assert "these scores are from openvino" in str(model.predict(images[0]).out_of_scope)


def test_precision_without_a_calibrator(tiny_bundle: Path, images: list[np.ndarray]) -> None:
    with EmotionModel.load(tiny_bundle, precision="fp32", engine="cpu", threads=1) as model:
        prediction = model.predict(images[0])
    assert not prediction.calibrated
    assert prediction.bundle["precision"] == "fp32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"taxonomy": "moods"}, "unknown taxonomy 'moods'"),
        ({"taxonomy": "fi-2", "labels": ["a", "b"]}, "not both"),
        ({"labels": []}, "2 to 1000 labels, got 0"),
        ({"labels": ["joy", "Joy"]}, "same label"),
        ({"labels": ["joy", ""]}, "empty"),
        ({"labels": ["joy", "</answer>"]}, "never tags"),
        ({"labels": "joy"}, "list of strings"),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"coverage": 1.0}, r"coverage is 1\.0"),
        ({"samples": 2}, "direct mode draws nothing"),
        ({"mode": "reason", "samples": 0}, "samples is 0"),
    ],
)
def test_impossible_calls(
    model: EmotionModel, images: list[np.ndarray], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model.predict(images[0], **arguments)


def test_images_that_are_no_list_or_no_image(model: EmotionModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="list of images"):
        model.predict_batch("photo.jpg")
    with pytest.raises(InputError, match=r"none\.png"):
        model.predict(tmp_path / "none.png")


def test_load_refuses_what_it_cannot_do(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no precision 'q4'"):
        EmotionModel.load(tiny_bundle, precision="q4")
    with pytest.raises(InputError, match="engine is 'npu'"):
        EmotionModel.load(tiny_bundle, engine="npu")
    with pytest.raises(ArtifactError, match="does not exist"):
        EmotionModel.load(tiny_bundle / "none")


def test_a_closed_model_says_so(tiny_bundle: Path, tmp_path: Path, images: list[np.ndarray]) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tiny_bundle, "tiny")
    with EmotionModel.load(tmp_path / "b.tar", engine="cpu", threads=1) as model:
        folder = model.bundle.folder
        assert model.predict(images[0]).calibrated
    assert not folder.exists()
    with pytest.raises(BackendError, match="was closed"):
        model.predict(images[0])


def test_a_failed_load_leaves_nothing_behind(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tiny_bundle, "tiny")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(bundle_module.tempfile, "tempdir", str(scratch))
    with pytest.raises(InputError, match="no precision"):
        EmotionModel.load(tmp_path / "b.tar", precision="q4")
    assert list(scratch.iterdir()) == []
