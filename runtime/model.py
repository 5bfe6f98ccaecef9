"""`EmotionModel`: a bundle, an engine, and the way from a photograph to a calibrated distribution."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import TOKENIZER_NAME, Bundle
from .calibration import Calibrator, softmax
from .decoding import GREEDY, Sampling
from .drift import UNUSUAL, Drift, DriftGuard
from .engine import Engine, EngineName, Floats32
from .engines import load_engine
from .errors import BackendError, InputError, ResponseError
from .grammar import ANSWER_CLOSE, ANSWER_OPEN, MODES, Mode, parse_response
from .images import ImageSource, decode_image
from .manifest import Manifest
from .prediction import Prediction
from .scoring import Scored, Scorer
from .taxonomy import CUSTOM, TAXONOMIES, Taxonomy, resolve_taxonomy
from .tokenization import PromptTokenizer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Raw scores of N images, before any calibration."""

    label_scores: NDArray[np.float64]
    """(N, K) log-likelihoods of the labels, in nats."""
    verbalized: NDArray[np.float64] | None
    """(N,) confidence in (0, 1) stated for the label with the highest score; None if not asked."""
    texts: list[str] | None
    """N reasonings as written, up to ``</think>``; None in direct mode."""
    features: Floats32
    """(N, hidden) what the vision encoder made of each image, mean over its positions."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chunk:
    """A few preprocessed images."""

    names: list[str | None]
    pixels: Floats32 | Sequence[Floats32]
    decode_ms: list[float]
    preprocess_ms: list[float]


class EmotionModel:
    """Predicts the emotion an image evokes. Make one with `EmotionModel.load`; it may serve several threads."""

    def __init__(self, bundle: Bundle, *, precision: str, engine: Engine) -> None:
        self.bundle = bundle
        self.precision = precision
        self.engine = engine.name
        self._scorer: Scorer | None = Scorer(bundle.manifest, PromptTokenizer(bundle.path(TOKENIZER_NAME)), engine)

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        precision: str | None = None,
        engine: EngineName = "auto",
        threads: int | None = None,
    ) -> EmotionModel:
        """Returns a model ready to predict.

        Args:
            bundle: A bundle's folder or ``.tar``; None is the one that ships in the package.
            precision: A precision of the bundle; None is the bundle's default.
            engine: ``cpu``, ``cuda`` or ``tensorrt``, which must come up; ``auto`` is CUDA where it works, else CPU.
                ``tensorrt`` takes the engines that stand beside the bundle; without any, ONNX Runtime's provider.
            threads: Threads an operator may use; None lets the engine choose.

        Raises:
            InputError: If the precision, the engine or the kind of path is unknown.
            ArtifactError: If the bundle is missing, corrupt or of another schema version.
            BackendError: If the named engine does not come up.
        """
        opened = Bundle.open(bundle)
        try:
            chosen = opened.manifest.precision(precision)
            runner = load_engine(opened, chosen, engine, threads=threads)
            return cls(opened, precision=chosen, engine=runner)
        except BaseException:
            opened.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    def predict(
        self,
        image: ImageSource,
        *,
        taxonomy: str | None = None,
        labels: Sequence[str] | None = None,
        mode: Mode = "direct",
        coverage: float = 0.9,
        samples: int = 1,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Prediction:
        """Returns the prediction for one image; arguments and errors as in `predict_batch`."""
        [prediction] = self.predict_batch(
            [image],
            taxonomy=taxonomy,
            labels=labels,
            mode=mode,
            coverage=coverage,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return prediction

    def predict_batch(
        self,
        images: Iterable[ImageSource],
        *,
        taxonomy: str | None = None,
        labels: Sequence[str] | None = None,
        mode: Mode = "direct",
        coverage: float = 0.9,
        samples: int = 1,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Prediction]:
        """Returns the predictions for several images, in order; what an image gets does not depend on the others.

        Args:
            images: Paths, encoded bytes, Pillow images, or uint8 (H, W, 3) RGB arrays.
            taxonomy: Name of a label set; None, without ``labels``, is the bundle's default.
            labels: The caller's own candidates; calibrated only where the bundle was fitted for just these, in order.
            mode: ``direct`` answers at once, ``reason`` writes its reasoning first.
            coverage: How often the prediction set should hold the truth, in (0, 1).
            samples: Reasonings to draw for each image; their distributions are averaged. Only in reason mode.
            temperature: Of the draws; 0 is greedy, None is greedy for one sample and 1 for several.
            top_p: Draw from the fewest tokens whose probabilities sum to this.
            seed: Of the draws.

        Raises:
            InputError: If an image cannot be read, or another argument makes no sense.
            BackendError: If the engine fails, or the model was closed.
        """
        asked = self._taxonomy(taxonomy, labels)
        sampling = Sampling(samples=samples, temperature=temperature, top_p=top_p, seed=seed)
        _check_call(images, mode, coverage, sampling)
        calibrator = self.calibrator(asked, mode)
        verbalize = mode == "reason" or (calibrator is not None and calibrator.needs_verbalized)
        predictions: list[Prediction] = []
        for chunk in self._chunks(images, asked, mode, sampling):
            scored = self._ready().score(chunk.pixels, asked.labels, mode, sampling, verbalize=verbalize)
            distributions = _distributions(scored, calibrator)
            drift = _drift(scored, calibrator)
            predictions += [
                self._prediction(row, chunk, scored, distributions[row], asked, mode, coverage, calibrator, drift[row])
                for row in range(len(chunk.names))
            ]
        return predictions

    def score(
        self,
        images: Iterable[ImageSource],
        *,
        taxonomy: str | None = None,
        labels: Sequence[str] | None = None,
        mode: Mode = "direct",
        verbalize: bool | None = None,
    ) -> Scores:
        """Returns the raw scores of several images, reasoning greedily in reason mode: what calibrators are fitted on.

        Args:
            images: As in `predict_batch`.
            taxonomy: As in `predict_batch`.
            labels: As in `predict_batch`.
            mode: As in `predict_batch`.
            verbalize: Whether to read the stated confidences too; None is yes in reason mode only.

        Raises:
            InputError: If an image cannot be read, or another argument makes no sense.
            BackendError: If the engine fails, or the model was closed.
        """
        asked = self._taxonomy(taxonomy, labels)
        _check_call(images, mode, 0.9, GREEDY)
        stated = mode == "reason" if verbalize is None else verbalize
        parts = [
            self._ready().score(chunk.pixels, asked.labels, mode, GREEDY, verbalize=stated)
            for chunk in self._chunks(images, asked, mode, GREEDY)
        ]
        empty = np.zeros((0, len(asked)))
        return Scores(
            label_scores=np.concatenate([empty, *(part.label_scores[:, 0] for part in parts)]),
            verbalized=np.concatenate([empty[:, 0], *_present(part.verbalized for part in parts)]) if stated else None,
            texts=[texts[0] for part in parts for texts in part.texts or ()] if mode == "reason" else None,
            features=np.concatenate(
                [
                    np.zeros((0, self.manifest.decoder.hidden_size), np.float32),
                    *_present(part.features for part in parts),
                ]
            ),
        )

    def calibrator(self, taxonomy: Taxonomy, mode: Mode) -> Calibrator | None:
        """Returns the calibrator for this label set and mode at the model's precision, or None.

        A caller's own labels, which have no name, find the calibrator that was fitted for just these labels under a
        name that is not one of `TAXONOMIES`: those have to be asked for by name.
        """
        if taxonomy.name == CUSTOM:
            wanted = (taxonomy.labels, mode, self.precision)
            own = (c for c in self.bundle.calibrators if c.taxonomy not in TAXONOMIES)
            return next((c for c in own if (c.labels, c.mode, c.precision) == wanted), None)
        found = self.bundle.calibrator(taxonomy.name, mode, self.precision)
        return found if found is not None and found.labels == taxonomy.labels else None

    def drift_guard(
        self,
        *,
        taxonomy: str | None = None,
        labels: Sequence[str] | None = None,
        mode: Mode = "direct",
        window: int = 50,
        false_alarm_rate: float = UNUSUAL,
    ) -> DriftGuard:
        """Returns a guard for a stream of images; give it `Prediction.drift` of each.

        Args:
            taxonomy: As in `predict_batch`.
            labels: As in `predict_batch`.
            mode: As in `predict_batch`.
            window: Number of last images that are tested together.
            false_alarm_rate: Share of windows of images like the calibration images that raise an alarm.

        Raises:
            InputError: If there is no calibrator for these, or it did not record its images.
        """
        asked = self._taxonomy(taxonomy, labels)
        calibrator = self.calibrator(asked, mode)
        if calibrator is None or calibrator.drift is None:
            missing = "has no calibrator" if calibrator is None else "recorded no calibration images"
            raise InputError(
                f"bundle {self.manifest.name} {missing} for {asked.name}, {mode} mode, {self.precision}; "
                "fit one with 'emocaliber bundle fit-calibrator'"
            )
        return DriftGuard(calibrator.drift, window=window, false_alarm_rate=false_alarm_rate)

    def close(self) -> None:
        """Frees the graphs and what a ``.tar`` was unpacked to; the model cannot be used afterwards."""
        self._scorer = None
        self.bundle.close()

    def __enter__(self) -> EmotionModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self) -> Scorer:
        if self._scorer is None:
            raise BackendError("this model was closed; load it again")
        return self._scorer

    def _taxonomy(self, name: str | None, labels: Sequence[str] | None) -> Taxonomy:
        if isinstance(labels, str):
            raise InputError(f"labels must be a list of strings, got {labels!r}")
        return self.manifest.taxonomy(name) if labels is None else resolve_taxonomy(name, labels)

    def _chunks(
        self, images: Iterable[ImageSource], taxonomy: Taxonomy, mode: Mode, sampling: Sampling
    ) -> Iterator[_Chunk]:
        """Yields the images preprocessed, as many at a time as one pass should take."""
        size = self._ready().batch_size(taxonomy.labels, mode, sampling.samples)
        source = iter(images)
        while group := list(islice(source, size)):
            tiles, decode_ms, preprocess_ms = [], [], []
            for image in group:
                start = time.perf_counter()
                rgb = decode_image(image)
                decoded = time.perf_counter()
                tiles.append(self.manifest.preprocessing.apply(rgb))
                decode_ms.append(1e3 * (decoded - start))
                preprocess_ms.append(1e3 * (time.perf_counter() - decoded))
            names = [str(image) if isinstance(image, (str, Path)) else None for image in group]
            pixels = self.manifest.preprocessing.batch(tiles)
            yield _Chunk(names=names, pixels=pixels, decode_ms=decode_ms, preprocess_ms=preprocess_ms)

    def _prediction(
        self,
        row: int,
        chunk: _Chunk,
        scored: Scored,
        probabilities: NDArray[np.float64],
        taxonomy: Taxonomy,
        mode: Mode,
        coverage: float,
        calibrator: Calibrator | None,
        drift: Drift | None,
    ) -> Prediction:
        top = int(probabilities.argmax())
        count = len(chunk.names)
        timing = {
            "decode": chunk.decode_ms[row],
            "preprocess": chunk.preprocess_ms[row],
            "vision": scored.vision_ms / count,
            "text": scored.text_ms / count,
        }
        timing["total"] = sum(timing.values())
        bundle = {"name": self.manifest.name, "version": self.manifest.version}
        return Prediction(
            label=taxonomy.labels[top],
            confidence=float(probabilities[top]),
            distribution={label: float(p) for label, p in zip(taxonomy.labels, probabilities, strict=True)},
            mode=mode,
            taxonomy=taxonomy.name,
            coverage=coverage,
            calibrated=calibrator is not None,
            bundle={**bundle, "precision": self.precision, "engine": self.engine},
            timing_ms={step: round(value, 3) for step, value in timing.items()},
            verbalized_confidence=None if scored.verbalized is None else float(scored.verbalized[row]),
            reasoning=_reasoning(scored, row, top, taxonomy.labels),
            image=chunk.names[row],
            conformal=None if calibrator is None else calibrator.conformal,
            calibrator=None if calibrator is None else _described(calibrator),
            drift=drift,
        )


def _check_call(images: object, mode: Mode, coverage: float, sampling: Sampling) -> None:
    if isinstance(images, (str, bytes, Path)):
        raise InputError("give a list of images; for a single image use predict")
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    if not 0.0 < coverage < 1.0:
        raise InputError(f"coverage is {coverage!r}, expected a number between 0 and 1, both excluded")
    if mode == "direct" and sampling.samples > 1:
        raise InputError(f"direct mode draws nothing, so {sampling.samples} samples make no sense; use mode 'reason'")


def _distributions(scored: Scored, calibrator: Calibrator | None) -> NDArray[np.float64]:
    """Returns (N, K) probabilities: calibrated where possible, averaged over reasonings, confidence taken in."""
    each = softmax(scored.label_scores) if calibrator is None else calibrator.probabilities(scored.label_scores)
    mean: NDArray[np.float64] = each.mean(axis=1)
    return mean if calibrator is None else calibrator.with_confidence(mean, scored.verbalized)


def _drift(scored: Scored, calibrator: Calibrator | None) -> Sequence[Drift | None]:
    """Returns where each of N images lies among the calibration images, or N times None where none were recorded."""
    if calibrator is None or calibrator.drift is None or scored.features is None:
        return [None] * len(scored.label_scores)
    return calibrator.drift.of(scored.features)


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


def _present(parts: Iterable[NDArray[Any] | None]) -> list[NDArray[Any]]:
    return [part for part in parts if part is not None]
