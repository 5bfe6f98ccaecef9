"""``emocaliber bench``: what a prediction costs on this machine, in time and memory."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from emocaliber.runtime.cli import EXIT_OK
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.model import EmotionModel

from .console import write_text
from .inference import add_prediction_arguments, candidates_of, load_model, question_of

PERCENTILES = (50, 90, 99)
_SIDE = 512
"""Pixels of the made-up image."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``bench``."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="images to take in turn (default: a made-up one)")
    add_prediction_arguments(parser)
    parser.add_argument("--repeats", type=int, default=50, help="timed predictions (default: 50)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes the figures, and returns the exit status 0.

    Raises:
        InputError: If an image cannot be read, or the number of repeats is not positive.
        EmoCaliberError: If the bundle, precision or engine cannot be used.
    """
    figures = measure(arguments)
    write_text(json.dumps(figures, indent=1) if arguments.json else _text(figures))
    return EXIT_OK


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns load time, time of the first prediction, percentiles of each stage, and memory, ready for JSON."""
    if arguments.repeats < 1:
        raise InputError(f"--repeats is {arguments.repeats}, expected at least 1")
    images: list[Any] = list(arguments.images) or [_made_up()]
    for image in images:
        decode_image(image)
    started = time.perf_counter()
    with load_model(arguments) as model:
        loaded_ms = 1e3 * (time.perf_counter() - started)
        question = question_of(arguments)
        labels = candidates_of(model, question).labels
        asked: dict[str, Any] = {
            name: getattr(question, name) for name in ("taxonomy", "labels", "mode", "samples", "seed")
        }
        first = model.predict(images[0], **asked)
        first_ms = 1e3 * (time.perf_counter() - started)
        stages = _stages(model, images, asked, arguments.repeats)
        bundle = {**first.bundle, "size_bytes": _size_bytes(model)}
    return {
        "machine": {"processor": _processor(), "system": platform.platform(), "threads": arguments.threads},
        "bundle": bundle,
        "mode": question.mode,
        "labels": len(labels),
        "repeats": arguments.repeats,
        "load_ms": round(loaded_ms, 3),
        "first_prediction_ms": round(first_ms, 3),
        "stages_ms": stages,
        "peak_memory_mib": _peak_memory_mib(),
    }


def _stages(model: EmotionModel, images: list[Any], asked: dict[str, Any], repeats: int) -> dict[str, dict[str, float]]:
    """Returns the percentiles of each stage's time, in ms."""
    rounds = tqdm(range(repeats), desc="predicting", file=sys.stderr, leave=False, disable=None)
    timings = [model.predict(images[turn % len(images)], **asked).timing_ms for turn in rounds]
    return {
        stage: {
            f"p{level}": round(float(np.percentile([timing[stage] for timing in timings], level)), 3)
            for level in PERCENTILES
        }
        for stage in timings[0]
    }


def _made_up() -> NDArray[np.uint8]:
    """Returns a uint8 (512, 512, 3) image of ramps and noise."""
    ramp = np.linspace(0, 200, _SIDE)[:, None, None] * np.array([1.0, 0.6, 0.3])
    noise = np.random.default_rng(0).normal(20, 12, (_SIDE, _SIDE, 3))
    image: NDArray[np.uint8] = np.clip(ramp + noise, 0, 255).astype(np.uint8)
    return image


def _size_bytes(model: EmotionModel) -> int:
    """Returns the size of the graphs in use."""
    names = set(model.manifest.precisions[model.precision].names())
    names |= {f"{name}_data" for name in names}
    return sum(record.size_bytes for name, record in model.manifest.files.items() if name in names)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _peak_memory_mib() -> float | None:
    """Returns the most memory this process has had, or None where the system does not tell."""
    try:
        # getrusage also counts what the process that started this one had.
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return round(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024, 1)
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _text(figures: dict[str, Any]) -> str:
    bundle, machine = figures["bundle"], figures["machine"]
    threads = "as the engine decides" if machine["threads"] is None else machine["threads"]
    memory = "unknown" if figures["peak_memory_mib"] is None else f"{figures['peak_memory_mib']:.0f} MiB"
    lines = [
        f"{bundle['name']} {bundle['version']}, {bundle['precision']}, {bundle['engine']}, "
        f"{bundle['size_bytes'] / 1e6:.1f} MB of graphs",
        f"{machine['processor']}, threads: {threads}",
        f"{figures['mode']} mode, {figures['labels']} labels, {figures['repeats']} predictions",
        "",
        f"loaded after {figures['load_ms']:.0f} ms, first prediction after {figures['first_prediction_ms']:.0f} ms, "
        f"peak memory {memory}",
        "",
        f"{'stage':<12}" + "".join(f"{f'p{level}':>10}" for level in PERCENTILES) + "  ms",
    ]
    for stage, times in figures["stages_ms"].items():
        lines.append(f"{stage:<12}" + "".join(f"{times[f'p{level}']:>10.2f}" for level in PERCENTILES))
    return "\n".join(lines)
