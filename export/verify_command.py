"""``emocaliber export verify``: a bundle against its model, and the proof put into the bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.bundle_recipe import MAX_KL_DRIFT
from emocaliber.runtime.commands.console import write_text
from emocaliber.runtime.commands.proof import proof_lines
from emocaliber.runtime.engine import ENGINES
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.parity import DECODE_STEPS, parity_of
from emocaliber.runtime.preprocessing import Preprocessing
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import read_samples
from emocaliber.runtime.sealing import replace_parity


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``export verify``."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder; its parity.json is replaced")
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL_DIR", help="folder written by transformers")
    parser.add_argument("--data", type=Path, metavar="SAMPLES.jsonl", help="labelled images to compare calibration on")
    parser.add_argument("--split", metavar="S", help="use the samples of this split only")
    parser.add_argument(
        "--limit", type=int, default=200, metavar="N", help="most images of a label set to use (default: 200)"
    )
    parser.add_argument(
        "--steps", type=int, default=DECODE_STEPS, metavar="N", help=f"greedy steps (default: {DECODE_STEPS})"
    )
    parser.add_argument(
        "--engine",
        action="append",
        choices=[name for name in ENGINES if name != "auto"],
        help="runs the graphs beside the CPU, and must come up; repeat for more (default: all that come up)",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Compares, writes ``parity.json``, prints it and returns the exit status 0.

    Raises:
        InputError: If the bundle or the samples cannot be used.
        ExportError: If the graphs do not match the model, or a precision drifts too far; the bundle is then as it was.
        EmoCaliberError: If a named engine does not come up, or the model cannot be loaded.
    """
    from .labelled_parity import labelled_sets
    from .sources import load_source
    from .verify import Tolerances, verify_graphs

    if not arguments.bundle.is_dir():
        raise InputError(f"{arguments.bundle} is no folder; 'export verify' writes into a bundle folder")
    with Bundle.open(arguments.bundle) as bundle:
        manifest, before = bundle.manifest, parity_of(bundle)
    bound = arguments.max_kl_drift
    if bound is None:
        bound = MAX_KL_DRIFT if before is None else before.tolerances.get("kl_drift", MAX_KL_DRIFT)
    sets, source = [], ""
    if arguments.data is not None:
        samples = read_samples(arguments.data, arguments.split)
        sets = labelled_sets(samples, arguments.limit)
        source = f"{arguments.data.name}, {arguments.split} split" if arguments.split else arguments.data.name
    images = manifest.preprocessing
    image_size = images.tile_size if isinstance(images, Preprocessing) else None
    model, processor = load_source(arguments.model, image_size)
    report = verify_graphs(
        model,
        arguments.bundle,
        processor=processor,
        steps=arguments.steps,
        tolerances=Tolerances(kl_drift=bound),
        engines=arguments.engine,
        labelled=sets,
        source=source,
        force=arguments.force,
    )
    replace_parity(arguments.bundle, report)
    text = json.dumps(to_mapping(report), indent=1) if arguments.json else "\n".join(proof_lines(report, manifest))
    write_text(text)
    return 0
