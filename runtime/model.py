"""`EmotionModel`: a bundle, an engine, and the way from a photograph to a calibrated distribution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import TOKENIZER_NAME, Bundle
from .calibration import Calibrator
from .call import Call
from .decoding import GREEDY, Sampling
from .drift import UNUSUAL, DriftGuard
from .engine import Engine, EngineName, Floats32
from .engines import load_engine
from .errors import BackendError, InputError
from .grammar import MODES, AskedMode, Mode
from .images import ImageSource
from .manifest import Manifest
from .prediction import Prediction
from .readout import Readout, Tiles, read_tiles, scope_note
from .scoring import Scorer, Seen
from .streaming import Clock, Final, Provisional, StreamEvent, reason_in_time
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
            bundle: A bundle's folder or ``.tar``, or ``hf://owner/name[@revision]`` (extra ``hub``); None is the one
                that ships in the package.
            precision: A precision of the bundle; None is the bundle's default.
            engine: ``cpu``, ``openvino``, ``cuda`` or ``tensorrt``, which must come up; ``auto`` is CUDA where it
                works, else CPU. ``openvino`` (extra of that name) runs the vision encoder, where precision is ``fp32``,
                ``fp16`` or, to be fast, one such as ``qdq-int8``.
                ``tensorrt`` takes the engines that stand beside the bundle; without any, ONNX Runtime's provider.
            threads: Threads an operator may use; None lets the engine choose.

        Raises:
            InputError: If the precision, the engine or the kind of path is unknown.
            ArtifactError: If the bundle is missing or of another schema version, or what this precision reads of it
                is corrupt; ``emocaliber bundle verify`` reads all of it.
            BackendError: If the named engine does not come up, or the hub cannot be reached.
        """
        opened = Bundle.open(bundle, precision=precision)
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

    @property
    def made_by(self) -> dict[str, str]:
        """What stands in `Prediction.bundle`: which bundle, precision and engine."""
        return {**self.bundle.identity, "precision": self.precision, "engine": self.engine}

    def predict(
        self,
        image: ImageSource,
        *,
        taxonomy: str | None = None,
        labels: Sequence[str] | None = None,
        mode: AskedMode = "direct",
        coverage: float = 0.9,
        max_set_size: int | None = None,
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
            max_set_size=max_set_size,
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
        mode: AskedMode = "direct",
        coverage: float = 0.9,
        max_set_size: int | None = None,
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
            mode: ``direct`` answers at once, ``reason`` writes its reasoning first, ``auto`` answers at once and
                reasons about the images whose prediction set has more labels than ``max_set_size``.
            coverage: How often the prediction set should hold the truth, in (0, 1).
            max_set_size: Only in auto mode; None is 1.
            samples: Reasonings to draw for each image; their distributions are averaged. Not in direct mode.
            temperature: Of the draws; 0 is greedy, None is greedy for one sample and 1 for several.
            top_p: Draw from the fewest tokens whose probabilities sum to this.
            seed: Of the draws.

        Raises:
            InputError: If an image cannot be read, or another argument makes no sense.
            BackendError: If the engine fails, or the model was closed.
        """
        call = Call(
            taxonomy=self._taxonomy(taxonomy, labels),
            mode=mode,
            coverage=coverage,
            max_set_size=max_set_size,
            sampling=Sampling(samples=samples, temperature=temperature, top_p=top_p, seed=seed),
        )
        scorer = self._ready()
        batches = self._tiles(scorer, images, call)
        return [prediction for tiles in batches for prediction in self._answer(scorer, tiles, call)]

    def stream(
        self,
        image: ImageSource,
        *,
        taxonomy: str | None = None,
        labels: Sequence[str] | None = None,
        mode: AskedMode = "reason",
        coverage: float = 0.9,
        max_set_size: int | None = None,
        samples: int = 1,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        budget_ms: float | None = None,
    ) -> Iterator[StreamEvent]:
        """Returns the events of one prediction as they happen: `Provisional`, each `Section`, `Final`.

        Arguments are those of `predict_batch`, and the reasonings are those of `predict`, written one after another.
        Where no reasoning is needed, `Final` is the only event.

        ``budget_ms`` counts from this call on, and while the caller holds an event. When it is spent, `Final` gives the
        distribution of the reasonings that are complete, or else of direct mode, and `Prediction.out_of_time` is True.
        A decoder pass that has begun is finished, and direct mode always answers.

        Raises:
            InputError: If the image cannot be read or another argument makes no sense; from this call, not the events.
            BackendError: If the model was closed; from the events, if the engine fails.
        """
        clock = Clock(budget_ms)
        call = Call(
            taxonomy=self._taxonomy(taxonomy, labels),
            mode=mode,
            coverage=coverage,
            max_set_size=max_set_size,
            sampling=Sampling(samples=samples, temperature=temperature, top_p=top_p, seed=seed),
        )
        scorer = self._ready()
        [tiles] = self._tiles(scorer, [image], call)
        return self._events(scorer, tiles, call, clock)

    def warm_up(
        self, *, taxonomy: str | None = None, labels: Sequence[str] | None = None, mode: AskedMode = "direct"
    ) -> None:
        """Pays now what the first call of this kind costs: reads the constant prompt and runs every graph once.

        Args:
            taxonomy: As in `predict_batch`.
            labels: As in `predict_batch`.
            mode: As in `predict_batch`; ``auto`` warms up both.

        Raises:
            InputError: If the label set or the mode is unknown.
            BackendError: If the engine fails, or the model was closed.
        """
        grey = np.full((64, 64, 3), 128, dtype=np.uint8)
        for each in MODES if mode == "auto" else (mode,):
            self.predict(grey, taxonomy=taxonomy, labels=labels, mode=each)

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
        call = Call(taxonomy=self._taxonomy(taxonomy, labels), mode=mode)
        stated = mode == "reason" if verbalize is None else verbalize
        scorer = self._ready()
        parts = [
            scorer.score(tiles.pixels, call.taxonomy.labels, mode, GREEDY, verbalize=stated)
            for tiles in self._tiles(scorer, images, call)
        ]
        empty = np.zeros((0, len(call.taxonomy)))
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
        """Frees the graphs and what a ``.tar`` was unpacked to; the model cannot be used afterwards.

        Calls that other threads have begun, and streams, come to their end. Closing again does nothing.
        """
        self._scorer = None
        self.bundle.close()

    def __enter__(self) -> EmotionModel:
        self._ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._scorer is None else ""
        return f"<EmotionModel {self.manifest.name} {self.manifest.version}, {self.precision}, {self.engine}{state}>"

    def _ready(self) -> Scorer:
        if self._scorer is None:
            raise BackendError("this model was closed; load it again")
        return self._scorer

    def _taxonomy(self, name: str | None, labels: Sequence[str] | None) -> Taxonomy:
        if isinstance(labels, str):
            raise InputError(f"labels must be a list of strings, got {labels!r}")
        return self.manifest.taxonomy(name) if labels is None else resolve_taxonomy(name, labels)

    def _tiles(self, scorer: Scorer, images: Iterable[ImageSource], call: Call) -> Iterator[Tiles]:
        """Returns the images preprocessed, as many at a time as one pass should take."""
        if isinstance(images, (str, bytes, Path)):
            raise InputError("give a list of images; for a single image use predict")
        size = scorer.batch_size(call.taxonomy.labels, call.longest_mode, call.sampling.samples)
        return read_tiles(images, self.manifest.preprocessing, size)

    def _answer(self, scorer: Scorer, tiles: Tiles, call: Call) -> list[Prediction]:
        """Returns the predictions for a few images: in direct mode, in reason mode, or in both where that is needed."""
        seen = scorer.see(tiles.pixels)
        if call.mode == "reason":
            return self._read(scorer, tiles, seen, call, "reason")
        answers = self._read(scorer, tiles, seen, call, "direct")
        rows = [row for row, answer in enumerate(answers) if call.needs_reasoning(answer)]
        if rows:
            spent = answers[0].timing_ms["text"]
            reasoned = self._read(scorer, tiles.at(rows), seen.at(rows), call, "reason", text_ms=spent)
            for row, prediction in zip(rows, reasoned, strict=True):
                answers[row] = prediction
        return answers

    def _events(self, scorer: Scorer, tiles: Tiles, call: Call, clock: Clock) -> Iterator[StreamEvent]:
        seen = scorer.see(tiles.pixels)
        [first] = self._read(scorer, tiles, seen, call, "direct")
        if not call.needs_reasoning(first):
            yield Final(prediction=first)
            return
        yield Provisional(prediction=first)
        yield from reason_in_time(scorer, tiles, seen, self._readout(call, "reason"), call.sampling, first, clock)

    def _read(
        self, scorer: Scorer, tiles: Tiles, seen: Seen, call: Call, mode: Mode, *, text_ms: float = 0.0
    ) -> list[Prediction]:
        """Returns the predictions for images that were seen, in one mode."""
        readout = self._readout(call, mode)
        scored = scorer.score_seen(seen, call.taxonomy.labels, mode, call.sampling, verbalize=readout.verbalize)
        return readout.predictions(tiles, scored, text_ms=text_ms)

    def _readout(self, call: Call, mode: Mode) -> Readout:
        calibrator = self.calibrator(call.taxonomy, mode)
        made_by = self.made_by
        return Readout(
            taxonomy=call.taxonomy,
            mode=mode,
            coverage=call.coverage,
            calibrator=calibrator,
            out_of_scope=scope_note(call.taxonomy, mode, made_by, calibrator, self.bundle.calibrators),
            bundle=made_by,
        )


def _present(parts: Iterable[NDArray[Any] | None]) -> list[NDArray[Any]]:
    return [part for part in parts if part is not None]
