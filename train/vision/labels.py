"""The label sets a vision tower learns at once: each has its own columns of one throw-away head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.samples import Sample

_NEVER = -1e4
"""Logit of a label of another set: finite, so that zero probability times it is zero."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels that were given in one way. Two sets may share a taxonomy and still mean different things by it."""

    source: str
    """Name of the published set; the taxonomy's where the samples are of none."""
    taxonomy: str
    size: int
    """Number of labels."""

    @property
    def names(self) -> frozenset[str]:
        """What a recipe may call it."""
        return frozenset((self.source, self.taxonomy))


def label_set(sample: Sample, sources: Collection[str]) -> LabelSet:
    """Returns the label set of a sample; of one whose id begins with a name of ``sources``, that source's own."""
    first = sample.id.partition("/")[0]
    return LabelSet(first if first in sources else sample.taxonomy, sample.taxonomy, len(sample.resolve()))


class LabelBlocks:
    """The label sets of a run side by side as columns: block s holds the labels of set s."""

    def __init__(self, samples: Sequence[Sample], sources: Collection[str]) -> None:
        """Finds the label sets of the samples, in the order in which they appear."""
        every = [label_set(sample, sources) for sample in samples]
        self.sets = tuple(dict.fromkeys(every))
        """The label sets."""
        self.total = sum(each.size for each in self.sets)
        """Number of columns."""
        places = {each: place for place, each in enumerate(self.sets)}
        self.of_samples = torch.tensor([places[each] for each in every])
        """(N,) the label set of each sample."""
        owner = torch.repeat_interleave(torch.tensor([each.size for each in self.sets]))
        self._own = owner == torch.arange(len(self.sets))[:, None]

    def targets(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Returns (N, total) label distributions, zero outside a sample's own block.

        Raises:
            InputError: If a sample has neither votes nor an answer.
        """
        table = torch.zeros(len(samples), self.total)
        for row, (sample, place) in enumerate(zip(samples, self.of_samples.tolist(), strict=True)):
            distribution = sample.distribution()
            if distribution is None:
                raise InputError(
                    f"sample {sample.id} has neither votes nor an answer; the vision tower learns from them"
                )
            table[row, self._own[place]] = torch.tensor(distribution)
        return table

    def own(self, logits: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:
        """Returns (N, total) logits of which those outside each row's own block are practically minus infinity."""
        return logits.masked_fill(~self._own.to(logits.device)[sets], _NEVER)
