"""Reasoning for a whole samples file, by any writer: resumed exactly after a kill, and recorded.

While it runs, `JOURNAL` holds what was asked and one line for each sample that is done, added a whole chunk at a time.
The results are made from it at the end, the record of their origin last, and then it is deleted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.files import atomic_write, sha256_of
from emocaliber.runtime.grammar import render_reasoning
from emocaliber.runtime.journal import Journal, refuse_other
from emocaliber.runtime.records import from_mapping, to_mapping
from emocaliber.runtime.samples import Sample, read_samples, write_samples

SAMPLES, REJECTED, PROVENANCE, JOURNAL = "samples.jsonl", "rejected.jsonl", "samples.provenance.json", "journal.jsonl"

NO_ANSWER = "the sample has no answer"
UNREADABLE = "the image cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A response that was refused, and why."""

    fault: str
    """Which filter refused it, in words that are the same for every response that it refuses."""
    detail: str
    """What is wrong with this one."""
    response: str
    """What the model wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one sample: reasoning, or the reason why there is none."""

    reasoning: dict[str, str] | None = None
    """Text of each of the five parts."""
    reason: str | None = None
    """Why the sample is rejected, in words that are the same for every sample rejected for it."""
    detail: str | None = None
    """What is wrong with this one."""
    attempts: tuple[Attempt, ...] = ()
    """Responses that were refused on the way."""

    def __post_init__(self) -> None:
        if (self.reasoning is None) == (self.reason is None):
            raise ConfigError("an outcome has either reasoning or a reason")
        if self.reasoning is not None:
            render_reasoning(self.reasoning)


