"""Proof that a bundle's graphs compute what the model computes, and how far quantisation moves them.

Each check is against transformers running the original model:

- the runtime's preprocessing and tokens against the processor's, on Pillow;
- logits over prompts of uneven length in one batch, then over greedy decode steps with the key/value cache;
- every label's log-likelihood from one pass over the label tree, against one whole pass per label, and with fewer
  labels beside it;
- the drift of those label scores, and of the probabilities, in the quantised graphs;
- where labelled images are given, accuracy, KL, ECE and Brier score on them.

Every precision is run on the CPU and on every other engine that comes up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from emocaliber.evaluate.bundle_fitting import CalibrationSet
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.bundle_recipe import MAX_KL_DRIFT
from emocaliber.runtime.engine import EngineName
from emocaliber.runtime.engines import load_engine, taken
from emocaliber.runtime.errors import BackendError, ConfigError, DependencyError, ExportError
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.parity import CPU, DECODE_STEPS, LabelledParity, ParityReport, PrecisionParity

from .graph_parity import BATCH_SIZES, GraphComparison, largest
from .graphs import exportable
from .labelled_parity import LabelledComparison
from .probes import probe_images, probes
from .reference import expected_pixels

EXACT_PRECISIONS = ("fp32",)
"""Precisions that must equal the model to rounding on the CPU; every other one may drift within `Tolerances.drift`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """Largest differences that are accepted."""

    preprocessing: float = 1e-5
    """Normalised pixel values."""
    logits: float = 1e-3
    """Logits, relative to the largest logit (at least 1), in float32 graphs."""
    scores: float = 1e-3
    """Label scores in nats, in float32 graphs: against the model, and tree against one pass per label."""
    independence: float = 0.03
    """Label scores in nats, in quantised graphs: tree against one pass per label."""
    drift: float = 0.5
    """Mean drift, in nats, of centred label scores in quantised graphs."""
    kl_drift: float = MAX_KL_DRIFT
    """Mean divergence of their label probabilities from the model's, in nats: on labelled images where there are any,
    else on the synthetic ones."""

    def __post_init__(self) -> None:
        wrong = {name: getattr(self, name) for name in self.__slots__ if not getattr(self, name) > 0}
        if wrong:
            raise ConfigError(f"tolerances must be positive, got {wrong}")


def verify_graphs(
    model: Any,
    folder: Path,
    *,
    processor: Any,
    images: Sequence[npt.NDArray[np.uint8]] | None = None,
    steps: int = DECODE_STEPS,
    tolerances: Tolerances | None = None,
    engines: Sequence[EngineName] | None = None,
    labelled: Sequence[CalibrationSet] = (),
    source: str = "",
    force: bool = False,
) -> ParityReport:
    """Returns how a bundle's graphs compare with the model they came from.

    Args:
        model: The transformers model; it is not changed.
        folder: The bundle's folder.
        processor: The model's processor.
        images: uint8 (H, W, 3) images, at least three; synthetic ones of uneven sizes where None, for families with
            images of any size so large that windows of attention are cut at both edges.
        steps: Greedy decode steps.
        tolerances: Largest differences accepted.
        engines: What runs the graphs beside the CPU, and must come up; None is everything that does.
        labelled: Images with labels, on which calibration is compared too.
        source: What these are, in words.
        force: Whether a precision that drifts too far is accepted; the report then says so.

    Raises:
        ExportError: If anything differs by more than the tolerances; every fault is named.
        ArtifactError: If the folder holds no valid bundle.
        BackendError: If a named engine does not come up.
        InputError: If a labelled image cannot be read.
    """
    accepted = tolerances or Tolerances()
    if images is not None and len(images) < 3:
        raise ConfigError(f"parity needs at least three images, got {len(images)}")
    if steps < 1:
        raise ConfigError(f"parity needs at least one decode step, got {steps}")
    with Bundle.open(folder, verify=False) as bundle, exportable(model) as plain:
        preprocessing = bundle.manifest.preprocessing
        pictures = probe_images(preprocessing) if images is None else list(images)
        pixels = [preprocessing.apply(image) for image in pictures]
        expected = [expected_pixels(processor.image_processor, image) for image in pictures]
        shapes = [(ours.shape, theirs.shape) for ours, theirs in zip(pixels, expected, strict=True)]
        if any(ours != theirs for ours, theirs in shapes):
            raise ExportError(f"the runtime and the processor cut images into other patches: {shapes}")
        asked = probes(bundle, processor, pictures, pixels)
        pad = processor.tokenizer.pad_token_id or 0
        graphs = GraphComparison(plain, bundle, asked, steps=steps, near=accepted.logits, pad=pad)
        found = _Runs()
        found.collect(bundle, graphs, LabelledComparison(plain, bundle, labelled, source), engines)
        by_size = bundle.manifest.image_block.count is None
        report = ParityReport(
            images=len(pictures),
            image_sizes=tuple(image.shape[:2] for image in pictures),
            grids=tuple(image.shape[:2] for image in pixels) if by_size else (),
            batch_sizes=BATCH_SIZES,
            decode_steps=steps,
            max_pixel_difference=largest(ours - theirs for ours, theirs in zip(pixels, expected, strict=True)),
            precisions=found.engines.pop(CPU),
            engines=found.engines,
            absent=found.absent,
            labelled=tuple(found.labelled),
            tolerances=asdict(accepted),
            made_with={name: version(name) for name in ("emocaliber", "torch", "transformers")}
            | {"onnxruntime": onnxruntime.__version__},
        )
    return _judged(report, force=force)


