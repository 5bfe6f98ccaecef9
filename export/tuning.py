"""What each precision of a bundle costs on this machine, and what it does to the probabilities.

Every candidate is quantised from the bundle's float graphs, loaded alone, and asked about the same labelled images one
at a time. Its drift is the mean Kullback-Leibler divergence from the distributions of the fp32 graphs, the calibrator
that the bundle has for fp32 put on both (raw probabilities where it has none): what a calibration does not know of.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from emocaliber.evaluate.bundle_fitting import CalibrationSet
from emocaliber.evaluate.intervals import bootstrap_mean, bootstrap_statistic
from emocaliber.evaluate.metrics import expected_calibration_error, kl_losses
from emocaliber.evaluate.records import Interval
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.engine import EngineName, OnnxEngine
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.manifest import GraphFiles
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.taxonomy import Taxonomy

from .external_data import data_path, graph_bytes
from .quantize import graph_files, needs_ranges, quantize_graphs
from .static_ranges import find_ranges

Floats = NDArray[np.float64]

REFERENCE = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One precision on this machine."""

    precision: str
    """Its name."""
    latency_ms: float
    """Median time of one image, preprocessing included, decoding and the first image not."""
    latency_p90_ms: float
    """Time that nine images in ten take at most."""
    size_bytes: int
    """Its graphs on disk."""
    drift: Interval
    """Mean divergence from fp32, in nats."""
    same_label: float
    """Share of images whose most probable label is that of fp32."""
    kl: Interval
    """Mean divergence of its distributions from the labels', in nats."""
    ece: Interval
    """Expected calibration error of its most probable label."""
    on_front: bool = False
    """Whether no other precision is better or equal in latency, size and drift, and better in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """All precisions that were tried, and the one proposed."""

    trials: tuple[Trial, ...]
    """In the order asked, fp32 first."""
    proposed: str
    """The fastest precision whose drift, its interval's upper end, is within `max_drift`."""
    max_drift: float
    """Drift that was accepted, in nats."""
    taxonomy: str
    """Label set of the images."""
    n: int
    """Number of images."""
    range_images: int = 0
    """Images of the same samples on which the ranges of qdq were found; none of them was measured."""
    calibrated: bool
    """Whether the bundle had a calibrator for fp32."""
    engine: str
    """What ran them."""


def labelled_images(samples: Iterable[Sample], taxonomy: str, limit: int | None = None) -> CalibrationSet:
    """Returns the labelled samples of a taxonomy, the first ``limit`` of them.

    Raises:
        InputError: If there are none, or they have different label sets.
    """
    asked = [sample for sample in samples if sample.taxonomy == taxonomy]
    labelled = [(sample, target) for sample in asked if (target := sample.distribution()) is not None][:limit]
    if len(labelled) < 2:
        raise InputError(
            f"{len(labelled)} labelled samples of {taxonomy}, at least two are needed; choose another --taxonomy, or "
            "give other samples"
        )
    sets = {sample.resolve().labels for sample, _ in labelled}
    if len(sets) > 1:
        raise InputError(f"samples of {taxonomy} have different label sets: {sorted(sets)}")
    return CalibrationSet(
        taxonomy=Taxonomy(name=taxonomy, labels=labelled[0][0].resolve().labels),
        images=tuple(sample.image for sample, _ in labelled),
        targets=np.array([target for _, target in labelled], dtype=np.float64),
    )


def set_apart(given: CalibrationSet) -> tuple[CalibrationSet, CalibrationSet]:
    """Returns the images without every fourth of them, to measure, and those, to find the ranges of qdq on.

    An image that stands several times in a set is on one side.

    Raises:
        InputError: If fewer than two are left to measure.
    """
    fourth = set(given.images[::4])
    apart = np.array([image in fourth for image in given.images])
    if len(apart) - apart.sum() < 2:
        raise InputError(
            f"{len(apart)} labelled images of {given.taxonomy.name}; a fourth is for the ranges of qdq, and at least "
            "two others are to be measured"
        )
    measured, ranging = (
        CalibrationSet(
            taxonomy=given.taxonomy,
            images=tuple(image for image, wanted in zip(given.images, rows, strict=True) if wanted),
            targets=given.targets[rows],
        )
        for rows in (~apart, apart)
    )
    return measured, ranging


