"""Traces of a tiny random teacher."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from emocaliber.distill import collect
from emocaliber.distill.collect import collect_traces, read_traces
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.decoding import Sampling
from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.scoring import Scored
from emocaliber.train.stage_recipes import CollectRecipe

# Copied from the published format, not from the code.
COLUMNS = [
    "id", "image", "taxonomy", "labels", "mode", "sample", "reasoning", "answer", "confidence", "label_scores",
    "parsed", "fault", "teacher", "seed", "temperature",
]  # fmt: skip
LABELS = ["anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"]
TABLE = CollectRecipe(samples=2, batch_size=2)


@pytest.fixture(scope="module")
def teacher(model: Any, processor: Any) -> TransformersModel:
    template = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
    return TransformersModel(model, processor, template, 6)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "SHARD_IMAGES", 2)


def collected(teacher: Any, scenes: list[Sample], folder: Path, **changes: Any) -> list[dict[str, Any]]:
    options = {"teacher": "tiny/calibrate", "seed": 3, **changes}
    return read_traces(collect_traces(teacher, scenes, TABLE, folder, **options))


def test_traces_hold_what_the_teacher_thinks(teacher: TransformersModel, scenes: list[Sample], tmp_path: Path) -> None:
    rows = collected(teacher, scenes, tmp_path)
    shards = sorted(path.name for path in tmp_path.iterdir())
    assert shards == ["traces-00000.parquet", "traces-00001.parquet", "traces-00002.parquet"]
    assert pq.read_schema(tmp_path / shards[0]).names == COLUMNS
    # Two images a shard: one direct row each, then two reasonings each.
    assert [(row["mode"], row["sample"]) for row in rows[:6]] == [("direct", 0)] * 2 + [
        ("reason", 0),
        ("reason", 1),
    ] * 2
    assert [row["id"] for row in rows if row["mode"] == "direct"] == [sample.id for sample in scenes]
    for row in rows:
        assert row["labels"] == LABELS
        assert row["teacher"] == "tiny/calibrate"
        assert row["answer"] == LABELS[int(np.argmax(row["label_scores"]))]
        assert 0.05 <= row["confidence"] <= 0.95
        assert all(math.isfinite(score) and score < 0 for score in row["label_scores"])
        assert row["parsed"] == (row["fault"] == "")
        # Answering at once is always by the grammar; the babble of random weights never is.
        assert row["parsed"] == (row["mode"] == "direct")
        assert row["reasoning"].endswith("</think>") == (row["mode"] == "reason")
        assert row["temperature"] == (1.0 if row["mode"] == "reason" else None)
    reasonings = [row["reasoning"] for row in rows if row["mode"] == "reason"]
    assert len(set(reasonings)) > 6


def test_a_lost_shard_is_made_again_the_same_and_the_others_are_kept(
    teacher: TransformersModel, scenes: list[Sample], tmp_path: Path
) -> None:
    rows = collected(teacher, scenes, tmp_path)
    lost, kept = tmp_path / "traces-00001.parquet", tmp_path / "traces-00002.parquet"
    lost.unlink()
    written = kept.stat().st_mtime_ns
    assert collected(teacher, scenes, tmp_path) == rows
    assert kept.stat().st_mtime_ns == written


def test_the_seed_decides_the_reasonings(teacher: TransformersModel, scenes: list[Sample], tmp_path: Path) -> None:
    first, same, other = (
        collected(teacher, scenes[:2], tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == same
    assert [row["reasoning"] for row in first] != [row["reasoning"] for row in other]
    assert [row["label_scores"] for row in first if row["mode"] == "direct"] == [
        row["label_scores"] for row in other if row["mode"] == "direct"
    ]


def test_taxonomies_mix(teacher: TransformersModel, scenes: list[Sample], tmp_path: Path) -> None:
    other = dataclasses.replace(scenes[1], taxonomy="sentiment-2", answer=None, votes=None, posterior=None)
    mixed = collected(teacher, [scenes[0], other], tmp_path / "mixed")
    assert [row["labels"] for row in mixed if row["mode"] == "direct"] == [LABELS, ["negative", "positive"]]
    (alone, *_) = collected(teacher, [other], tmp_path / "alone")
    found = next(row for row in mixed if row["taxonomy"] == "sentiment-2" and row["mode"] == "direct")
    assert found["label_scores"] == pytest.approx(alone["label_scores"], abs=1e-5)


def test_each_confidence_is_stated_for_its_own_reasonings_answer(scenes: list[Sample], tmp_path: Path) -> None:
    """A teacher whose reasonings disagree: the even seed is sure of joy, the odd one hardly of fear."""

    class Wavering:
        def score(self, images: list[str], labels: tuple[str, ...], mode: str, sampling: Sampling) -> Scored:
            assert sampling.samples == 1
            label, stated = ((3, 0.9), (2, 0.2))[sampling.seed % 2 if mode == "reason" else 0]
            scores = np.full((len(images), 1, 7), -9.0)
            scores[..., label] = -0.1
            return Scored(
                label_scores=scores,
                verbalized=np.full(len(images), stated),
                texts=tuple(("<think></think>",) for _ in images) if mode == "reason" else None,
                vision_ms=0.0,
                text_ms=0.0,
            )

    rows = collected(Wavering(), scenes[:1], tmp_path)
    assert {(row["answer"], row["confidence"]) for row in rows if row["mode"] == "reason"} == {
        ("joy", 0.9),
        ("fear", 0.2),
    }


def test_shards_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no traces; run 'emocaliber distill collect' first"):
        read_traces(tmp_path)
    (tmp_path / "traces-00000.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(ArtifactError, match=r"traces-00000.parquet cannot be read .*; remove it and collect again"):
        read_traces(tmp_path)
