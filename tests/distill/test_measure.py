"""Figures of a stage against hand-worked numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emocaliber.distill.measure import bundle_outputs, set_members, stage_result, teacher_outputs, truth_of
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.scoring import Scored


def sample(**given: Any) -> Sample:
    return Sample(**{"image": "/a.png", "taxonomy": "sentiment-2", "answer": "positive", **given})


POSTERIOR = {"negative": 0.3, "positive": 0.7}
VOTES = {"positive": 4.0, "negative": 1.0}


def test_the_truth_of_samples() -> None:
    truth = truth_of([sample(posterior=POSTERIOR, votes=VOTES), sample(answer="negative", posterior=POSTERIOR)])
    assert truth.labels.tolist() == [1, 0]
    assert truth.posterior is not None
    assert truth.posterior == pytest.approx(np.array([[0.3, 0.7]] * 2))
    # One of them has no votes: then there are none for the whole.
    assert truth.votes is None
    voted = truth_of([sample(votes=VOTES)])
    assert voted.posterior is None
    assert voted.votes == pytest.approx(np.array([[0.2, 0.8]]))


def test_samples_without_an_answer_cannot_be_measured() -> None:
    with pytest.raises(InputError, match="2 held-out samples have no answer, the first is b"):
        truth_of([sample(), sample(answer=None, id="b"), sample(answer=None, id="c")])


TRUTH = truth_of(
    [
        sample(answer=answer, posterior={"negative": p, "positive": 1 - p})
        for answer, p in (("negative", 0.9), ("positive", 0.5), ("positive", 0.2), ("positive", 0.4), ("negative", 0.5))
    ]
)
PROBABILITIES = np.array(
    [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]]
)  # of the first four: right, wrong, right, right


def test_figures_of_a_stage_by_hand() -> None:
    sets = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=bool)
    stated = np.array([0.9, 0.5, 0.5, 0.9])
    result = stage_result("s", "Title", "reason", TRUTH, PROBABILITIES, verbalized=stated, sets=sets, wall_s=2.5)
    assert (result.name, result.title, result.mode) == ("s", "Title", "reason")
    expected = {
        "accuracy": 0.75,
        "bayes_accuracy": 0.7,  # (0.9 + 0.5 + 0.8 + 0.6) / 4
        "brier": 0.125,  # (0.04 + 0.36 + 0.09 + 0.01) / 4
        "nll": -(math.log(0.8) + math.log(0.4) + math.log(0.7) + math.log(0.9)) / 4,
        "auroc": 1.0,  # the one wrong answer is the least sure
        "n": 4,
        "brier_posterior": 0.215,  # the mean of q (1 - c)² + (1 - q) c²: (0.1 + 0.26 + 0.17 + 0.33) / 4
        "verbalized_brier": 0.13,  # (0.01 + 0.25 + 0.25 + 0.01) / 4
        "set_coverage": 0.75,
        "set_coverage_posterior": 0.775,  # (0.9 + 1 + 0.8 + 0.4) / 4
        "set_size": 1.25,
        "seconds": 2.5,
    }
    assert {key: result.metrics[key] for key in expected} == pytest.approx(expected)
    assert {"kl", "ece", "ece_posterior", "verbalized_ece", "verbalized_ece_posterior"} <= set(result.metrics)
    assert result.confidence == pytest.approx([0.8, 0.6, 0.7, 0.9])
    assert result.correct.tolist() == [1, 0, 1, 1]
    for name in ("brier", "verbalized_brier"):
        low, high = result.intervals[name]
        assert low < expected[name] < high


def test_figures_against_votes_by_hand() -> None:
    truth = truth_of([sample(votes={"negative": n, "positive": 10 - n}) for n in (8, 3, 2, 3)])
    sets = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], dtype=bool)
    stated = np.array([0.9, 0.5, 0.5, 0.9])
    metrics = stage_result("s", "t", "reason", truth, PROBABILITIES, verbalized=stated, sets=sets).metrics
    expected = {  # the answers have 0.8, 0.3, 0.8, 0.7 of the votes
        "ece_votes": 0.15,  # (0 + 0.3 + 0.1 + 0.2) / 4
        "brier_votes": 0.22,  # (0.16 + 0.3 + 0.17 + 0.25) / 4
        "verbalized_ece_votes": 0.1,  # 0.9 for 0.75, and 0.5 for 0.55
        "verbalized_brier_votes": 0.23,  # (0.17 + 0.25 + 0.25 + 0.25) / 4
        "set_coverage_votes": 0.725,  # (0.8 + 1 + 0.8 + 0.3) / 4
    }
    assert {key: value for key, value in metrics.items() if key.endswith("_votes")} == pytest.approx(expected)
    assert not [key for key in metrics if key.endswith("_posterior")]


def test_what_is_not_known_is_left_out() -> None:
    truth = truth_of([sample(), sample(answer="negative")])
    result = stage_result("s", "t", "direct", truth, np.array([[0.4, 0.6], [0.2, 0.8]]))
    assert result.metrics["bayes_accuracy"] is None
    assert result.metrics["kl"] is None
    assert result.metrics["seconds"] is None
    assert not [key for key in result.metrics if key.startswith(("verbalized", "set_"))]
    assert not [key for key in result.metrics if key.endswith(("_posterior", "_votes"))]
    assert set(result.intervals) == {"accuracy", "ece", "brier", "auroc"}


def test_a_teachers_distribution_is_the_mean_over_its_reasonings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str, bool]] = []

    class Teacher:
        def score(self, images: list[str], labels: tuple[str, ...], mode: str, *, verbalize: bool) -> Scored:
            asked.append((len(images), mode, verbalize))
            scores = np.log(np.array([[[0.9, 0.1], [0.5, 0.5]]])).repeat(len(images), axis=0) - 3.0
            stated = np.full(len(images), 0.3) if verbalize else None
            return Scored(label_scores=scores, verbalized=stated, texts=None, vision_ms=0.0, text_ms=0.0)

    monkeypatch.setattr("emocaliber.distill.measure.BATCH", 2)
    teacher: Any = Teacher()
    probabilities, stated = teacher_outputs(teacher, [sample()] * 3, "reason", verbalize=True)
    assert probabilities == pytest.approx(np.array([[0.7, 0.3]] * 3))
    assert stated == pytest.approx([0.3] * 3)
    assert asked == [(2, "reason", True), (1, "reason", True)]
    assert teacher_outputs(teacher, [sample()], "direct", verbalize=False)[1] is None


def test_a_bundle_is_measured_through_its_predictions(tiny_bundle: Path, scenes: list[Sample]) -> None:
    with EmotionModel.load(tiny_bundle, engine="cpu") as model:
        alone = [model.predict(scene.image, taxonomy="emotion6-7") for scene in scenes[:2]]
        probabilities, stated, predictions = bundle_outputs(model, scenes[:2], "direct")
    assert stated is None
    assert probabilities == pytest.approx(np.array([list(p.distribution.values()) for p in alone]), abs=1e-5)
    members = set_members(predictions, 0.9)
    assert members.shape == (2, 7)
    labels = list(alone[0].distribution)
    for row, prediction in zip(members, alone, strict=True):
        assert {label for label, inside in zip(labels, row, strict=True) if inside} == set(
            prediction.prediction_set(0.9)
        )
