"""``emocaliber bundle``: look into a bundle, check its files against their hashes, fit its calibrators, publish it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from emocaliber.runtime.bundle import ALL_PRECISIONS, Bundle, named_bundle
from emocaliber.runtime.calibration import Calibrator
from emocaliber.runtime.cli import EXIT_ERROR, EXIT_OK, Command, load_command
from emocaliber.runtime.engine import ENGINES
from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.grammar import MODES
from emocaliber.runtime.hub import push
from emocaliber.runtime.parity import parity_of
from emocaliber.runtime.prepared import prepare
from emocaliber.runtime.records import to_mapping

from . import drift
from .console import write_text
from .proof import proof_lines

FIT = Command("emocaliber.evaluate.fit_command", "evaluate", "fit calibrators on your own labelled images")
"""The action whose work is done by a layer above the runtime."""

PREPARE_HELP = "let the graphs load sooner, and in less memory, on this machine's CPU"
PREPARE_DESCRIPTION = (
    "Keep the graphs as ONNX Runtime rewrites them for this machine's processor, in NAME.onnxruntime beside the "
    "bundle. Every process that loads the bundle from then on finds them there, and is ready sooner; the numbers are "
    "the same. After an update of ONNX Runtime, or on another processor, they are passed over: run this again."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``bundle``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text in (
        ("inspect", "what the bundle is, what it was calibrated on, and how its graphs compare with their model"),
        ("verify", "check every file against its hash"),
    ):
        action = actions.add_parser(name, help=help_text)
        action.add_argument(
            "bundle",
            nargs="?",
            type=named_bundle,
            metavar="B",
            help="a bundle folder, .tar or hf://owner/name (default: the embedded one)",
        )
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")
    push = actions.add_parser("push", help="put a bundle on the Hugging Face hub, with its model card")
    push.add_argument("bundle", metavar="B", help="a bundle folder or .tar")
    push.add_argument("repository", metavar="OWNER/NAME", help="where; made if it does not exist")
    push.add_argument("--public", action="store_true", help="a repository that has to be made is open to everybody")
    _configure_prepare(actions.add_parser("prepare", help=PREPARE_HELP, description=PREPARE_DESCRIPTION))
    drift.configure(actions.add_parser("drift", help="whether images look like those of the calibration"))
    _configure_fit(actions.add_parser("fit-calibrator", help=FIT.help, description=f"{FIT.help.capitalize()}."))


def _configure_prepare(action: argparse.ArgumentParser) -> None:
    action.add_argument("bundle", metavar="B", help="a bundle folder")
    action.add_argument(
        "--precision",
        dest="precisions",
        action="append",
        metavar="P",
        help="precision to prepare; repeatable (default: the bundle's own)",
    )
    action.add_argument("--rebuild", action="store_true", help="make anew what is up to date")


def _configure_fit(action: argparse.ArgumentParser) -> None:
    action.add_argument("bundle", metavar="B", help="a bundle folder or .tar, or 'default' for the embedded one")
    action.add_argument("--data", required=True, type=Path, metavar="SAMPLES.jsonl", help="samples with their labels")
    action.add_argument("--split", help="only samples of this split (default: calibration, where splits are named)")
    action.add_argument(
        "--taxonomy",
        dest="taxonomies",
        action="append",
        default=[],
        metavar="T",
        help="only this label set; repeatable",
    )
    action.add_argument(
        "--mode", choices=(*MODES, "both"), default="direct", help="mode to calibrate (default: direct)"
    )
    action.add_argument("--precision", metavar="P", help="precision to calibrate (default: the bundle's own)")
    action.add_argument("--engine", choices=ENGINES, default="auto", help="what computes (default: auto)")
    place = action.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="BUNDLE2", help="folder to make of it")
    place.add_argument("--replace", action="store_true", help="change the bundle itself, in one step")
    action.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Does what was asked of the bundle; returns 1 if it fails its check."""
    if arguments.action == "fit-calibrator":
        status: int = load_command("bundle fit-calibrator", FIT).run(arguments)
        return status
    if arguments.action == "drift":
        return drift.run(arguments)
    if arguments.action == "push":
        return _push(arguments)
    if arguments.action == "prepare":
        return _prepare(arguments)
    if arguments.action == "verify":
        return _verify(arguments.bundle, as_json=arguments.json)
    with Bundle.open(arguments.bundle, verify=False) as bundle:
        write_text(json.dumps(_summary(bundle), indent=1) if arguments.json else _description(bundle))
    return EXIT_OK


