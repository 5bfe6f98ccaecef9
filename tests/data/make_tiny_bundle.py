"""Makes ``tests/data/tiny_bundle``: random weights, valid in everything else.

Run from the repository root: ``PYTHONPATH=.dev:tests python tests/data/make_tiny_bundle.py``
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_model import build_model, build_processor

from emocaliber.export.bundle import BundleSpec, write_bundle
from emocaliber.runtime.calibration import Calibrator
from emocaliber.runtime.confidence import ConfidenceFusion
from emocaliber.runtime.conformal import Conformal
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.taxonomy import TAXONOMIES

TAXONOMY = "emotion6-7"
SPEC = BundleSpec(
    name="tiny-random",
    version="0.0.1",
    license="Apache-2.0",
    taxonomies=(TAXONOMY, "sentiment-2"),
    max_new_tokens=48,
    provenance={
        "summary": "Random weights, never trained, for tests. Its predictions mean nothing.",
        "training_data": "none",
        "limits": ["Everything: the weights are random and the calibrators are made up."],
    },
)


def invented_calibrator(mode: Mode) -> Calibrator:
    """Returns a calibrator with made-up numbers that the tests know."""
    labels = TAXONOMIES[TAXONOMY].labels
    return Calibrator(
        taxonomy=TAXONOMY,
        mode=mode,
        precision="int8",
        engine="cpu",
        labels=labels,
        method="temperature",
        temperature=1.7,
        bias=(0.0,) * len(labels),
        confidence=ConfidenceFusion(intercept=0.1, top=0.8, verbalized=0.2) if mode == "reason" else None,
        conformal=Conformal(method="aps", coverages=(0.8, 0.9, 0.95), thresholds=(0.7, 0.85, 0.93)),
        n=100,
        fitted_on="nothing: made up for tests",
        log_loss=1.9,
        candidates={"temperature": 1.9},
    )


if __name__ == "__main__":
    processor = build_processor()
    folder = Path(__file__).parent / "tiny_bundle"
    calibrators = [invented_calibrator("direct"), invented_calibrator("reason")]
    write_bundle(folder, build_model(processor), processor, SPEC, calibrators=calibrators, overwrite=True)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    sys.stdout.write(f"{folder}: {size_bytes} bytes\n")
