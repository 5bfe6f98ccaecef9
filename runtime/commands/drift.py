"""``emocaliber bundle drift``: do these images look like those that a bundle's probabilities were calibrated on?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emocaliber.runtime.bundle import named_bundle
from emocaliber.runtime.cli import EXIT_OK
from emocaliber.runtime.drift import UNUSUAL, Drift, DriftReference, window_p_value
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.samples import read_samples

from .console import write_text
from .inference import Question
from .inputs import Item, find_items

WINDOWS = 1000
"""Random windows by which the rate of alarms is measured."""


def configure(action: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``bundle drift``."""
    action.add_argument("bundle", metavar="B", help="a bundle folder or .tar, or 'default' for the embedded one")
    action.add_argument("input", metavar="INPUT", help="a folder of images, a glob, a .tar, or a samples .jsonl file")
    action.add_argument("--split", help="only samples of this split")
    action.add_argument(
        "--taxonomy", metavar="T", help="whose calibration images to compare with (default: the bundle's)"
    )
    action.add_argument("--precision", metavar="P", help="precision variant of the bundle")
    action.add_argument("--window", type=int, default=50, help="images that are tested together (default: 50)")
    action.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Writes the p-value of all images together, and how many single images and windows raise an alarm.

    Raises:
        InputError: If there are fewer images than a window, or no calibrator with a drift reference.
        EmoCaliberError: If the bundle or an image cannot be used.
    """
    images = _images(arguments.input, arguments.split)
    if not 1 <= arguments.window <= len(images):
        raise InputError(f"{len(images)} images cannot be tested in windows of {arguments.window}; choose --window")
    with EmotionModel.load(named_bundle(arguments.bundle), precision=arguments.precision) as model:
        reference = model.drift_guard(taxonomy=arguments.taxonomy).reference
        drifts: list[Drift] = []
        with tqdm(total=len(images), unit="image", file=sys.stderr, leave=False, disable=None) as progress:
            for item in images:
                drift = model.predict(item.source(), taxonomy=arguments.taxonomy).drift
                assert drift is not None
                drifts.append(drift)
                progress.update()
    found = measure(drifts, reference, arguments.window)
    write_text(json.dumps(found, indent=1) if arguments.json else _text(found))
    return EXIT_OK


def measure(drifts: list[Drift], reference: DriftReference, window: int, seed: int = 0) -> dict[str, Any]:
    """Returns the p-value of all images, and the shares of single images and of random windows at most `UNUSUAL`.

    On images like the calibration images, the shares are the rates of false alarms.

    Args:
        drifts: Of the images.
        reference: By which they were placed.
        window: Images drawn for each of `WINDOWS` windows, without repeats.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    alarms = [
        window_p_value([drifts[i] for i in generator.choice(len(drifts), window, replace=False)], reference) <= UNUSUAL
        for _ in range(WINDOWS)
    ]
    return {
        "images": len(drifts),
        "reference_images": reference.images,
        "p_value": window_p_value(drifts, reference),
        "level": UNUSUAL,
        "unusual_images": float(np.mean([drift.p_value <= UNUSUAL for drift in drifts])),
        "window": window,
        "alarming_windows": float(np.mean(alarms)),
    }


def _images(source: str, split: str | None) -> list[Item]:
    question = Question(taxonomy=None, labels=None, mode="direct", coverage=0.9, samples=1, seed=0)
    if split is None:
        items = find_items([source], question)
    else:
        items = [Item(image=sample.image, question=question) for sample in read_samples(Path(source), split)]
        if not items:
            raise InputError(f"no sample of {source} is of split {split!r}")
    return list({item.image: item for item in items}.values())


def _text(found: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"{found['images']} images against {found['reference_images']} calibration images",
            f"  all together     p = {found['p_value']:.2g}",
            f"  single images    {found['unusual_images']:.1%} at p <= {found['level']}",
            f"  windows of {found['window']:<5} {found['alarming_windows']:.1%} at p <= {found['level']}"
            f" ({WINDOWS} at random)",
        ]
    )
