"""A student that responds as it is used: its answers are drawn from what it scores, not written.

The student learns how probable the labels are among the candidates, not to write them (`emocaliber.distill.packing`):
left to write freely, it may write anything between ``<answer>`` and ``</answer>``. So it writes its reasoning, and the
answer is drawn from its label distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from emocaliber.evaluate.responders import Drawing, Request
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.decoding import Sampling
from emocaliber.runtime.grammar import MODES, Mode, render_response
from emocaliber.runtime.prompts import PromptTemplate

UNSTATED = 0.5
"""Stands where a response has its confidence, which nobody asked for."""


class ScoredResponder:
    """Answers questions about images with a student in memory."""

    def __init__(
        self,
        model: TransformersModel,
        template: PromptTemplate,
        label_sets: Iterable[tuple[str, ...]],
        *,
        name: str,
        batch_size: int,
    ) -> None:
        """Wraps ``model``, which is not copied.

        Args:
            model: The student.
            template: Its instructions.
            label_sets: Candidates of all questions that will be asked.
            name: Which model, for the record.
            batch_size: Images scored together.
        """
        self.name = name
        self._model = model
        self._batch_size = batch_size
        self._questions: dict[str, tuple[tuple[str, ...], Mode]] = {
            template.instruction(labels, mode): (labels, mode) for labels in set(label_sets) for mode in MODES
        }

    def respond(self, requests: Sequence[Request], drawing: Drawing) -> list[list[str]]:
        """Returns ``drawing.count`` responses for each request, in order; their confidences mean nothing.

        Reasoning and answer are drawn at the temperature; how long a reasoning may be is the model's matter.

        Raises:
            InputError: If an image cannot be read.
        """
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.instruction, []).append(place)
        responses: list[list[str]] = [[] for _ in requests]
        for question, places in groups.items():
            for start in range(0, len(places), self._batch_size):
                batch = places[start : start + self._batch_size]
                for place, texts in zip(batch, self._texts(requests, batch, question, drawing), strict=True):
                    responses[place] = texts
        return responses

    def _texts(
        self, requests: Sequence[Request], batch: Sequence[int], question: str, drawing: Drawing
    ) -> list[list[str]]:
        labels, mode = self._questions[question]
        samples = drawing.count if mode == "reason" else 1
        sampling = Sampling(samples=samples, temperature=drawing.temperature, seed=drawing.seed)
        images = [requests[place].image for place in batch]
        scored = self._model.score(images, labels, mode, sampling, verbalize=False)
        texts = []
        for row, place in enumerate(batch):
            # Of the image's own, so that the answer does not depend on who shares its batch.
            rng = np.random.default_rng([drawing.seed, place])
            reasonings = ("",) * drawing.count if scored.texts is None else scored.texts[row]
            scores = np.broadcast_to(scored.label_scores[row], (drawing.count, len(labels)))
            answers = [labels[rng.choice(len(labels), p=softmax(own / drawing.temperature))] for own in scores]
            texts.append(
                [
                    reasoning + render_response(answer, UNSTATED, None)
                    for reasoning, answer in zip(reasonings, answers, strict=True)
                ]
            )
        return texts