def _verify(path: str | None, *, as_json: bool) -> int:
    shown = path or "embedded"
    try:
        with Bundle.open(path) as bundle:
            manifest = bundle.manifest
    except ArtifactError as error:
        if as_json:
            write_text(json.dumps({"bundle": shown, "ok": False, "error": str(error)}))
        else:
            write_text(f"emocaliber: error: {error}", sys.stderr)
        return EXIT_ERROR
    size_bytes = sum(record.size_bytes for record in manifest.files.values())
    if as_json:
        facts = {
            "name": manifest.name,
            "version": manifest.version,
            "files": len(manifest.files),
            "size_bytes": size_bytes,
        }
        write_text(json.dumps({"bundle": shown, "ok": True, **facts}))
    else:
        write_text(
            f"{manifest.name} {manifest.version}: {len(manifest.files)} files, {size_bytes / 1e6:.1f} MB, "
            "all match their hashes"
        )
    return EXIT_OK


def _push(arguments: argparse.Namespace) -> int:
    with Bundle.open(arguments.bundle) as bundle:
        address = push(bundle, arguments.repository, public=arguments.public)
    write_text(str(address))
    return EXIT_OK


def _prepare(arguments: argparse.Namespace) -> int:
    with Bundle.open(arguments.bundle, precision=ALL_PRECISIONS) as bundle:
        wanted = [bundle.manifest.precision(name) for name in arguments.precisions or [None]]
        for precision in dict.fromkeys(wanted):
            made = prepare(bundle, precision, rebuild=arguments.rebuild)
            state = "up to date" if made.seconds is None else f"prepared in {made.seconds:.1f} s"
            write_text(f"{precision}: {state}, {made.size_bytes:,} bytes: {made.folder}")
    return EXIT_OK


def _summary(bundle: Bundle) -> dict[str, Any]:
    """Returns the manifest, of each calibrator what says where it holds, and the proof, None where there is none."""
    return {
        "folder": str(bundle.folder),
        "source": bundle.source,
        "manifest": to_mapping(bundle.manifest),
        "calibrators": [_scope(calibrator) for calibrator in bundle.calibrators],
        "parity": to_mapping(parity_of(bundle)),
    }


def _scope(calibrator: Calibrator) -> dict[str, Any]:
    keys = ("taxonomy", "mode", "precision", "engine", "method", "n", "fitted_on", "log_loss")
    return {
        **{key: getattr(calibrator, key) for key in keys},
        "confidence": _confidence(calibrator),
        "sets": calibrator.conformal.method,
        "coverages": list(calibrator.conformal.coverages),
        "drift_images": 0 if calibrator.drift is None else calibrator.drift.images,
    }


def _confidence(calibrator: Calibrator) -> str:
    return "none" if calibrator.confidence is None else calibrator.confidence.kind


def _description(bundle: Bundle) -> str:
    manifest = bundle.manifest
    lines = [
        f"{manifest.name} {manifest.version} ({manifest.family}, licence {manifest.license})",
        f"  {bundle.source or bundle.folder}",
    ]
    lines.append("precisions:")
    for name in manifest.precisions:
        default = ", the default" if name == manifest.default_precision else ""
        lines.append(f"  {name}: {manifest.graph_bytes(name) / 1e6:.1f} MB{default}")
    lines.append("taxonomies:")
    for name, labels in manifest.taxonomies.items():
        default = " (default)" if name == manifest.default_taxonomy else ""
        lines.append(f"  {name}{default}: {', '.join(labels)}")
    lines.append("calibrated for:" if bundle.calibrators else "calibrated for: nothing")
    lines += [
        f"  {c.taxonomy}, {c.mode} mode, {c.precision} on {c.engine}: {c.method}, {c.n} images ({c.fitted_on})"
        for c in bundle.calibrators
    ]
    lines += proof_lines(parity_of(bundle), manifest)
    summary = manifest.provenance.get("summary")
    return "\n".join([*lines, *([f"provenance: {summary}"] if isinstance(summary, str) else [])])
