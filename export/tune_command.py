"""``emocaliber export tune``: which precision to ship to this machine."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.engine import ENGINES, EngineName
from emocaliber.runtime.engines import taken
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import read_samples

if TYPE_CHECKING:
    from .tuning import Tuning

CANDIDATES = ("fp32", "fp16", "int8", "int4", "int8-int4", "fp32-int8")
"""Precisions that are tried where none is named, as far as the engine takes them."""
MAX_DRIFT = 0.01
"""Nats by which a proposed precision may drift where nothing else is said."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``export tune``."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder with fp32 graphs in it")
    parser.add_argument("--data", type=Path, required=True, metavar="SAMPLES.jsonl", help="labelled images")
    parser.add_argument("--split", metavar="S", help="use the samples of this split only")
    parser.add_argument("--taxonomy", metavar="T", help="label set to measure (default: the bundle's own)")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="most images to use (default: 200)")
    parser.add_argument(
        "--precision", action="append", metavar="P", help=f"to try; repeat for more (default: {', '.join(CANDIDATES)})"
    )
    parser.add_argument("--engine", choices=ENGINES, default="cpu", help="what computes (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: the engine decides)")
    parser.add_argument(
        "--max-drift", type=float, default=MAX_DRIFT, metavar="NATS", help=f"to accept (default: {MAX_DRIFT})"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw latency against drift")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes the table and the plot, and returns the exit status 0.

    Raises:
        InputError: If the samples or the bundle cannot be used.
        EmoCaliberError: If an engine does not come up, or a graph cannot be quantised.
    """
    from .tuning import labelled_images, tune
    from .tuning_chart import tuning_svg

    with Bundle.open(arguments.bundle, verify=False) as bundle:
        taxonomy = arguments.taxonomy or bundle.manifest.default_taxonomy
    samples = [s for s in read_samples(arguments.data) if arguments.split in (None, s.split)]
    tuning = tune(
        arguments.bundle,
        labelled_images(samples, taxonomy, arguments.limit),
        precisions=arguments.precision or _candidates(arguments.engine),
        engine=arguments.engine,
        threads=arguments.threads,
        max_drift=arguments.max_drift,
    )
    if arguments.plot:
        atomic_write(arguments.plot, tuning_svg(tuning))
    sys.stdout.write(json.dumps(to_mapping(tuning), indent=1) + "\n" if arguments.json else table(tuning))
    return 0


def _candidates(engine: EngineName) -> tuple[str, ...]:
    """Returns what to try on an engine: on OpenVINO its quickest too, which needs images apart."""
    return CANDIDATES if engine != "openvino" else (*taken(CANDIDATES, engine), "qdq-int8")


def table(tuning: Tuning) -> str:
    """Returns the trials as text, one line each; a star marks the Pareto front, an arrow what is proposed."""
    kind = "calibrated as fp32" if tuning.calibrated else "raw probabilities"
    apart = f"; ranges of qdq found on {tuning.range_images} others" if tuning.range_images else ""
    lines = [
        f"{tuning.n} images of {tuning.taxonomy}, {tuning.engine}, {kind}; in brackets 95 % intervals{apart}",
        f"{'':2}{'precision':<12}{'ms':>9}{'p90 ms':>9}{'MB':>9}  {'drift, nats':<26}{'same label':>10}  {'ECE':<22}",
    ]
    for trial in tuning.trials:
        mark = ">" if trial.precision == tuning.proposed else " "
        drift, ece = trial.drift, trial.ece
        lines.append(
            f"{mark}{'*' if trial.on_front else ' '}{trial.precision:<12}{trial.latency_ms:>9.2f}"
            f"{trial.latency_p90_ms:>9.2f}{trial.size_bytes / 1e6:>9.2f}  "
            f"{f'{drift.estimate:.5f} ({drift.low:.5f}-{drift.high:.5f})':<26}{trial.same_label:>10.1%}  "
            f"{f'{ece.estimate:.3f} ({ece.low:.3f}-{ece.high:.3f})':<22}"
        )
    lines.append(f"proposed: {tuning.proposed}, the fastest that drifts by at most {tuning.max_drift:g} nat")
    return "\n".join(line.rstrip() for line in lines) + "\n"
