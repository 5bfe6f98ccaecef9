"""Predictions side by side with what people said: read from a file of prediction lines, or made by a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from emocaliber.runtime.errors import ArtifactError, InputError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.samples import Sample

BATCH_SIZE = 16
"""Images a bundle is given at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One sample, and what the model said about it."""

    sample: Sample
    """The image and its labels."""
    prediction: Prediction | None
    """None where there is no answer."""
    error: str | None = None
    """Why there is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionLine:
    """One line of a prediction file: a prediction, or the error that stands in its place."""

    image: str
    """The image as the line names it."""
    prediction: Prediction | None
    """None for an error line."""
    error: str | None = None
    """Message of an error line."""


class Predictor(Protocol):
    """What is asked of a model: `emocaliber.runtime.EmotionModel` has it."""

    def predict_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        taxonomy: str | None = None,
        labels: Sequence[str] | None = None,
        mode: Mode = "direct",
        coverage: float = 0.9,
    ) -> list[Prediction]:
        """Returns one prediction for each image."""
        ...


def read_predictions(path: Path) -> list[PredictionLine]:
    """Returns the lines of a JSON Lines file of predictions, as ``emocaliber batch`` writes them.

    Raises:
        InputError: If the file cannot be read or is empty.
        ArtifactError: If a line is neither a prediction nor an error line; the line number is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read predictions {path}: {error}") from error
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not numbered:
        raise InputError(f"{path} holds no predictions")
    return [_parse(line, f"{path}, line {number}") for number, line in numbered]


def _parse(line: str, where: str) -> PredictionLine:
    try:
        mapping = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(mapping, dict) or not isinstance(mapping.get("image"), str):
        raise ArtifactError(f"{where}: not a prediction line: it names no image")
    if "error" in mapping:
        fault = mapping["error"]
        message = fault.get("message") if isinstance(fault, Mapping) else fault
        return PredictionLine(image=mapping["image"], prediction=None, error=str(message))
    try:
        return PredictionLine(image=mapping["image"], prediction=Prediction.from_dict(mapping))
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error


def match_predictions(
    samples: Sequence[Sample], lines: Sequence[PredictionLine], folders: Sequence[Path]
) -> tuple[list[Outcome], int]:
    """Returns an outcome for every sample, in order, and the number of lines that belong to none of them.

    A line belongs to a sample whose image file is the same and whose taxonomy is the same.

    Args:
        samples: With absolute image paths.
        lines: From `read_predictions`.
        folders: Where relative image paths of the lines may start, the first that leads to a sample counts.

    Raises:
        InputError: If two lines are for the same image and taxonomy, a prediction chooses among other labels than its
            sample, or no line belongs to any sample.
    """
    known = {_key(Path(sample.image)) for sample in samples}
    found: dict[tuple[str, str | None], PredictionLine] = {}
    unused = 0
    wanted = {(_key(Path(sample.image)), _asked(sample)) for sample in samples}
    for line in lines:
        image = _locate(line.image, folders, known)
        taxonomy = None if line.prediction is None else line.prediction.taxonomy
        if image is None or (taxonomy is not None and (image, taxonomy) not in wanted):
            unused += 1
            continue
        if (image, taxonomy) in found:
            raise InputError(f"two predictions for {line.image} ({taxonomy or 'error'}); keep one")
        found[image, taxonomy] = line
    if not found:
        raise InputError(
            f"none of {len(lines)} predictions belongs to one of {len(samples)} samples; "
            "image paths and taxonomy names must be the same in both files"
        )
    return [_outcome(sample, found) for sample in samples], unused


def _outcome(sample: Sample, found: Mapping[tuple[str, str | None], PredictionLine]) -> Outcome:
    image = _key(Path(sample.image))
    line = found.get((image, _asked(sample))) or found.get((image, None))
    if line is None:
        return Outcome(sample=sample, prediction=None, error="no prediction for this sample")
    if line.prediction is not None:
        check_labels(sample, line.prediction)
    return Outcome(sample=sample, prediction=line.prediction, error=line.error)


def check_labels(sample: Sample, prediction: Prediction) -> None:
    """Refuses a prediction over other labels than its sample's.

    Raises:
        InputError: Naming both lists.
    """
    expected, given = sample.resolve().labels, tuple(prediction.distribution)
    if set(expected) != set(given):
        raise InputError(f"{sample.image}: predicted among {', '.join(given)}; the sample has {', '.join(expected)}")


def predict_samples(
    model: Predictor, samples: Iterable[Sample], *, mode: Mode = "direct", coverage: float = 0.9
) -> Iterator[Outcome]:
    """Yields an outcome for every sample, in order, neighbours with the same candidates together in a batch.

    An image that cannot be read becomes an outcome with an error; the others are still predicted.

    Args:
        model: What predicts.
        samples: With absolute image paths.
        mode: Answer at once, or reason first.
        coverage: Of the recorded prediction sets, in (0, 1).
    """
    batch: list[Sample] = []
    for sample in samples:
        if batch and (len(batch) == BATCH_SIZE or _candidates(sample) != _candidates(batch[0])):
            yield from _predict_batch(model, batch, mode, coverage)
            batch = []
        batch.append(sample)
    if batch:
        yield from _predict_batch(model, batch, mode, coverage)


def _predict_batch(model: Predictor, batch: Sequence[Sample], mode: Mode, coverage: float) -> Iterator[Outcome]:
    read = [_read_image(sample.image) for sample in batch]
    images = [image for image in read if not isinstance(image, InputError)]
    labels = batch[0].labels
    taxonomy = None if labels is not None else batch[0].taxonomy
    made = model.predict_batch(images, taxonomy=taxonomy, labels=labels, mode=mode, coverage=coverage) if images else []
    predictions = iter(made)
    for sample, image in zip(batch, read, strict=True):
        if isinstance(image, InputError):
            yield Outcome(sample=sample, prediction=None, error=str(image))
        else:
            yield Outcome(sample=sample, prediction=next(predictions).with_image(sample.image))


def _read_image(path: str) -> NDArray[np.uint8] | InputError:
    try:
        return decode_image(path)
    except InputError as error:
        return error


def _candidates(sample: Sample) -> tuple[str, tuple[str, ...] | None]:
    return sample.taxonomy, sample.labels


def _asked(sample: Sample) -> str:
    """Returns the taxonomy a prediction for this sample names: a list of labels has no name."""
    return sample.taxonomy if sample.labels is None else "custom"


def _locate(image: str, folders: Sequence[Path], known: set[str]) -> str | None:
    places = [Path(image)] if Path(image).is_absolute() else [folder / image for folder in folders]
    return next((key for place in places if (key := _key(place)) in known), None)


def _key(path: Path) -> str:
    return str(path.resolve())