class Writer(Protocol):
    """Writes the reasoning of samples that have an answer."""

    @property
    def chunk(self) -> int:
        """How many samples are handed over at once; after each chunk the progress is saved."""

    def settings(self) -> dict[str, Any]:
        """Returns all that the text depends on, besides the samples, as plain values for the record."""

    def write(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Returns the outcome of each sample, in order.

        Raises:
            BackendError: If a model or an endpoint fails; what was done before stays saved.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build left."""

    samples: Path | None
    """The samples with reasoning; None if every sample was rejected."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was counted, in words: number."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason: number of samples rejected for it."""
    texts: dict[str, float] = field(default_factory=dict)
    """Size of the vocabulary, and mean and largest number of words of a text."""


def build_reasoning(source: Path, folder: Path, writer: Writer, progress: Callable[[int, int], None]) -> Built:
    """Returns what giving reasoning to the samples of ``source`` left in ``folder``.

    Samples that have reasoning keep it. Called again after an interruption it goes on where it stopped, with the same
    result, byte for byte, if the writer is deterministic; called again after the end it does nothing.

    Args:
        source: A samples file.
        folder: Where to write; no other command's results may be in it.
        writer: Makes the reasoning.
        progress: Called with (samples done, samples) after each chunk.

    Raises:
        InputError: If the samples cannot be read.
        ConfigError: If the folder holds something else, or a build of other samples or settings.
        BackendError: If the writer's model fails.
        OSError: If the folder cannot be written.
    """
    samples = read_samples(source)
    _check_ids(samples, source)
    settings = {
        "emocaliber": version("emocaliber"),
        "source": str(source),
        "source_sha256": sha256_of(source),
        **writer.settings(),
    }
    finished = _finished(folder, settings)
    if finished is not None:
        (folder / JOURNAL).unlink(missing_ok=True)
        return finished
    journal = Journal(folder / JOURNAL, settings, chunk=writer.chunk, total=len(samples))
    progress(len(journal.items), len(samples))
    while len(journal.items) < len(samples):
        start = len(journal.items)
        done = _write(writer, samples[start : start + writer.chunk])
        journal.add([_compact(outcome) for outcome in done])
        progress(len(journal.items), len(samples))
    outcomes = [from_mapping(Outcome, item, f"{folder / JOURNAL}") for item in journal.items]
    built = _finish(folder, settings, source, samples, outcomes)
    journal.delete()
    return built


def _check_ids(samples: Sequence[Sample], source: Path) -> None:
    repeated = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    if repeated:
        raise InputError(f"{source}: {len(repeated)} ids stand on several lines, such as {repeated[0]!r}")


def _write(writer: Writer, chunk: Sequence[Sample]) -> list[Outcome]:
    asked = [sample for sample in chunk if sample.reasoning is None and sample.answer is not None]
    written = iter(writer.write(asked) if asked else [])
    outcomes = []
    for sample in chunk:
        if sample.reasoning is not None:
            outcomes.append(Outcome(reasoning=sample.reasoning))
        else:
            outcomes.append(Outcome(reason=NO_ANSWER) if sample.answer is None else next(written))
    return outcomes


def _finished(folder: Path, settings: Mapping[str, Any]) -> Built | None:
    """Returns what a build with these settings left, if it came to its end; refuses what is not such a build's."""
    path = folder / PROVENANCE
    if not path.exists():
        if (folder / SAMPLES).exists() and not (folder / JOURNAL).exists():
            raise ConfigError(f"{folder} holds {SAMPLES} of another command; choose another folder")
        return None
    record = json.loads(path.read_bytes())
    if "settings" not in record:
        raise ConfigError(f"{folder} holds the samples of another command; choose another folder")
    refuse_other(path, record["settings"], settings)
    kept = folder / SAMPLES if "samples_sha256" in record else None
    if kept is not None and (not kept.is_file() or sha256_of(kept) != record["samples_sha256"]):
        raise ConfigError(f"{kept} is not what {path} says; delete {path} to build it again")
    return Built(samples=kept, counts=record["counts"], rejected=record["rejected"], texts=record["texts"])


def _finish(
    folder: Path, settings: Mapping[str, Any], source: Path, samples: Sequence[Sample], outcomes: Sequence[Outcome]
) -> Built:
    """Writes the kept samples, the rejected ones and, last, the record of where they come from."""
    pairs = list(zip(samples, outcomes, strict=True))
    kept = [
        replace(sample, image=_image(sample.image, folder), reasoning=outcome.reasoning)
        for sample, outcome in pairs
        if outcome.reasoning is not None
    ]
    rejected = [(sample, outcome) for sample, outcome in pairs if outcome.reason is not None]
    lines = [{"id": s.id, "image": s.image, "answer": s.answer, **_compact(outcome)} for s, outcome in rejected]
    atomic_write(folder / REJECTED, "".join(map(_line, lines)))
    if kept:
        write_samples(kept, folder / SAMPLES)
    had = sum(sample.reasoning is not None for sample in samples)
    refused = Counter(attempt.fault for outcome in outcomes for attempt in outcome.attempts)
    built = Built(
        samples=folder / SAMPLES if kept else None,
        counts={
            "samples": len(samples), "kept": len(kept), "kept: had reasoning before": had, "rejected": len(rejected),
            **{f"responses refused: {fault}": count for fault, count in sorted(refused.items())},
        },
        rejected=dict(sorted(Counter(str(outcome.reason) for _, outcome in rejected).items())),
        texts=_measure([outcome.reasoning for outcome in outcomes if outcome.reasoning is not None]),
    )  # fmt: skip
    record = {
        "schema_version": 1,
        "settings": settings,
        "counts": built.counts,
        "rejected": built.rejected,
        "texts": built.texts,
        "source_provenance": _provenance_of(source),
        **({"samples_sha256": sha256_of(folder / SAMPLES)} if kept else {}),
        "rejected_sha256": sha256_of(folder / REJECTED),
    }
    atomic_write(folder / PROVENANCE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return built


def _image(image: str, folder: Path) -> str:
    """Returns the path of an image as the samples file in ``folder`` names it."""
    path, root = Path(image), folder.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else image


def _measure(texts: Sequence[Mapping[str, str]]) -> dict[str, float]:
    words = [re.findall(r"[\w'’-]+", " ".join(text.values()).casefold()) for text in texts]
    lengths = [len(text) for text in words]
    if not lengths:
        return {}
    return {
        "vocabulary": len({word for text in words for word in text}),
        "words_mean": round(sum(lengths) / len(lengths), 2),
        "words_max": max(lengths),
    }


def _provenance_of(source: Path) -> object:
    """Returns the record beside the samples that were read, their terms among it, or None."""
    try:
        return json.loads(source.with_suffix(".provenance.json").read_bytes())
    except (OSError, ValueError):
        return None


def _compact(outcome: Outcome) -> dict[str, Any]:
    return {key: value for key, value in to_mapping(outcome).items() if value}


def _line(mapping: Mapping[str, Any]) -> str:
    return json.dumps(mapping, ensure_ascii=False) + "\n"
