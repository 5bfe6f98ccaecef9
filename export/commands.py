"""``emocaliber export onnx|bundle|verify|tune|transformers-js|tensorrt``.

What needs torch is imported by the subcommands that need it: engines are built on devices that have none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emocaliber.runtime.bundle import Bundle, named_bundle
from emocaliber.runtime.bundle_recipe import MAX_KL_DRIFT, BundleRecipe
from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.files import staged
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import from_mapping, to_mapping
from emocaliber.runtime.samples import Sample, read_samples
from emocaliber.runtime.sealing import check_free

from . import engine_command, tune_command, verify_command

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from .bundle import BundleSpec
    from .fusion import Fusions

DEFAULT_TAXONOMY = "emotion6-7"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    onnx = actions.add_parser("onnx", help="write the three ONNX graphs of a model, float32 and in fewer bits")
    onnx.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder written by transformers")
    onnx.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    onnx.add_argument("--opset", type=int, default=20, help="ONNX operator set, 18 to 21 (default 20)")
    onnx.add_argument(
        "--precision", action="append", metavar="P", help="beside fp32, as of 'export bundle' but qdq (default: int8)"
    )
    onnx.add_argument("--overwrite", action="store_true", help="replace graphs that stand there")
    onnx.set_defaults(action_run=_run_onnx)

    bundle = actions.add_parser("bundle", help="write a bundle: graphs, their proof, tokenizer, prompts, model card")
    bundle.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder written by transformers")
    bundle.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    bundle.add_argument("--name", help="name of the model (default: from the recipe, else the folder's)")
    bundle.add_argument(
        "--model-version", metavar="V", help="version of the model (default: from the recipe, else 0.1.0)"
    )
    bundle.add_argument("--license", metavar="SPDX", help="licence of the weights (default: from the recipe)")
    bundle.add_argument(
        "--taxonomy", action="append", metavar="T", help="label set the model was trained for; repeat for more"
    )
    bundle.add_argument("--recipe", type=Path, metavar="FILE.toml", help="its prompt, taxonomies and bundle are used")
    bundle.add_argument("--provenance", type=Path, metavar="FILE.json", help="what the model was made from")
    bundle.add_argument(
        "--precision",
        action="append",
        metavar="P",
        help="variant to ship: fp32, fp16, int8, int4, qdq, or two for vision encoder and decoder, such as int8-int4; "
        "repeat for more, the last is the default (default: from the recipe, else fp32 and int8)",
    )
    bundle.add_argument(
        "--calibration-samples",
        type=Path,
        metavar="SAMPLES.jsonl",
        help="images on which the scales of qdq are found: a few of the calibration split",
    )
    bundle.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the square images it is to see, smaller than those it was trained on: sooner, and less sure "
        "(Idefics3, SmolVLM; default: its own)",
    )
    _add_drift(bundle, f"from the recipe, else {MAX_KL_DRIFT}")
    bundle.add_argument("--overwrite", action="store_true", help="replace a bundle that stands there")
    bundle.set_defaults(action_run=_run_bundle)

    verify = actions.add_parser(
        "verify", help="compare a bundle's graphs with the model they came from, and write its parity.json"
    )
    verify_command.configure(verify)
    _add_drift(verify, f"what the bundle was written with, else {MAX_KL_DRIFT}")
    verify.set_defaults(action_run=verify_command.run)

    tune = actions.add_parser("tune", help="measure every precision on this machine, and propose one")
    tune_command.configure(tune)
    tune.set_defaults(action_run=tune_command.run)

    javascript = actions.add_parser("transformers-js", help="write a bundle as a folder that transformers.js loads")
    javascript.add_argument("bundle", metavar="BUNDLE", help="bundle folder, .tar, or 'default' for the embedded one")
    javascript.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    javascript.add_argument("--overwrite", action="store_true", help="replace such a folder that stands there")
    javascript.set_defaults(action_run=_run_transformers_js)

    engines = actions.add_parser("tensorrt", help="build TensorRT engines of a bundle, on the device that runs them")
    engine_command.configure(engines)


def _add_drift(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--max-kl-drift",
        type=float,
        metavar="NATS",
        help=f"refuse a precision whose probabilities drift further from the model's (default: {default})",
    )
    parser.add_argument("--force", action="store_true", help="accept it all the same; parity.json then says so")


def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen subcommand and returns the exit status."""
    action: Callable[[argparse.Namespace], int] = arguments.action_run
    return action(arguments)


