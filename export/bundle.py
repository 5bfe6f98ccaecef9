"""Writing bundles: everything beside the target first, checked, then renamed into place in one step."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emocaliber.evaluate.prompting import (
    decoder_shape,
    end_tokens,
    image_block_of,
    preprocessing_of,
    render_prompts,
    suppressed_tokens,
    tokenizer_json,
)
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.bundle_recipe import BundleRecipe
from emocaliber.runtime.calibration import Calibrator, write_calibrators
from emocaliber.runtime.errors import ConfigError, ExportError
from emocaliber.runtime.files import atomic_write, sha256_of
from emocaliber.runtime.manifest import (
    BUNDLE_SCHEMA,
    CALIBRATION_NAME,
    MANIFEST_NAME,
    MODEL_CARD_NAME,
    TOKENIZER_NAME,
    DecoderShape,
    FileRecord,
    GraphFiles,
)
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.strict_json import parse_json
from emocaliber.runtime.taxonomy import TAXONOMIES

from .graphs import DECODER, EMBED, VISION, export_graphs
from .model_card import model_card
from .quantize import SUFFIX, QuantizationReport, quantize_int8
from .verify import PARITY_NAME, Tolerances, verify_graphs

PRECISION_SUFFIXES = {"fp32": "", "int8": SUFFIX}
"""The precisions that can be written, and what they add to the graphs' file names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """What a bundle says about itself; the rest is read from the model and its processor."""

    name: str
    """Name of the model."""
    version: str
    """Version of the model."""
    license: str
    """SPDX expression of the weights' licence."""
    taxonomies: tuple[str, ...]
    """Names of the label sets the model was trained for."""
    default_taxonomy: str = ""
    """The label set used when none is asked for; the first one where empty."""
    template: PromptTemplate = field(default_factory=PromptTemplate)
    """The instruction of each mode."""
    precisions: tuple[str, ...] = ("fp32", "int8")
    """Variants to ship."""
    default_precision: str = "int8"
    """The variant that runs when none is asked for."""
    max_new_tokens: int = 320
    """Longest response."""
    opset: int = 20
    """ONNX operator set."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the model was made from; see `model_card` for the keys it gives a section of their own."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.taxonomies if name not in TAXONOMIES]
        if unknown or not self.taxonomies:
            raise ConfigError(f"unknown taxonomies {unknown or 'none given'}; known: {', '.join(TAXONOMIES)}")
        wrong = [name for name in self.precisions if name not in PRECISION_SUFFIXES]
        if wrong or self.default_precision not in self.precisions:
            raise ConfigError(
                f"precisions are {list(self.precisions)} with default {self.default_precision!r}; "
                f"known: {', '.join(PRECISION_SUFFIXES)}"
            )
        if self.default_taxonomy and self.default_taxonomy not in self.taxonomies:
            raise ConfigError(f"default_taxonomy {self.default_taxonomy!r} is not among {list(self.taxonomies)}")


def spec_from_table(
    table: BundleRecipe,
    *,
    taxonomies: tuple[str, ...],
    template: PromptTemplate,
    provenance: Mapping[str, Any],
    max_new_tokens: int = 320,
) -> BundleSpec:
    """Returns the description of a bundle that a recipe's ``[bundle]`` table asks for.

    Args:
        table: The table.
        taxonomies: Names of the label sets the model was trained for.
        template: The instruction of each mode.
        provenance: What the model was made from; the table's own texts stand beside it.
        max_new_tokens: Longest response.

    Raises:
        ConfigError: If a taxonomy is unknown.
    """
    texts = {"summary": table.summary, "training_data": table.training_data, "limits": list(table.limits)}
    precisions = tuple(dict.fromkeys(table.precisions))
    return BundleSpec(
        name=table.name,
        version=table.version,
        license=table.license,
        taxonomies=taxonomies,
        template=template,
        precisions=precisions,
        default_precision=precisions[-1],
        max_new_tokens=max_new_tokens,
        provenance={**{key: text for key, text in texts.items() if text}, **provenance},
    )


def write_bundle(
    target: Path,
    model: Any,
    processor: Any,
    spec: BundleSpec,
    *,
    calibrators: Sequence[Calibrator] = (),
    verify: bool = True,
    tolerances: Tolerances | None = None,
    overwrite: bool = False,
) -> Path:
    """Returns ``target`` after exporting the model into a new bundle folder there.

    Graphs are exported, quantised and compared with the model before anything stands at ``target``; if a step fails,
    or the process is killed, nothing does.

    Args:
        target: Folder to make.
        model: The transformers model; it is not changed.
        processor: Its processor: ``tokenizer``, ``image_processor`` and a chat template.
        spec: Name, taxonomies, prompts, precisions and provenance.
        calibrators: Fitted calibrators, if there are any yet; `replace_calibration` adds them later.
        verify: Whether to compare the graphs with the model; the result becomes ``parity.json``.
        tolerances: Largest differences accepted there.
        overwrite: Whether a bundle that stands at ``target`` is replaced; nothing else ever is.

    Raises:
        ExportError: If the model or processor is not supported, ``target`` exists, or a graph does not match the model.
    """
    check_free(target, overwrite=overwrite)
    with staged(target) as folder:
        export_graphs(model, folder, opset=spec.opset)
        quantization = quantize_int8(folder)
        atomic_write(folder / TOKENIZER_NAME, tokenizer_json(processor.tokenizer))
        write_calibrators(calibrators, folder / CALIBRATION_NAME)
        every = replace(spec, precisions=tuple(PRECISION_SUFFIXES))
        seal(folder, _manifest_fields(model, processor, every, quantization))
        if verify:
            parity = verify_graphs(model, folder, processor=processor, tolerances=tolerances or Tolerances())
            atomic_write(folder / PARITY_NAME, json.dumps(to_mapping(parity), indent=1) + "\n")
        for precision in set(PRECISION_SUFFIXES) - set(spec.precisions):
            for name in _graph_files(precision).names():
                (folder / name).unlink()
        seal(folder, _manifest_fields(model, processor, spec, quantization))
    return target


def replace_calibration(
    path: Path, calibrators: Sequence[Calibrator], *, metrics: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Puts other calibrators into a bundle folder, with its hashes and model card brought up to date.

    Args:
        path: The bundle's folder; it is replaced in one step by a changed copy.
        calibrators: All calibrators it will hold.
        metrics: Rows to add to the results of the model card, ``{row: {measure: number or null}}``.

    Raises:
        ArtifactError: If it is no valid bundle, or a calibrator does not belong to it; the bundle is then as it was.
    """
    with Bundle.open(path) as bundle:
        fields = to_mapping(bundle.manifest)
    fields.pop("files")
    if metrics:
        fields["provenance"]["metrics"] = {**fields["provenance"].get("metrics", {}), **to_mapping(metrics)}
    with staged(path) as folder:
        shutil.copytree(path, folder, copy_function=_link_or_copy, dirs_exist_ok=True)
        write_calibrators(calibrators, folder / CALIBRATION_NAME)
        seal(folder, fields)


