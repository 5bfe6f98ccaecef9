"""Writing bundles: a model exported, quantised, compared with its graphs, and sealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emocaliber.evaluate.prompting import end_tokens, render_prompts, suppressed_tokens, tokenizer_json
from emocaliber.evaluate.transformers_responder import visual_token_ids
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.bundle_recipe import MAX_KL_DRIFT, BundleRecipe, graph_precisions
from emocaliber.runtime.calibration import Calibrator, write_calibrators
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.files import atomic_write, staged
from emocaliber.runtime.manifest import (
    BUNDLE_SCHEMA,
    CALIBRATION_NAME,
    TOKENIZER_NAME,
)
from emocaliber.runtime.parity import DECODE_STEPS
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.sealing import check_free, seal, write_parity
from emocaliber.runtime.taxonomy import TAXONOMIES

from .external_data import remove_graph
from .families import decoder_of, family_of, image_side_of
from .graphs import export_graphs
from .quantize import NO_IMAGES, QuantizationReport, graph_files, needs_ranges, quantize_graphs
from .static_ranges import find_ranges
from .verify import Tolerances, verify_graphs


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
    max_kl_drift: float = MAX_KL_DRIFT
    """Largest drift of a precision's label probabilities, in nats; see `Tolerances.kl_drift`."""
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
        for name in self.precisions:
            graph_precisions(name)
        if self.default_precision not in self.precisions:
            raise ConfigError(f"precisions are {list(self.precisions)} with default {self.default_precision!r}")
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
        max_kl_drift=table.max_kl_drift,
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
    calibration_samples: Sequence[Sample] = (),
    verify: bool = True,
    steps: int = DECODE_STEPS,
    force: bool = False,
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
        calibrators: Fitted calibrators, if there are any yet; `replace_calibration` of the runtime adds them later.
        calibration_samples: Images on which the ranges of ``qdq`` are found; see `find_ranges`.
        verify: Whether to compare the graphs with the model; the result becomes ``parity.json``.
        steps: Greedy decode steps compared there.
        force: Whether a precision that drifts too far is written all the same, and marked in ``parity.json``.
        overwrite: Whether a bundle that stands at ``target`` is replaced; nothing else ever is.

    Raises:
        ConfigError: If ``qdq`` is to be shipped and there are no calibration samples.
        InputError: If one of their images cannot be read.
        ExportError: If the model or processor is not supported, ``target`` exists, or a graph does not match the model.
    """
    check_free(target, overwrite=overwrite)
    if needs_ranges(spec.precisions) and not calibration_samples:
        raise ConfigError(NO_IMAGES)
    with staged(target) as folder:
        export_graphs(model, folder, opset=spec.opset)
        every = replace(spec, precisions=tuple(dict.fromkeys(("fp32", *spec.precisions))))
        atomic_write(folder / TOKENIZER_NAME, tokenizer_json(processor.tokenizer))
        ranges = None
        if needs_ranges(spec.precisions):
            # What runs the images is a bundle, of the float graphs alone.
            write_calibrators((), folder / CALIBRATION_NAME)
            plain = replace(spec, precisions=("fp32",), default_precision="fp32")
            seal(folder, _manifest_fields(model, processor, plain, None))
            with Bundle.open(folder, verify=False) as bundle:
                ranges = find_ranges(bundle, folder, calibration_samples)
        quantization = quantize_graphs(folder, every.precisions, ranges=ranges)
        write_calibrators(calibrators, folder / CALIBRATION_NAME)
        seal(folder, _manifest_fields(model, processor, every, quantization))
        if verify:
            accepted = Tolerances(kl_drift=spec.max_kl_drift)
            parity = verify_graphs(model, folder, processor=processor, steps=steps, tolerances=accepted, force=force)
            write_parity(parity, folder)
        shipped = {name for precision in spec.precisions for name in graph_files(precision).names()}
        for name in set(graph_files("fp32").names()) - shipped:
            remove_graph(folder / name)
        seal(folder, _manifest_fields(model, processor, spec, quantization))
    return target


def _manifest_fields(
    model: Any, processor: Any, spec: BundleSpec, quantization: QuantizationReport | None
) -> dict[str, Any]:
    """Returns the manifest as plain JSON values, without ``files``."""
    preprocessing, block = image_side_of(model, processor)
    ends = end_tokens(model, processor.tokenizer)
    visual = set(visual_token_ids(model.config) or ()) - set(ends)
    made_with = {package: version(package) for package in ("emocaliber", "torch", "transformers", "onnx")}
    fields = {
        "schema_version": BUNDLE_SCHEMA,
        "name": spec.name,
        "version": spec.version,
        "family": family_of(model),
        "precisions": {precision: graph_files(precision) for precision in spec.precisions},
        "default_precision": spec.default_precision,
        "preprocessing": preprocessing,
        "image_block": block,
        "prompts": render_prompts(processor, spec.template),
        "decoder": decoder_of(model),
        "end_token_ids": ends,
        "suppressed_token_ids": sorted({*suppressed_tokens(processor, block, ends), *visual}),
        "max_new_tokens": spec.max_new_tokens,
        "taxonomies": {name: TAXONOMIES[name].labels for name in spec.taxonomies},
        "default_taxonomy": spec.default_taxonomy or spec.taxonomies[0],
        "provenance": {
            "architecture": model.config.model_type,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **spec.provenance,
            "opset": spec.opset,
            "quantization": to_mapping(quantization) if quantization and quantization.graphs else None,
            "made_with": made_with,
        },
        "license": spec.license,
    }
    return {key: to_mapping(value) for key, value in fields.items()}
