"""What ``predict`` and ``batch`` share: the options of a prediction, the loaded model, and one line an image."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emocaliber.runtime.bundle import named_bundle
from emocaliber.runtime.engine import ENGINES
from emocaliber.runtime.errors import EmoCaliberError, InputError, ResponseError
from emocaliber.runtime.grammar import ASKED_MODES, Mode
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.taxonomy import Taxonomy, resolve_taxonomy


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of an image; the fields are keyword arguments of `EmotionModel.predict`.

    Raises:
        InputError: If several reasonings are asked of a mode that writes none.
    """

    taxonomy: str | None
    """Name of the label set; None is the bundle's default where `labels` is None too."""
    labels: tuple[str, ...] | None
    """A caller's own candidates."""
    mode: Mode
    """Whether to answer at once or to reason first."""
    coverage: float
    """Coverage of the prediction set, in (0, 1)."""
    samples: int
    """Number of sampled reasonings whose distributions are averaged (reason mode)."""
    seed: int
    """Seed of the sampling."""
    max_set_size: int | None = None
    """Reason too, where the prediction set of direct mode has more labels than this; None answers in `mode` alone."""

    def __post_init__(self) -> None:
        if self.mode == "direct" and self.samples > 1 and self.max_set_size is None:
            raise InputError(f"direct mode draws no reasonings, so --samples {self.samples} needs --mode reason")

    def about(self, taxonomy: str | None, labels: tuple[str, ...] | None) -> Question:
        """Returns the same question over other candidates."""
        return dataclasses.replace(self, taxonomy=taxonomy, labels=labels)

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of `EmotionModel.predict`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields if self.max_set_size is None else {**fields, "mode": "auto"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An image that gave no prediction, and why."""

    image: str
    """The path the caller gave."""
    error: EmoCaliberError
    """What went wrong with it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON line of the public contract."""
        return {"image": self.image, "error": {"type": type(self.error).__name__, "message": str(self.error)}}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model is loaded, and how: those of `load_model`."""
    parser.add_argument(
        "--bundle",
        type=named_bundle,
        metavar="B",
        help="a bundle folder, .tar or hf://owner/name[@revision] (default: embedded)",
    )
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="what computes (default: auto)")
    parser.add_argument("--precision", metavar="P", help="precision variant of the bundle, such as int8 or fp32")
    parser.add_argument("--threads", metavar="N", type=positive, help="processor threads (default: the engine decides)")


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model is asked, and what."""
    add_model_arguments(parser)
    candidates = parser.add_mutually_exclusive_group()
    candidates.add_argument("--taxonomy", metavar="T", help="name of the label set (default: the bundle's own)")
    candidates.add_argument("--labels", metavar="A,B,C", type=_labels, help="your own labels, separated by commas")
    parser.add_argument(
        "--mode",
        choices=ASKED_MODES,
        default="direct",
        help="answer at once, or reason first, or only where the prediction set is large (default: direct)",
    )
    parser.add_argument(
        "--max-set-size",
        metavar="N",
        type=positive,
        help="auto mode: reason where the prediction set has more labels than this (default: 1)",
    )
    parser.add_argument(
        "--coverage", type=_coverage, default=0.9, help="coverage of the prediction set, between 0 and 1 (default: 0.9)"
    )
    parser.add_argument(
        "--samples", type=positive, default=1, help="reason mode: average over this many reasonings (default: 1)"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the sampled reasonings (default: 0)")


def question_of(arguments: argparse.Namespace) -> Question:
    """Returns the question the command line asks.

    Raises:
        InputError: If options contradict one another.
    """
    auto = arguments.mode == "auto"
    if arguments.max_set_size is not None and not auto:
        raise InputError(f"--max-set-size {arguments.max_set_size} goes with --mode auto, not {arguments.mode}")
    return Question(
        taxonomy=arguments.taxonomy,
        labels=arguments.labels,
        mode="direct" if auto else arguments.mode,
        max_set_size=(arguments.max_set_size or 1) if auto else None,
        coverage=arguments.coverage,
        samples=arguments.samples,
        seed=arguments.seed,
    )


def load_model(arguments: argparse.Namespace) -> EmotionModel:
    """Returns the model the command line names.

    Raises:
        EmoCaliberError: If the bundle, precision or engine cannot be used.
    """
    return EmotionModel.load(**load_arguments(arguments))


def load_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the command line says of the model, as arguments of `EmotionModel.load`."""
    return {name: getattr(arguments, name) for name in ("bundle", "precision", "engine", "threads")}


def candidates_of(model: EmotionModel, question: Question) -> Taxonomy:
    """Returns the label set the question is about; asked before any image is read, so that a bad one is one message.

    Raises:
        InputError: If the taxonomy is unknown or the labels are unusable.
    """
    if question.labels is not None:
        return resolve_taxonomy(labels=question.labels)
    return model.manifest.taxonomy(question.taxonomy)


def predict_path(model: EmotionModel, path: str, question: Question) -> Prediction | Unreadable:
    """Returns the prediction for one file, or what was wrong with this file; other errors concern all and are raised.

    Raises:
        EmoCaliberError: If the model or the question cannot be used.
    """
    started = time.perf_counter()
    try:
        rgb = decode_image(path)
    except InputError as error:
        return Unreadable(image=path, error=error)
    decode_ms = (time.perf_counter() - started) * 1000.0
    try:
        prediction = model.predict(rgb, **question.arguments())
    except ResponseError as error:
        return Unreadable(image=path, error=error)
    timing = prediction.timing_ms
    timing = {**timing, "decode": round(decode_ms, 3), "total": round(timing.get("total", 0.0) + decode_ms, 3)}
    return dataclasses.replace(prediction, image=path, timing_ms=timing)


def json_line(result: Prediction | Unreadable) -> str:
    """Returns the JSON text of one line, ASCII only, so that any console and any file name can carry it."""
    return json.dumps(result.to_dict(), ensure_ascii=True, allow_nan=False)


def _labels(text: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in text.split(","))


def _coverage(text: str) -> float:
    value = _number(text, float)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1, both excluded")
    return value


def positive(text: str) -> int:
    """Returns a number of the command line that has to be a positive integer.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(value)


def _seed(text: str) -> int:
    value = _number(text, int)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; a seed is 0 or larger")
    return int(value)


def _number(text: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of the right kind") from None
