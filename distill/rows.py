"""From traces and votes to the student's training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import render_response
from emocaliber.runtime.samples import Sample

from .packing import PackedRow


def student_rows(
    traces: Iterable[Mapping[str, Any]], samples: Sequence[Sample], *, votes_share: float
) -> tuple[list[PackedRow], int]:
    """Returns the training rows of all traces that parsed, and how many did not.

    The target distribution is ``(1 − w) · teacher + w · votes`` where a sample has votes, else the teacher's own.

    Args:
        traces: Rows of `emocaliber.distill.collect.SCHEMA`.
        samples: The samples they were collected from.
        votes_share: w, in [0, 1].

    Raises:
        InputError: If a trace belongs to none of the samples, or its labels are not the sample's.
    """
    known = {sample.id: sample for sample in samples}
    rows, skipped = [], 0
    for trace in traces:
        sample = known.get(trace["id"])
        if sample is None:
            raise InputError(f"trace {trace['id']} belongs to no sample given; collect the traces again")
        if tuple(trace["labels"]) != sample.resolve().labels:
            raise InputError(f"trace {trace['id']} has labels {trace['labels']}, its sample {sample.resolve().labels}")
        if not trace["parsed"]:
            skipped += 1
            continue
        target = softmax(np.array(trace["label_scores"]))
        votes = sample.distribution() if sample.votes is not None else None
        if votes is not None:
            target = (1.0 - votes_share) * target + votes_share * np.array(votes)
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
