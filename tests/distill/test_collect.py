"""Traces of a tiny random teacher."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from emocaliber.distill.collect import collect_traces, read_traces
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.decoding import Sampling
from emocaliber.runtime.errors import ArtifactError, ConfigError, DependencyError
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
TABLE = CollectRecipe(samples=2, batch_size=2, shard_images=2)


@pytest.fixture(scope="module")
def teacher(model: Any, processor: Any) -> TransformersModel:
    template = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
    return TransformersModel(model, processor, template, 6)


def collected(
    teacher: Any, scenes: list[Sample], folder: Path, table: CollectRecipe = TABLE, **changes: Any
) -> list[dict[str, Any]]:
    options = {"teacher": "tiny/calibrate", "seed": 3, **changes}
    return read_traces(collect_traces(lambda: teacher, scenes, table, folder, **options))


def never() -> Any:
    raise AssertionError("a teacher was opened though no shard is missing")


def test_traces_hold_what_the_teacher_thinks(teacher: TransformersModel, scenes: list[Sample], tmp_path: Path) -> None:
    rows = collected(teacher, scenes, tmp_path)
    shards = sorted(path.name for path in tmp_path.iterdir())
    assert shards == ["collection.json", "traces-00000.parquet", "traces-00001.parquet", "traces-00002.parquet"]
    assert pq.read_schema(tmp_path / shards[1]).names == COLUMNS
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
    content, written = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    with pytest.raises(ArtifactError, match="holds 2 of 3 shards; run 'emocaliber distill collect' to end"):
        read_traces(tmp_path)
    assert collected(teacher, scenes, tmp_path) == rows
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == written
    # Nothing is missing now.
    collect_traces(never, scenes, TABLE, tmp_path, teacher="tiny/calibrate", seed=3)


def test_traces_made_otherwise_are_refused(teacher: TransformersModel, scenes: list[Sample], tmp_path: Path) -> None:
    collected(teacher, scenes, tmp_path, settings={"weights": "abc"})
    options: dict[str, Any] = {"teacher": "tiny/calibrate", "seed": 3, "settings": {"weights": "abc"}}

    def again(samples: list[Sample] = scenes, table: CollectRecipe = TABLE, **changes: Any) -> None:
        collect_traces(never, samples, table, tmp_path, **{**options, **changes})

    with pytest.raises(ConfigError, match=r"collection.json was made with other settings \(seed was 3, now 4\); give"):
        again(seed=4)
    with pytest.raises(ConfigError, match="teacher was 'tiny/calibrate', now 'other'; weights was 'abc', now 'xyz'"):
        again(teacher="other", settings={"weights": "xyz"})
    with pytest.raises(ConfigError, match=r"collect.temperature was 1.0, now 0.5"):
        again(table=dataclasses.replace(TABLE, temperature=0.5))
    with pytest.raises(ConfigError, match=r"images was '6, sha256 .*, now '5, sha256"):
        again(samples=scenes[:5])
    with pytest.raises(ConfigError, match=r"images was '6, sha256"):
        again(samples=scenes[::-1])
    # These do not change what the teacher says.
    again(table=dataclasses.replace(TABLE, batch_size=1, workers=2))
    (tmp_path / "collection.json").unlink()
    with pytest.raises(ArtifactError, match=r"holds traces but no collection.json, .* remove them"):
        again()
    (tmp_path / "collection.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"collection.json cannot be read .* collect again"):
        again()


def test_faults_are_counted_by_kind(
    teacher: TransformersModel, scenes: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = collected(teacher, scenes, tmp_path)
    told = capsys.readouterr().err
    # Six images, one direct answer each, which parses, and two reasonings each, which do not.
    assert "18 traces of 6 images: 6 parsed, 12 are kept but not learnt from\n" in told
    counts = [line.split() for line in told.rpartition("learnt from\n")[2].splitlines()]
    assert sum(int(words[0]) for words in counts) == 12
    assert sum(not row["parsed"] for row in rows) == 12
    assert "6/6" in told


def test_without_ray_several_workers_are_refused(
    teacher: TransformersModel, scenes: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    table = dataclasses.replace(TABLE, workers=2)
    with pytest.raises(DependencyError, match=r"collect.workers=2 needs Ray .* pip install 'emocaliber\[ray\]'"):
        collected(teacher, scenes, tmp_path, table)


def test_the_seed_decides_the_reasonings(teacher: TransformersModel, scenes: list[Sample], tmp_path: Path) -> None:
    first, same, other = (
        collected(teacher, scenes[:2], tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == same
    assert {row["seed"] for row in other} == {4}
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
    """A teacher whose reasonings disagree: the even one is sure of joy, the odd one hardly of fear."""

    class Wavering:
        def score(self, images: list[str], labels: tuple[str, ...], mode: str, sampling: Sampling) -> Scored:
            assert sampling.samples == 1
            assert len(sampling.image_seeds) == len(images)
            odd = np.arange(len(images)) % 2
            scores = np.full((len(images), 1, 7), -9.0)
            scores[odd == 0, :, 3] = scores[odd == 1, :, 2] = -0.1
            return Scored(
                label_scores=scores,
                verbalized=np.where(odd, 0.2, 0.9),
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
    (tmp_path / "collection.json").write_text('{"shards": 1, "settings": {}}', encoding="utf-8")
    (tmp_path / "traces-00000.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(ArtifactError, match=r"traces-00000.parquet cannot be read .*; remove it and collect again"):
        read_traces(tmp_path)
