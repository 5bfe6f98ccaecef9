"""The distillation benchmark: its losses by hand. It runs whole in tests/distill/test_pipeline.py."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from emocaliber.distill.measure import Truth
from emocaliber.distill.packing import PackedRow


@pytest.fixture
def distillation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import distillation

    return distillation


def test_losses_by_hand(distillation: ModuleType) -> None:
    truth = Truth(labels=np.array([0, 1]), posterior=None, votes=np.array([[0.75, 0.25], [0.0, 1.0]]))
    scores = distillation._scores(np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([1.0, 0.2]), truth)
    assert scores.correct.tolist() == [1, 0]
    assert scores.kl == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), math.log(10)])
    assert scores.brier == pytest.approx([0.25, 0.81])  # half sure; 0.9 for a label that nobody chose
    assert scores.stated == pytest.approx([0.25, 0.04])  # of three in four; of nobody
    assert scores.ece == pytest.approx((0.25 + 0.9) / 2)


def test_answers_alone_put_all_on_the_teachers_answer(distillation: ModuleType) -> None:
    row = PackedRow(
        image="a.png", labels=("calm", "tense"), mode="direct", reasoning="", answer="tense", response="",
        target=(0.6, 0.4),
    )  # fmt: skip
    (changed,) = distillation.one_hot([row])
    assert changed.target == (0.0, 1.0)
    assert changed.labels == row.labels
