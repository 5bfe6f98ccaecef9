"""What a teacher is asked about an image, and the traces of its answers.

An image is asked in direct mode once in each order of its candidates, and in reason mode as often as reasonings are
sampled, the orders taking turns. What an image is asked, and what chance its answers are drawn by, depend on the seed
and on the image's own id alone, not on which other images are asked with it.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from emocaliber.runtime.decoding import GREEDY, Sampling
from emocaliber.runtime.errors import ResponseError
from emocaliber.runtime.grammar import MODES, Mode, parse_response, render_response
from emocaliber.runtime.images import ImageSource
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.scoring import Scored
from emocaliber.train.stage_recipes import CollectRecipe

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("taxonomy", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("mode", pa.string()),
        ("sample", pa.int32()),
        ("reasoning", pa.string()),
        ("answer", pa.string()),
        ("confidence", pa.float64()),
        ("label_scores", pa.list_(pa.float64())),
        ("parsed", pa.bool_()),
        ("fault", pa.string()),
        ("teacher", pa.string()),
        ("seed", pa.int64()),
        ("temperature", pa.float64()),
    ]
)
"""Columns of a trace: one row an answer of the teacher. ``labels`` are the candidates in the order in which they were
listed, ``label_scores`` their log-likelihoods in nats, given the reasoning; ``confidence`` is the expectation over the
teacher's confidence tokens; ``sample`` counts the reasonings of an image, in direct mode the orders; ``fault`` says why
a trace does not parse."""

SUBSETS = 4
"""Parts of a label set that are drawn for each answer: few, so that images can be asked together."""


class Teacher(Protocol):
    """Scores images; `emocaliber.evaluate.transformers_model.TransformersModel` is one."""

    def score(
        self, images: Sequence[ImageSource], labels: tuple[str, ...], mode: Mode, sampling: Sampling = GREEDY
    ) -> Scored:
        """Returns scores, stated confidences and, in reason mode, texts of N images.

        Args:
            images: N images.
            labels: Candidates, in the order in which they are listed.
            mode: Whether the teacher reasons first.
            sampling: How reasonings are drawn, with a seed for each image.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One image asked once."""

    sample: Sample
    labels: tuple[str, ...]
    """Candidates as they are listed."""
    mode: Mode
    number: int
    """Of the reasoning; in direct mode of the order."""

    def image_seed(self) -> int:
        """Returns the number by which this answer is drawn, in [0, 2^63)."""
        return _number(self.sample.id, self.sample.taxonomy, self.labels, self.mode, self.number)


def questions_about(sample: Sample, table: CollectRecipe, seed: int) -> list[Question]:
    """Returns what the teacher is asked about an image, direct mode first.

    Args:
        sample: The image.
        table: How many reasonings, orders, and parts of label sets.
        seed: Of the choice of orders and parts.
    """
    orders = label_orders(_candidates(sample, table.subset_share, seed), table.label_orders, seed)
    # Where images begin at different orders, few reasonings an image still meet all of them.
    first = _number(seed, "turn", sample.id, sample.taxonomy)
    turns = [orders[(first + number) % len(orders)] for number in range(table.samples)]
    return [
        Question(sample=sample, labels=labels, mode=mode, number=number)
        for mode, asked in zip(MODES, (orders, turns), strict=True)
        for number, labels in enumerate(asked)
    ]


def label_orders(labels: tuple[str, ...], count: int, seed: int) -> list[tuple[str, ...]]:
    """Returns orders of the labels, the given one first; no two begin with the same label.

    Args:
        labels: K labels.
        count: How many orders; there are K at most.
        seed: Of the orders.
    """
    draw = random.Random(_number(seed, "orders", labels))  # noqa: S311 - reproducible choice, not secrecy
    orders = [labels]
    for first in draw.sample(labels[1:], min(count, len(labels)) - 1):
        rest = [label for label in labels if label != first]
        draw.shuffle(rest)
        orders.append((first, *rest))
    return orders


def _candidates(sample: Sample, share: float, seed: int) -> tuple[str, ...]:
    """Returns the labels an image is asked about: all of them, or for a share of the images some, answer included."""
    labels = sample.resolve().labels
    chance = random.Random(_number(seed, "subset", sample.id, sample.taxonomy))  # noqa: S311 - as above
    if chance.random() >= share or sample.answer is None or len(labels) < 3:
        return labels
    draw = random.Random(_number(seed, "part", labels, sample.answer, chance.randrange(SUBSETS)))  # noqa: S311
    others = [label for label in labels if label != sample.answer]
    kept = {sample.answer, *draw.sample(others, draw.randint(1, len(others) - 1))}
    return tuple(label for label in labels if label in kept)


def _number(*key: Any) -> int:
    """Returns a number in [0, 2^63) that the key fixes, on every machine."""
    digest = hashlib.sha256(json.dumps(key, ensure_ascii=False).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_traces(
    teacher: Teacher,
    samples: Sequence[Sample],
    table: CollectRecipe,
    *,
    name: str,
    seed: int,
    progress: Callable[[float], None],
) -> list[dict[str, Any]]:
    """Returns the traces of some images as rows of `SCHEMA`, by mode, then by image.

    Args:
        teacher: The teacher.
        samples: The images.
        table: What is asked, and at which temperature.
        name: Identity of the teacher, for the record.
        seed: Of the choices and draws.
        progress: Called now and then with the share of the answers that are there.
    """
    asked = [question for sample in samples for question in questions_about(sample, table, seed)]
    asked.sort(key=lambda question: MODES.index(question.mode))
    made: list[dict[str, Any]] = [{}] * len(asked)
    done = 0
    for places in _batches(asked, table.batch_size):
        batch = [asked[place] for place in places]
        temperature = table.temperature if batch[0].mode == "reason" else None
        # One reasoning at a time: a confidence is stated for the answer of its own reasoning.
        seeds = tuple(question.image_seed() for question in batch)
        scored = teacher.score(
            [question.sample.image for question in batch],
            batch[0].labels,
            batch[0].mode,
            Sampling(temperature=temperature, seed=seed, image_seeds=seeds),
        )
        for row, place in enumerate(places):
            shared = {"teacher": name, "seed": seed, "temperature": temperature}
            made[place] = _trace(asked[place], scored, row) | shared
        done += len(batch)
        progress(done / len(asked))
    return made


def _batches(asked: Sequence[Question], size: int) -> Iterator[list[int]]:
    """Yields the places of questions that list the same labels in the same mode, in batches."""
    groups: dict[tuple[Mode, tuple[str, ...]], list[int]] = {}
    for place, question in enumerate(asked):
        groups.setdefault((question.mode, question.labels), []).append(place)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _trace(question: Question, scored: Scored, row: int) -> dict[str, Any]:
    assert scored.verbalized is not None
    scores = scored.label_scores[row, 0]
    answer = question.labels[int(scores.argmax())]
    reasoning = "" if scored.texts is None else scored.texts[row][0]
    confidence = float(scored.verbalized[row])
    fault = _fault(reasoning, answer, confidence, question)
    return {
        "id": question.sample.id,
        "image": question.sample.image,
        "taxonomy": question.sample.taxonomy,
        "labels": list(question.labels),
        "mode": question.mode,
        "sample": question.number,
        "reasoning": reasoning,
        "answer": answer,
        "confidence": confidence,
        "label_scores": [float(score) for score in scores],
        "parsed": not fault,
        "fault": fault,
    }


def _fault(reasoning: str, answer: str, confidence: float, question: Question) -> str:
    try:
        parse_response(reasoning + render_response(answer, confidence, None), question.labels, question.mode)
    except ResponseError as error:
        return str(error)
    return ""


def fault_kind(fault: str) -> str:
    """Returns a fault without what differs from trace to trace: numbers, and the text it quotes."""
    return re.sub(r"'.*'|\".*\"|\b\d+\b", "…", fault)
