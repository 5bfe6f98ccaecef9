"""What a teacher is asked, and what chance its answers are drawn by."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest

from emocaliber.distill.traces import fault_kind, label_orders, make_traces, questions_about
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample
from emocaliber.train.stage_recipes import CollectRecipe

# Copied from the published label set, not from the code.
LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


@pytest.fixture(scope="module")
def teacher(model: Any, processor: Any) -> TransformersModel:
    template = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
    return TransformersModel(model, processor, template, 6)


def traces_of(teacher: Any, samples: list[Sample], **changes: Any) -> list[dict[str, Any]]:
    table = CollectRecipe(**{"samples": 2, "batch_size": 4, **changes})
    return make_traces(teacher, samples, table, name="tiny", seed=3, progress=lambda _: None)


def sample_of(number: int, **changes: Any) -> Sample:
    return Sample(**{"image": f"/{number}.png", "taxonomy": "emotion6-7", "answer": "joy", **changes})


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_orders_begin_with_different_labels(count: int) -> None:
    orders = label_orders(LABELS, count, 0)
    assert orders[0] == LABELS
    assert len(orders) == min(count, 7) == len({order[0] for order in orders})
    assert all(sorted(order) == sorted(LABELS) for order in orders)
    assert orders == label_orders(LABELS, count, 0)


def test_orders_are_shuffled_by_the_seed() -> None:
    assert label_orders(("negative", "positive"), 5, 0) == [("negative", "positive"), ("positive", "negative")]
    second = {label_orders(LABELS, 2, seed)[1] for seed in range(50)}
    assert len(second) > 40
    assert {order[0] for order in second} == set(LABELS[1:])


def test_direct_mode_is_asked_in_each_order_and_reasonings_take_turns() -> None:
    table = CollectRecipe(samples=4, label_orders=2)
    orders = label_orders(LABELS, 2, 9)
    first = Counter[tuple[str, ...]]()
    for number in range(60):
        asked = questions_about(sample_of(number), table, 9)
        assert [(q.mode, q.number) for q in asked] == [("direct", 0), ("direct", 1)] + [
            ("reason", turn) for turn in range(4)
        ]
        assert [q.labels for q in asked[:2]] == orders
        turns = [q.labels for q in asked[2:]]
        assert turns in (orders * 2, orders[::-1] * 2)
        first[turns[0]] += 1
    # A fair coin leaves these bounds once in more than a thousand seeds.
    assert all(17 <= count <= 43 for count in first.values())


def test_one_order_asks_as_the_taxonomy_lists_its_labels() -> None:
    assert {q.labels for q in questions_about(sample_of(0), CollectRecipe(samples=3), 1)} == {LABELS}


def test_a_share_of_the_images_is_asked_for_a_part_that_holds_the_answer() -> None:
    table = CollectRecipe(subset_share=0.3)
    asked = [questions_about(sample_of(number), table, 1)[0].labels for number in range(400)]
    parts = [labels for labels in asked if labels != LABELS]
    # Binomial(400, 0.3): mean 120, standard deviation 9.2.
    assert 90 <= len(parts) <= 150
    for labels in parts:
        assert "joy" in labels
        assert 2 <= len(labels) <= 6
        assert list(labels) == [label for label in LABELS if label in labels]
    assert 1 < len(set(parts)) <= 4


def test_what_has_no_part_is_asked_whole() -> None:
    table = CollectRecipe(subset_share=1.0)
    for sample in (sample_of(0, answer=None), sample_of(0, taxonomy="sentiment-2", answer="positive")):
        assert questions_about(sample, table, 1)[0].labels == sample.resolve().labels


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"subset_share": 1.5}, r"subset_share is 1.5, expected a number in \[0, 1\]"),
        ({"label_orders": 0}, "label_orders is 0, expected a number > 0"),
        ({"workers": 0}, "workers is 0"),
        ({"shard_images": 0}, "shard_images is 0"),
    ],
)
def test_tables_that_make_no_sense(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CollectRecipe(**value)


def test_every_answer_has_a_seed_of_its_own() -> None:
    table = CollectRecipe(samples=3, label_orders=2)
    asked = [q for number in range(20) for q in questions_about(sample_of(number), table, 1)]
    seeds = {q.image_seed() for q in asked}
    assert len(seeds) == len(asked) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_do_not_depend_on_the_other_images(teacher: TransformersModel, scenes: list[Sample]) -> None:
    """Scores move by rounding with the length of the longest text in a batch; texts stay, but for a rare tie."""
    together = traces_of(teacher, scenes, label_orders=2)
    for sample in scenes[2:4]:
        alone = traces_of(teacher, [sample], batch_size=1, label_orders=2)
        found = [row for row in together if row["id"] == sample.id]
        assert [row["reasoning"] for row in found] == [row["reasoning"] for row in alone]
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one["label_scores"], other["label_scores"], atol=1e-5)


def test_images_draw_apart(teacher: TransformersModel, scenes: list[Sample]) -> None:
    """Two samples of the very same image are no copies of each other."""
    twins = [dataclasses.replace(scenes[0], id=name) for name in ("one", "two")]
    rows = traces_of(teacher, twins)
    texts = {row["id"]: row["reasoning"] for row in rows if row["mode"] == "reason" and row["sample"] == 0}
    assert texts["one"] != texts["two"]
    scores = [row["label_scores"] for row in rows if row["mode"] == "direct"]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_scores_follow_the_order_of_the_labels(teacher: TransformersModel, scenes: list[Sample]) -> None:
    rows = [row for row in traces_of(teacher, scenes[:1], label_orders=3) if row["mode"] == "direct"]
    assert [row["labels"] for row in rows] == [list(order) for order in label_orders(LABELS, 3, 3)]
    for row in rows:
        scored = teacher.score([scenes[0].image], tuple(row["labels"]), "direct")
        np.testing.assert_allclose(row["label_scores"], scored.label_scores[0, 0], atol=1e-5)
        assert row["answer"] == row["labels"][int(np.argmax(row["label_scores"]))]


def test_faults_are_told_apart_by_their_kind() -> None:
    assert (
        fault_kind("<think> is opened 0 and closed 1 times, expected 1 in reason mode")
        == fault_kind("<think> is opened 3 and closed 1 times, expected 1 in reason mode")
        == "<think> is opened … and closed … times, expected … in reason mode"
    )
    assert fault_kind("expected <element> but found 'it's 5'") == "expected <element> but found …"
    assert fault_kind('expected <element> but found "it\'s"') == "expected <element> but found …"
