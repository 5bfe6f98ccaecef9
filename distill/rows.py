"""From traces and votes to the student's training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import render_response
from emocaliber.runtime.samples import Sample

from .packing import PackedRow


def student_rows(
    traces: Iterable[Mapping[str, Any]], samples: Sequence[Sample], *, votes_share: float
) -> tuple[list[PackedRow], int]:
    """Returns the training rows of all traces that parsed, and how many did not.

    The target distribution is ``(1 − w) · teacher + w · votes`` where a sample has votes, else the teacher's own. It is
    one over the labels that the trace lists, in its order; of votes for other labels no notice is taken.

    Args:
        traces: Rows of `emocaliber.distill.traces.SCHEMA`.
        samples: The samples they were collected from.
        votes_share: w, in [0, 1].

    Raises:
        InputError: If a trace belongs to none of the samples, or lists a label that its sample does not have.
    """
    known = {sample.id: sample for sample in samples}
    rows, skipped = [], 0
    for trace in traces:
        sample = known.get(trace["id"])
        if sample is None:
            raise InputError(f"trace {trace['id']} belongs to no sample given; collect the traces again")
        own = sample.resolve().labels
        strange = [label for label in trace["labels"] if label not in own]
        if strange:
            raise InputError(
                f"trace {trace['id']} lists {', '.join(strange)}, which its sample's taxonomy {sample.taxonomy} "
                f"({', '.join(own)}) does not have; give the samples it was collected from, or collect again"
            )
        if not trace["parsed"]:
            skipped += 1
            continue
        target = softmax(np.array(trace["label_scores"]))
        votes = _votes(sample, trace["labels"])
        if votes is not None:
            target = (1.0 - votes_share) * target + votes_share * votes
        rows.append(
            PackedRow(
                image=trace["image"],
                labels=tuple(trace["labels"]),
                mode=trace["mode"],
                reasoning=trace["reasoning"],
                answer=trace["answer"],
                response=render_response(trace["answer"], trace["confidence"], None),
                target=tuple(float(p) for p in target),
            )
        )
    return rows, skipped


def _votes(sample: Sample, labels: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns the votes among these labels as probabilities in their order, or None where there are none."""
    distribution = sample.distribution() if sample.votes is not None else None
    if distribution is None:
        return None
    share = dict(zip(sample.resolve().labels, distribution, strict=True))
    votes = np.array([share[label] for label in labels])
    total = votes.sum()
    return votes / total if total > 0 else None
