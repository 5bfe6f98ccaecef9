"""Reasoning without any model: measured cues and given annotations, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample

from .build import UNREADABLE, Outcome
from .cues import measure_cues
from .words import conclude, describe, names_candidate

WORDING = 1
"""Raised whenever the same image would be told of in other words."""


class CueWriter:
    """Writes five parts from what can be measured of the image and what the set notes about it."""

    chunk = 64

    def __init__(self, annotations: Sequence[str] | None = None) -> None:
        """Prepares the writer.

        Args:
            annotations: Names of the annotations that may be told; None: all that a sample has.
        """
        self._annotations = None if annotations is None else tuple(annotations)

    def settings(self) -> dict[str, Any]:
        """Returns what the text depends on."""
        return {
            "from": "cues",
            "wording": WORDING,
            "annotations": "all" if self._annotations is None else sorted(self._annotations),
        }

    def write(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Returns the reasoning of each sample; an image that cannot be read is rejected."""
        return [self._write(sample) for sample in samples]

    def _write(self, sample: Sample) -> Outcome:
        try:
            cues = measure_cues(decode_image(sample.image))
        except InputError as error:
            return Outcome(reason=UNREADABLE, detail=str(error))
        candidates = sample.resolve().labels
        told = {
            name: text
            for name, text in (sample.annotations or {}).items()
            if (self._annotations is None or name in self._annotations)
            and not any(names_candidate(word, candidates) for word in text.split())
        }
        shares = sample.distribution() if sample.votes is not None else None
        votes = None if shares is None else dict(zip(candidates, shares, strict=True))
        return Outcome(reasoning={**describe(cues, told), "analysis": conclude(cues, str(sample.answer), votes)})
