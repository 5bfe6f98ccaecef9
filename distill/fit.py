"""Calibrators and conformal thresholds, fitted on the exported graphs themselves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from emocaliber.evaluate.fitting import fit_calibrator
from emocaliber.export.bundle import replace_calibration
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.calibration import Calibrator
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.grammar import MODES, Mode
from emocaliber.runtime.samples import Sample

CHUNK = 32


def calibrate_bundle(bundle: Path, samples: Sequence[Sample], *, fitted_on: str, seed: int = 0) -> list[Calibrator]:
    """Returns the calibrators of a bundle, one per mode and precision, after writing them into it.

    Each is fitted on the scores of its own graphs: quantisation moves scores, and a calibrator fitted elsewhere would
    not know.

    Args:
        bundle: The bundle's folder.
        samples: The calibration split, of one taxonomy, with votes or answers; no training image may be among them.
        fitted_on: What the samples are, in words.
        seed: Of the cross-validation folds.

    Raises:
        InputError: If a sample has neither votes nor an answer, or there are too few.
    """
    targets = []
    for sample in samples:
        distribution = sample.distribution()
        if distribution is None:
            raise InputError(f"calibration sample {sample.id} has neither votes nor an answer")
        targets.append(distribution)
    calibrators = []
    with EmotionModel.load(bundle) as opened:
        precisions = list(opened.manifest.precisions)
    for precision in precisions:
        with EmotionModel.load(bundle, precision=precision) as model:
            calibrators += [_fit(model, samples, np.array(targets), mode, fitted_on, seed) for mode in MODES]
    replace_calibration(bundle, calibrators)
    return calibrators


def _fit(
    model: EmotionModel, samples: Sequence[Sample], targets: np.ndarray, mode: Mode, fitted_on: str, seed: int
) -> Calibrator:
    scores, stated = [], []
    taxonomy = samples[0].resolve()
    title = f"scoring ({mode}, {model.precision})"
    for start in tqdm(range(0, len(samples), CHUNK), desc=title, unit="batch", file=sys.stderr, leave=False):
        images = [sample.image for sample in samples[start : start + CHUNK]]
        part = model.score(images, taxonomy=taxonomy.name, mode=mode)
        scores.append(part.label_scores)
        if part.verbalized is not None:
            stated.append(part.verbalized)
    return fit_calibrator(
        np.concatenate(scores),
        targets,
        labels=taxonomy.labels,
        taxonomy=taxonomy.name,
        mode=mode,
        precision=model.precision,
        engine=model.engine,
        fitted_on=fitted_on,
        verbalized=np.concatenate(stated) if stated else None,
        seed=seed,
    )
