"""From raw scores to predictions: calibration, prediction set, reasoning, and what the calibrator does not cover."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibrator, softmax
from .drift import Drift
from .engine import Floats32
from .errors import ResponseError
from .grammar import ANSWER_CLOSE, ANSWER_OPEN, Mode, parse_response
from .images import ImageSource, decode_image
from .patches import PatchPreprocessing
from .prediction import Prediction
from .preprocessing import Preprocessing
from .scoring import Scored
from .taxonomy import Taxonomy

_SHOWN = 100
"""Most characters of a label list in a message."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tiles:
    """A few images, preprocessed."""

    pixels: Floats32 | Sequence[Floats32]
    """As ``batch`` of the preprocessing returns them: (N, 3, T, T), or N arrays where sizes differ."""
    names: tuple[str | None, ...]
    """Their paths; None for images in memory."""
    decode_ms: tuple[float, ...]
    """Time of decoding each."""
    preprocess_ms: tuple[float, ...]
    """Time of preprocessing each."""

    def at(self, rows: Sequence[int]) -> Tiles:
        """Returns the images of these rows."""
        return Tiles(
            pixels=self.pixels[list(rows)] if isinstance(self.pixels, np.ndarray) else [self.pixels[r] for r in rows],
            names=tuple(self.names[row] for row in rows),
            decode_ms=tuple(self.decode_ms[row] for row in rows),
            preprocess_ms=tuple(self.preprocess_ms[row] for row in rows),
        )