@dataclass(slots=True)
class _Runs:
    """What was found on every engine that came up."""

    engines: dict[str, dict[str, PrecisionParity]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    labelled: list[LabelledParity] = field(default_factory=list)

    def collect(
        self,
        bundle: Bundle,
        graphs: GraphComparison,
        labelled: LabelledComparison,
        engines: Sequence[EngineName] | None,
    ) -> None:
        """Runs every precision on the CPU, then on the named engines, or on all others that come up."""
        tried: Sequence[EngineName] = ("openvino", "cuda", "tensorrt") if engines is None else engines
        for name in dict.fromkeys(("cpu", *tried)):
            known = bundle.manifest.precisions
            for precision in tqdm(taken(known, name) or known, desc=f"comparing on {name}", leave=False, disable=None):
                try:
                    engine = load_engine(bundle, precision, name)
                    parity, rows = graphs.compare(engine), labelled.compare(engine, precision)
                except (BackendError, DependencyError) as error:
                    if name == "cpu" or engines is not None:
                        raise
                    self.absent[name] = str(error)
                    break
                self.engines.setdefault(engine.name, {})[precision] = parity
                self.labelled += rows


def _judged(report: ParityReport, *, force: bool) -> ParityReport:
    """Returns the report if nothing differs too far, marked where a drift was forced."""
    faults = _faults(report)
    if faults:
        raise ExportError(f"the graphs do not match the model: {'; '.join(faults)}")
    drifts = _drifts(report)
    if drifts and not force:
        raise ExportError(
            f"calibration drifts too far: {'; '.join(drifts)}; leave that precision out, or accept it with --force, "
            "or with a larger --max-kl-drift (bundle.max_kl_drift of a recipe)"
        )
    return replace(report, forced=tuple(drifts))


def _faults(report: ParityReport) -> list[str]:
    """Returns what is wrong whatever drift is accepted, in words."""
    accepted, faults = report.tolerances, []
    measured = [("pixel difference", report.max_pixel_difference, accepted["preprocessing"])]
    for (precision, engine), parity in report.runs().items():
        name, exact = _name(precision, engine), _is_exact(precision, engine)
        independence = accepted["scores"] if exact else accepted["independence"]
        limit = accepted["logits"] * max(1.0, parity.largest_logit) if exact else sys.float_info.max
        measured.append((f"{name} tree difference", parity.max_tree_difference, independence))
        measured.append((f"{name} effect of other labels", _known(parity.max_neighbour_effect), independence))
        measured.append((f"{name} logit difference", parity.max_logit_difference, limit))
        if exact:
            measured.append((f"{name} label score difference", parity.max_score_drift, accepted["scores"]))
            if parity.greedy_mismatches:
                faults.append(f"{name}: {parity.greedy_mismatches} of {parity.greedy_tokens} greedy tokens differ")
        else:
            measured.append((f"{name} label score drift", parity.max_score_drift, sys.float_info.max))
    # Written so that a NaN is a fault too.
    faults += [f"{what} is {value:.3g}, at most {limit:.3g}" for what, value, limit in measured if not value <= limit]
    return faults


def _drifts(report: ParityReport) -> list[str]:
    """Returns which precisions drift too far, in words."""
    accepted, drifts = report.tolerances, []
    on_labels = {(row.precision, row.engine) for row in report.labelled}
    measured = [
        (f"{_name(row.precision, row.engine)} KL drift on {row.taxonomy}", row.kl_drift.estimate, accepted["kl_drift"])
        for row in report.labelled
    ]
    for (precision, engine), parity in report.runs().items():
        if _is_exact(precision, engine):
            continue
        name = _name(precision, engine)
        measured.append((f"{name} mean label score drift", parity.mean_score_drift, accepted["drift"]))
        if (precision, engine) not in on_labels:
            measured.append((f"{name} KL drift", _known(parity.kl_drift), accepted["kl_drift"]))
    drifts += [
        f"{what} is {value:.3g} nat, at most {limit:.3g}" for what, value, limit in measured if not value <= limit
    ]
    return drifts


def _is_exact(precision: str, engine: str) -> bool:
    """Returns whether graphs must equal the model: devices round float32 in their own ways."""
    return precision in EXACT_PRECISIONS and engine == CPU


def _name(precision: str, engine: str) -> str:
    return precision if engine == CPU else f"{precision} on {engine}"


def _known(value: float | None) -> float:
    assert value is not None  # only older files lack it
    return value