def seal(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes the model card and ``bundle.json`` for the files that stand in ``folder``, and opens the result.

    Args:
        folder: Holds graphs, tokenizer and ``calibration.json``; every regular file in it becomes part of the bundle.
        fields: The manifest as a mapping, without ``files``.

    Raises:
        ArtifactError: If what stands there is no valid bundle.
    """
    card = folder / MODEL_CARD_NAME
    if not card.exists():
        atomic_write(card, "")
    _write_manifest(folder, fields)
    # Opened twice: the card is written from a manifest that is known to be valid, and changes it.
    with Bundle.open(folder, verify=False) as bundle:
        atomic_write(card, model_card(bundle.manifest, bundle.calibrators, _read_parity(folder)))
    _write_manifest(folder, fields)
    Bundle.open(folder, verify=False).close()


def _write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_NAME)
    files = {
        name: FileRecord(sha256=sha256_of(folder / name), size_bytes=(folder / name).stat().st_size) for name in names
    }
    text = json.dumps({**fields, "files": to_mapping(files)}, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(folder / MANIFEST_NAME, text + "\n")


def _read_parity(folder: Path) -> dict[str, Any] | None:
    path = folder / PARITY_NAME
    return parse_json(path.read_text(encoding="utf-8"), PARITY_NAME) if path.is_file() else None


def check_free(target: Path, *, overwrite: bool = False, mark: str = MANIFEST_NAME) -> None:
    """Checks that a folder may be made at ``target``.

    Args:
        target: Where.
        overwrite: Whether a folder that holds ``mark`` may be replaced.
        mark: Name of the file by which a folder of our own is known.

    Raises:
        ExportError: If something stands there that may not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / mark).is_file():
        raise ExportError(f"{target} exists and is not what this command writes (no {mark}); give another place")
    if not overwrite:
        raise ExportError(f"{target} exists; give another place, or ask to overwrite it")


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``target`` that takes its place when the block ends well, and goes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            old = folder.with_suffix(".old")
            target.rename(old)
            try:
                folder.rename(target)
            except OSError:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link_or_copy(source: str, destination: str) -> None:
    """Links a file, which costs no space, or copies it where links are not possible."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _graph_files(precision: str) -> GraphFiles:
    suffix = PRECISION_SUFFIXES[precision]
    return GraphFiles(
        vision_encoder=f"{VISION}{suffix}.onnx",
        embed_tokens=f"{EMBED}{suffix}.onnx",
        decoder=f"{DECODER}{suffix}.onnx",
    )


def _manifest_fields(model: Any, processor: Any, spec: BundleSpec, quantization: QuantizationReport) -> dict[str, Any]:
    """Returns the manifest as plain JSON values, without ``files``."""
    block = image_block_of(processor)
    expected = model.model.image_seq_len
    if block.count != expected:
        raise ExportError(f"the processor writes {block.count} image tokens, the model makes {expected} image features")
    ends = end_tokens(model, processor.tokenizer)
    made_with = {package: version(package) for package in ("emocaliber", "torch", "transformers", "onnx")}
    fields = {
        "schema_version": BUNDLE_SCHEMA,
        "name": spec.name,
        "version": spec.version,
        "family": "idefics3",
        "precisions": {precision: _graph_files(precision) for precision in spec.precisions},
        "default_precision": spec.default_precision,
        "preprocessing": preprocessing_of(processor.image_processor, model.config.vision_config.image_size),
        "image_block": block,
        "prompts": render_prompts(processor, spec.template),
        "decoder": DecoderShape(**decoder_shape(model)),
        "end_token_ids": ends,
        "suppressed_token_ids": suppressed_tokens(processor, block, ends),
        "max_new_tokens": spec.max_new_tokens,
        "taxonomies": {name: TAXONOMIES[name].labels for name in spec.taxonomies},
        "default_taxonomy": spec.default_taxonomy or spec.taxonomies[0],
        "provenance": {
            "architecture": model.config.model_type,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **spec.provenance,
            "opset": spec.opset,
            "quantization": to_mapping(quantization) if "int8" in spec.precisions else None,
            "made_with": made_with,
        },
        "license": spec.license,
    }
    return {key: to_mapping(value) for key, value in fields.items()}
