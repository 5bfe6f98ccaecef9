"""Samples reduced to the numbers that figures are made of: from predictions of a bundle, or from response lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emocaliber.runtime.errors import InputError, ResponseError
from emocaliber.runtime.grammar import Mode, Response, parse_response
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.taxonomy import TAXONOMIES, Taxonomy

from .distances import DISTANCES
from .metrics import bayes_accuracy, negative_log_likelihood
from .predictions import Outcome
from .responses import ResponseLine
from .vecbench import canonical_task


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One labelled sample, reduced to numbers; those of an unanswered sample are None."""

    task: str
    """Name of the taxonomy or task."""
    labels: tuple[str, ...]
    """The candidates."""
    right: str
    """The label taken as right."""
    answer: str | None = None
    """The label predicted."""
    confidence: float | None = None
    """Confidence in the answer."""
    verbalized: float | None = None
    """Confidence the model stated, where that is another than `confidence`."""
    predicted: tuple[float, ...] | None = None
    """Predicted distribution, in the order of `labels`."""
    nll: float | None = None
    """Negative log likelihood of the right label, nats."""
    distances: dict[str, float] | None = None
    """`DISTANCES` of the prediction to the votes or posterior, where these are known."""
    known: tuple[float, ...] | None = None
    """The votes or posterior, in the order of `labels`."""
    bayes: float | None = None
    """Largest true probability, likewise."""
    covered: float | None = None
    """1 if the right label is in the prediction set, else 0."""
    set_size: float | None = None
    """Labels in the prediction set."""
    set_target: float | None = None
    """Coverage the set was asked for."""
    image: str | None = None
    """Path of the image."""
    text: str | None = None
    """What the model wrote."""

    @property
    def correct(self) -> float:
        """1 if the answer is right, 0 if it is wrong or missing."""
        return float(self.answer == self.right)


def right_label(sample: Sample) -> str | None:
    """Returns the label taken as right: the answer, else the one most voted for, else the most probable one, else None.

    Spelt as the taxonomy spells it; ties go to the earlier label.
    """
    labels = sample.resolve().labels
    if sample.answer is not None:
        return labels[sample.resolve().index(sample.answer)]
    weights = sample.distribution() or sample.true_posterior()
    return None if weights is None else labels[int(np.argmax(weights))]


def reference_distribution(sample: Sample) -> list[float] | None:
    """Returns the known posterior, else the votes as a distribution, else None; in the order of the taxonomy."""
    return sample.true_posterior() or (sample.distribution() if sample.votes is not None else None)


def make_row(outcome: Outcome) -> Row | None:
    """Returns the numbers of one sample, or None where it has no label to be held against."""
    sample, prediction = outcome.sample, outcome.prediction
    right = right_label(sample)
    if right is None:
        return None
    labels = sample.resolve().labels
    if prediction is None:
        return Row(task=sample.taxonomy, labels=labels, right=right, image=sample.image)
    predicted = tuple(prediction.distribution[label] for label in labels)
    known = reference_distribution(sample)
    chosen = prediction.prediction_set()
    return Row(
        task=sample.taxonomy,
        labels=labels,
        right=right,
        answer=prediction.label,
        confidence=prediction.confidence,
        verbalized=prediction.verbalized_confidence,
        predicted=predicted,
        nll=negative_log_likelihood([predicted], [labels.index(right)]),
        distances=None if known is None else {name: f([known], [predicted]) for name, f in DISTANCES.items()},
        known=None if known is None else tuple(known),
        bayes=None if known is None else bayes_accuracy([known]),
        covered=float(right in chosen),
        set_size=float(len(chosen)),
        set_target=prediction.coverage,
        image=sample.image,
    )


def make_response_row(line: ResponseLine) -> Row:
    """Returns the numbers of one response under strict scoring: an answer only where the text follows the grammar.

    Both modes are accepted, with or without a confidence. A truth that is not among the candidates, aliases considered,
    stays as it is: nothing can be right about it.
    """
    response = _parse(line)
    return Row(
        task=canonical_task(line.task),
        labels=line.candidates,
        right=_truth(line),
        answer=None if response is None else response.answer,
        confidence=None if response is None else response.confidence,
        image=line.image,
        text=line.response,
    )


def _parse(line: ResponseLine) -> Response | None:
    if line.response is None:
        return None
    mode: Mode = "reason" if "<think>" in line.response else "direct"
    try:
        return parse_response(line.response, line.candidates, mode, needs_confidence=False)
    except ResponseError:
        return None


def _truth(line: ResponseLine) -> str:
    known = TAXONOMIES.get(canonical_task(line.task).casefold())
    aliases = () if known is None else known.aliases
    try:
        candidates = Taxonomy(name=line.task, labels=line.candidates, aliases=aliases)
        return line.candidates[candidates.index(line.ground_truth)]
    except InputError:
        return line.ground_truth
