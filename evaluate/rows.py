"""Samples reduced to the numbers that figures are made of: from predictions of a bundle, or from response lines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    votes: tuple[float, ...] | None = None
    """The votes as a distribution, likewise, where there are any; also of an unanswered sample."""
    bayes: float | None = None
    """Largest true probability of `known`."""
    covered: float | None = None
    """1 if the right label is in the prediction set, else 0."""
    covered_votes: float | None = None
    """Share of the votes for the labels in the prediction set, where there are votes."""
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

    @property
    def agreement(self) -> float | None:
        """Chance that an annotator drawn from the votes gives the answer; None without votes or an answer."""
        return None if self.answer is None else vote_share(self.votes, self.labels, [self.answer])


def right_label(sample: Sample) -> str | None:
    """Returns the label taken as right: the answer, else the one most voted for, else the most probable one, else None.

    Spelt as the taxonomy spells it; ties go to the earlier label.
    """
    labels = sample.resolve().labels
    if sample.answer is not None:
        return labels[sample.resolve().index(sample.answer)]
    weights = sample.distribution() or sample.true_posterior()
    return None if weights is None else labels[int(np.argmax(weights))]


def reference_distribution(sample: Sample) -> tuple[float, ...] | None:
    """Returns the known posterior, else the votes as a distribution, else None; in the order of the taxonomy."""
    posterior = sample.true_posterior()
    return voted_distribution(sample) if posterior is None else tuple(posterior)


def voted_distribution(sample: Sample) -> tuple[float, ...] | None:
    """Returns the votes as a distribution in the order of the taxonomy, or None without votes."""
    given = None if sample.votes is None else sample.distribution()
    return None if given is None else tuple(given)


def vote_share(votes: Sequence[float] | None, labels: Sequence[str], chosen: Collection[str]) -> float | None:
    """Returns the share of the votes, given in the order of `labels`, for the chosen labels; None without votes."""
    if votes is None:
        return None
    return sum(vote for label, vote in zip(labels, votes, strict=True) if label in chosen)


def make_row(outcome: Outcome) -> Row | None:
    """Returns the numbers of one sample, or None where it has no label to be held against."""
    sample, prediction = outcome.sample, outcome.prediction
    right = right_label(sample)
    if right is None:
        return None
    labels = sample.resolve().labels
    votes = voted_distribution(sample)
    if prediction is None:
        return Row(task=sample.taxonomy, labels=labels, right=right, votes=votes, image=sample.image)
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
        known=known,
        votes=votes,
        bayes=None if known is None else bayes_accuracy([known]),
        covered=float(right in chosen),
        covered_votes=vote_share(votes, labels, chosen),
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