def tune(
    folder: Path,
    given: CalibrationSet,
    *,
    precisions: Sequence[str],
    engine: EngineName = "cpu",
    threads: int | None = None,
    max_drift: float,
) -> Tuning:
    """Returns what each precision costs and changes, with a progress bar on standard error.

    Args:
        folder: A bundle's folder, its fp32 graphs in it.
        given: The images. Where ``qdq`` is tried, every fourth is taken to find its ranges on, and not measured.
        precisions: To try beside fp32.
        engine: What runs them.
        threads: Threads an operator may use; None lets the engine choose.
        max_drift: Largest drift of a precision that may be proposed, in nats.

    Raises:
        InputError: If the bundle has no fp32 graphs, or an image cannot be read.
        ConfigError: If there is no such precision.
        BackendError: If the engine does not come up.
    """
    names = tuple(dict.fromkeys((REFERENCE, *precisions)))
    with Bundle.open(folder) as bundle, tempfile.TemporaryDirectory(prefix="emocaliber-tune-") as place:
        if REFERENCE not in bundle.manifest.precisions:
            raise InputError(
                f"bundle {bundle.manifest.name} has no fp32 graphs to compare with; write it with "
                f"'emocaliber export bundle ... --precision fp32 --precision {bundle.manifest.default_precision}'"
            )
        graphs = Path(place)
        _link(bundle.manifest.precisions[REFERENCE], bundle.folder, graphs)
        ranges = None
        if needs_ranges(names):
            given, apart = set_apart(given)
            labels, name = given.taxonomy.labels, given.taxonomy.name
            samples = [Sample(image=image, taxonomy=name, labels=labels) for image in apart.images]
            ranges = find_ranges(bundle, graphs, samples)
        quantize_graphs(graphs, names, ranges=ranges)
        calibrator = bundle.calibrator(given.taxonomy.name, "direct", REFERENCE)
        matching = calibrator is not None and calibrator.labels == given.taxonomy.labels
        found: dict[str, tuple[Floats, Floats]] = {}
        ran_on = ""
        for name in names:
            model = _model(bundle, graphs, name, engine, threads)
            scores, times = _score(model, given)
            ran_on = model.engine
            del model  # one precision's graphs at a time in memory
            found[name] = (calibrator.probabilities(scores) if calibrator and matching else softmax(scores)), times
        trials = [_trial(name, graphs, *found[name], found[REFERENCE][0], given) for name in names]
    return Tuning(
        trials=with_front(trials),
        proposed=proposal(trials, max_drift),
        max_drift=max_drift,
        taxonomy=given.taxonomy.name,
        n=len(given.images),
        range_images=0 if ranges is None else ranges.images,
        calibrated=matching,
        engine=ran_on,
    )


def proposal(trials: Sequence[Trial], max_drift: float) -> str:
    """Returns the fastest precision that surely drifts by no more than ``max_drift`` nats; fp32 never drifts."""
    accepted = [trial for trial in trials if trial.precision == REFERENCE or trial.drift.high <= max_drift]
    return min(accepted, key=lambda trial: (trial.latency_ms, trial.size_bytes)).precision


def with_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Returns the trials, marked where no other is at least as good in latency, size and drift, and better in one."""
    costs = [(trial.latency_ms, trial.size_bytes, trial.drift.estimate) for trial in trials]

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in costs)

    return tuple(replace(trial, on_front=not beaten(cost)) for trial, cost in zip(trials, costs, strict=True))


def _link(files: GraphFiles, source: Path, target: Path) -> None:
    """Makes a bundle's fp32 graphs appear in a folder under the exporter's names, without copying where that works."""
    for given, wanted in zip(files.names(), graph_files(REFERENCE).names(), strict=True):
        for path, name in ((source / given, wanted), (data_path(source / given), data_path(Path(wanted)).name)):
            if not path.is_file():
                continue
            try:
                os.link(path, target / name)
            except OSError:  # another file system
                shutil.copy2(path, target / name)


def _model(bundle: Bundle, graphs: Path, precision: str, engine: EngineName, threads: int | None) -> EmotionModel:
    files = graph_files(precision)
    runner = OnnxEngine(
        vision_encoder=graphs / files.vision_encoder,
        embed_tokens=graphs / files.embed_tokens,
        decoder=graphs / files.decoder,
        shape=bundle.manifest.decoder,
        preprocessing=bundle.manifest.preprocessing,
        engine=engine,
        threads=threads,
    )
    return EmotionModel(bundle, precision=precision, engine=runner)


def _score(model: EmotionModel, given: CalibrationSet) -> tuple[Floats, Floats]:
    """Returns (N, K) scores, and the (N - 1,) times in ms of all images but the first."""
    scores, times = [], []
    title = f"{model.precision} ({model.engine})"
    for path in tqdm(given.images, desc=title, unit="image", file=sys.stderr, leave=False, disable=None):
        rgb = decode_image(path)
        start = time.perf_counter()
        scores.append(model.score([rgb], labels=given.taxonomy.labels).label_scores[0])
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(scores), np.array(times[1:])


def _trial(
    name: str, graphs: Path, probabilities: Floats, times: Floats, reference: Floats, given: CalibrationSet
) -> Trial:
    correct = np.take_along_axis(given.targets, probabilities.argmax(axis=1)[:, None], axis=1)[:, 0]
    confidence = probabilities.max(axis=1)
    ece = bootstrap_statistic(
        lambda rows: expected_calibration_error(confidence[rows], correct[rows]), len(confidence), recentred=True
    )
    assert ece is not None  # defined on any images
    return Trial(
        precision=name,
        latency_ms=float(np.median(times)),
        latency_p90_ms=float(np.quantile(times, 0.9)),
        size_bytes=sum(graph_bytes(graphs / file) for file in graph_files(name).names()),
        drift=bootstrap_mean(kl_losses(reference, probabilities)),
        same_label=float((probabilities.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        kl=bootstrap_mean(kl_losses(given.targets, probabilities)),
        ece=ece,
    )