def read_tiles(
    images: Iterable[ImageSource], preprocessing: Preprocessing | PatchPreprocessing, size: int
) -> Iterator[Tiles]:
    """Yields the images preprocessed, in order, ``size`` at a time; the last ones may be fewer.

    Raises:
        InputError: If an image cannot be read.
    """
    source = iter(images)
    while group := list(islice(source, size)):
        pixels, decode_ms, preprocess_ms = [], [], []
        for image in group:
            start = perf_counter()
            rgb = decode_image(image)
            decoded = perf_counter()
            pixels.append(preprocessing.apply(rgb))
            decode_ms.append(1e3 * (decoded - start))
            preprocess_ms.append(1e3 * (perf_counter() - decoded))
        yield Tiles(
            pixels=preprocessing.batch(pixels),
            names=tuple(str(image) if isinstance(image, (str, Path)) else None for image in group),
            decode_ms=tuple(decode_ms),
            preprocess_ms=tuple(preprocess_ms),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """How the scores of one label set in one mode become predictions."""

    taxonomy: Taxonomy
    """The candidates."""
    mode: Mode
    """The mode that made the scores."""
    coverage: float
    """Coverage of the prediction sets, in (0, 1)."""
    calibrator: Calibrator | None
    """The one fitted for just these, or None."""
    out_of_scope: str | None
    """What no calibrator covers, in words; see `Prediction.out_of_scope`."""
    bundle: dict[str, str]
    """The `Prediction.bundle` table."""

    @property
    def verbalize(self) -> bool:
        """Whether the stated confidence is read too."""
        return self.mode == "reason" or (self.calibrator is not None and self.calibrator.needs_verbalized)

    def predictions(self, tiles: Tiles, scored: Scored, *, text_ms: float = 0.0) -> list[Prediction]:
        """Returns the predictions for N images.

        Args:
            tiles: The images.
            scored: Their scores.
            text_ms: What the decoder had spent on each image before these scores.
        """
        probabilities = self._distributions(scored)
        drift = self._drift(scored)
        return [
            self._prediction(row, tiles, scored, probabilities[row], drift[row], text_ms)
            for row in range(len(tiles.names))
        ]

    def _prediction(
        self,
        row: int,
        tiles: Tiles,
        scored: Scored,
        probabilities: NDArray[np.float64],
        drift: Drift | None,
        text_ms: float,
    ) -> Prediction:
        top = int(probabilities.argmax())
        labels = self.taxonomy.labels
        count = len(tiles.names)
        timing = {
            "decode": tiles.decode_ms[row],
            "preprocess": tiles.preprocess_ms[row],
            "vision": scored.vision_ms / count,
            "text": scored.text_ms / count + text_ms,
        }
        timing["total"] = sum(timing.values())
        return Prediction(
            label=labels[top],
            confidence=float(probabilities[top]),
            distribution={label: float(p) for label, p in zip(labels, probabilities, strict=True)},
            mode=self.mode,
            taxonomy=self.taxonomy.name,
            coverage=self.coverage,
            calibrated=self.calibrator is not None,
            bundle=dict(self.bundle),
            timing_ms={step: round(value, 3) for step, value in timing.items()},
            verbalized_confidence=None if scored.verbalized is None else float(scored.verbalized[row]),
            reasoning=_reasoning(scored, row, top, labels),
            image=tiles.names[row],
            conformal=None if self.calibrator is None else self.calibrator.conformal,
            calibrator=None if self.calibrator is None else _described(self.calibrator),
            out_of_scope=self.out_of_scope,
            drift=drift,
        )

    def _distributions(self, scored: Scored) -> NDArray[np.float64]:
        """Returns (N, K) probabilities: calibrated where possible, mean over the reasonings, confidence taken in."""
        if self.calibrator is None:
            plain: NDArray[np.float64] = softmax(scored.label_scores).mean(axis=1)
            return plain
        mean = self.calibrator.probabilities(scored.label_scores).mean(axis=1)
        return self.calibrator.with_confidence(mean, scored.verbalized)

    def _drift(self, scored: Scored) -> Sequence[Drift | None]:
        """Returns where each of N images lies among the calibration images, or N times None if none were recorded."""
        if self.calibrator is None or self.calibrator.drift is None or scored.features is None:
            return [None] * len(scored.label_scores)
        return self.calibrator.drift.of(scored.features)


def scope_note(
    taxonomy: Taxonomy, mode: Mode, made_by: dict[str, str], calibrator: Calibrator | None, known: Iterable[Calibrator]
) -> str | None:
    """Returns what the calibrators of a bundle do not cover in a call, in words; None where one covers all of it.

    Args:
        taxonomy: The candidates that are asked.
        mode: The mode that answers.
        made_by: The `Prediction.bundle` table.
        calibrator: The one that is applied, or None.
        known: All the bundle has.
    """
    name = made_by["name"]
    if calibrator is None:
        scopes: dict[tuple[str, str], list[str]] = {}
        for other in known:
            scopes.setdefault((other.taxonomy, other.precision), []).append(other.mode)
        covered = "; ".join(f"{t} at {p} ({', '.join(sorted(modes))})" for (t, p), modes in scopes.items())
        labels = ", ".join(taxonomy.labels)
        shown = labels if len(labels) <= _SHOWN else labels[: _SHOWN - 1] + "…"
        return (
            f"bundle {name} has no calibrator for {taxonomy.name} ({shown}) in {mode} mode at "
            f"{made_by['precision']}; it is calibrated for {covered or 'nothing'}"
        )
    if _device(calibrator.engine) != _device(made_by["engine"]):
        return (
            f"the calibrator of bundle {name} for {taxonomy.name} ({mode}, {calibrator.precision}) was fitted on "
            f"{calibrator.engine}, these scores are from {made_by['engine']}"
        )
    return None


def _device(engine: str) -> str:
    """Returns ``cpu`` for ``onnxruntime-cpu``: who fitted a calibrator may have named the device alone."""
    return engine.rpartition("-")[2]


def _reasoning(scored: Scored, row: int, top: int, labels: Sequence[str]) -> dict[str, str] | None:
    """Returns the first reasoning that follows the grammar, those that lead to the predicted label first, or None."""
    if scored.texts is None:
        return None
    favoured = scored.label_scores[row].argmax(axis=1) == top
    for _, text in sorted(zip(~favoured, scored.texts[row], strict=True), key=lambda pair: bool(pair[0])):
        response = f"{text}{ANSWER_OPEN}{labels[top]}{ANSWER_CLOSE}"
        try:
            return parse_response(response, labels, "reason", needs_confidence=False).reasoning
        except ResponseError:
            continue
    return None


def _described(calibrator: Calibrator) -> str:
    return f"{calibrator.method} fitted on {calibrator.n} images of {calibrator.fitted_on} ({calibrator.engine})"