def _run_onnx(arguments: argparse.Namespace) -> int:
    from .graphs import VISION, export_graphs
    from .quantize import NO_IMAGES, needs_ranges, quantize_graphs
    from .sources import load_source

    precisions = arguments.precision or ["int8"]
    if needs_ranges(precisions):
        raise ConfigError(NO_IMAGES)
    check_free(arguments.out, overwrite=arguments.overwrite, mark=f"{VISION}.onnx")
    model, _ = load_source(arguments.model)
    with staged(arguments.out) as folder:
        export_graphs(model, folder, opset=arguments.opset)
        report = quantize_graphs(folder, precisions)
    for name, graph in report.graphs.items():
        kept = ", ".join(f"{count} {kind}" for kind, count in graph.float_nodes.items()) or "none"
        sys.stdout.write(
            f"{name}: {graph.bytes_after:,} bytes ({graph.bytes_before:,} in fp32); {graph.quantized} weights in fewer "
            f"bits, kept in float: {kept}{_fused(graph.fusions)}\n"
        )
    return 0


def _fused(fusions: Fusions | None) -> str:
    counts = {} if fusions is None else to_mapping(fusions)
    found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"; fused: {found}" if found else ""


def _run_bundle(arguments: argparse.Namespace) -> int:
    from .bundle import write_bundle
    from .sources import load_source

    spec = _spec(arguments)
    check_free(arguments.out, overwrite=arguments.overwrite)
    samples = _calibration_samples(arguments.calibration_samples) if arguments.calibration_samples else ()
    model, processor = load_source(arguments.model, arguments.image_size)
    write_bundle(
        arguments.out,
        model,
        processor,
        spec,
        calibration_samples=samples,
        force=arguments.force,
        overwrite=arguments.overwrite,
    )
    size_bytes = sum(path.stat().st_size for path in arguments.out.iterdir())
    sys.stdout.write(f"{arguments.out}: {spec.name} {spec.version}, {size_bytes:,} bytes, verified\n")
    return 0


def _calibration_samples(path: Path) -> list[Sample]:
    """Returns the samples of a file's calibration split, and those of no split.

    Raises:
        InputError: If the file cannot be read, or has none of them.
    """
    from emocaliber.evaluate.bundle_fitting import CALIBRATION_SPLIT

    samples = [sample for sample in read_samples(path) if sample.split in (CALIBRATION_SPLIT, None)]
    if not samples:
        raise InputError(f"no sample of {path} is of split {CALIBRATION_SPLIT!r}, or of none")
    return samples


def _run_transformers_js(arguments: argparse.Namespace) -> int:
    from .transformers_js import PROMPTS_NAME, write_transformers_js

    check_free(arguments.out, overwrite=arguments.overwrite, mark=PROMPTS_NAME)
    with Bundle.open(named_bundle(arguments.bundle)) as bundle:
        write_transformers_js(bundle, arguments.out)
        precisions = ", ".join(bundle.manifest.precisions)
    sys.stdout.write(f"{arguments.out}: {precisions}; prompts to give it in {PROMPTS_NAME}\n")
    return 0


def _spec(arguments: argparse.Namespace) -> BundleSpec:
    """Returns what the bundle says about itself: options first, then the recipe, then defaults.

    Raises:
        ConfigError: If the recipe or provenance cannot be read, or no licence is given.
    """
    from .bundle import spec_from_table

    recipe = _read(arguments.recipe, tomllib.loads, "recipe") if arguments.recipe else {}
    given = {
        "name": arguments.name,
        "version": arguments.model_version,
        "license": arguments.license,
        "precisions": arguments.precision,
        "max_kl_drift": arguments.max_kl_drift,
    }
    fields = {"name": arguments.model.resolve().name, **recipe.get("bundle", {})}
    fields |= {key: value for key, value in given.items() if value is not None}
    if "license" not in fields:
        raise ConfigError("no licence for the weights: give --license SPDX, or a recipe with bundle.license")
    return spec_from_table(
        from_mapping(BundleRecipe, fields, f"recipe {arguments.recipe}, bundle"),
        taxonomies=tuple(dict.fromkeys(arguments.taxonomy or recipe.get("taxonomies", [DEFAULT_TAXONOMY]))),
        template=_template(recipe, f"recipe {arguments.recipe}"),
        provenance=_read(arguments.provenance, json.loads, "provenance") if arguments.provenance else {},
    )


def _template(recipe: dict[str, Any], where: str) -> PromptTemplate:
    """Returns what the recipe asks its student, or its one model: the student is asked before it sees the image."""
    prompt = from_mapping(PromptTemplate, recipe.get("prompt", {}), f"{where}, prompt")
    student = recipe.get("student")
    if not isinstance(student, dict):
        return prompt
    if "prompt" in student:
        return from_mapping(PromptTemplate, student["prompt"], f"{where}, student.prompt")
    return replace(prompt, image_first=False)


def _read(path: Path, parse: Callable[[str], Any], what: str) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{what} {path} cannot be parsed: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{what} {path} must hold a table, found {type(content).__name__}")
    return content
