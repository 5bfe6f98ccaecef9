"""The whole pipeline in one run: three stages, distillation, export, calibration, measurement, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from emocaliber.evaluate.intervals import paired_difference
from emocaliber.evaluate.metrics import brier_losses, mean_set_size, set_coverage
from emocaliber.evaluate.records import Comparison, CoverageRow, Example, ReportData, StageResult
from emocaliber.evaluate.report import render_report
from emocaliber.evaluate.summary import expected_correctness
from emocaliber.evaluate.transformers_model import TransformersModel
from emocaliber.runtime import EmotionModel
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.grammar import MODES, Mode
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.sealing import replace_calibration
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import Stage
from emocaliber.train.stages import run_annotate, run_calibrate, run_reason, run_verbalize, run_vision
from emocaliber.train.workspace import SCENES, Workspace, load_samples

from .measure import Floats, Truth, bundle_outputs, set_members, stage_result, teacher_outputs, truth_of
from .stages import (
    open_model,
    run_bundle,
    run_collect,
    run_fit,
    run_ground,
    run_on_policy,
    run_student,
    student_stages,
)

REASON_IMAGES = 600
"""Held-out images on which reason mode is measured; it writes a text for each."""

COVERAGES = (0.8, 0.9, 0.95)
EXAMPLES = 8

_TITLES = {
    "reason": "1 · reason (SFT)",
    "verbalize": "2 · verbalize (SFT)",
    "calibrate": "3 · calibrate (GRPO)",
    "student": "student, float",
    "on_policy": "student on its own responses, float",
    "ground": "student grounded, float",
}
_NAMES = {"student": "student_float", "on_policy": "student_on_policy", "ground": "student_grounded"}
"""Stage of the student to what ``metrics.json`` calls its figures, before the mode."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _HeldOut:
    """The held-out samples of one taxonomy."""

    samples: list[Sample]
    truth: Truth
    suffix: str
    """Tells the results of several taxonomies apart; empty where there is one."""

    @property
    def reasoned(self) -> list[Sample]:
        """Those on which reason mode is measured."""
        return self.samples[:REASON_IMAGES]


@dataclass
class _Measured:
    """What the run has measured so far."""

    results: list[StageResult] = field(default_factory=list)
    coverage: list[CoverageRow] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    stated: dict[tuple[str, Mode, str], tuple[Floats, Floats]] = field(default_factory=dict)
    """Stage, mode and suffix to (stated confidences, expected correctness)."""


def run_pipeline(recipe: Recipe, root: Path) -> Path:
    """Returns the bundle of a whole run; ``metrics.json`` and ``report.html`` stand beside it.

    Stages that are finished are kept, so that a run that was interrupted goes on where it stopped.

    Args:
        recipe: A recipe with every table.
        root: Folder of the run.

    Raises:
        ConfigError: If the recipe lacks a table, or ``root`` holds a run of another recipe; nothing has run then.
    """
    for table in ("reason", "annotate", "verbalize", "calibrate", "collect", "student", "bundle"):
        recipe.stage(table)
    workspace = Workspace(root)
    _claim(recipe, root)
    wall = _run_stages(recipe, workspace)
    started = time.perf_counter()
    held_out = _held_out(recipe, workspace)
    _say("measuring on held-out images")
    measured = _Measured()
    students = student_stages(recipe)
    for name in ("reason", "verbalize", "calibrate", *students):
        model = open_model(recipe, workspace.stage(name), student=name in students)
        for part in held_out:
            _measure_model(name, model, part, wall, measured)
    with EmotionModel.load(workspace.bundle) as bundle:
        for part in held_out:
            _measure_bundle(bundle, part, wall, measured)
    _compare_confidences(recipe, held_out, measured)
    total_s = sum(wall.values()) + time.perf_counter() - started
    metrics = _metrics(recipe, measured, wall, total_s)
    atomic_write(root / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    atomic_write(root / "report.html", render_report(_report(recipe, measured, held_out, total_s)))
    _record_in_card(workspace.bundle, metrics)
    return workspace.bundle


def _claim(recipe: Recipe, root: Path) -> None:
    """Writes down which recipe the folder belongs to; refuses to go on with a run that another one began."""
    path, mine = root / "recipe.json", to_mapping(recipe)
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in mine if mine[key] != theirs.get(key)]
        if changed:
            raise ConfigError(
                f"{root} holds a run of another recipe (other: {', '.join(changed)}); give another --out, or remove it"
            )
    atomic_write(path, json.dumps(mine, indent=1))


def _run_stages(recipe: Recipe, workspace: Workspace) -> dict[str, float]:
    """Runs every stage and returns the seconds each took."""
    steps: dict[str, Callable[..., Stage | Path]] = {
        **({} if recipe.vision is None else {"vision": run_vision}),
        "reason": run_reason,
        "annotate": run_annotate,
        "verbalize": run_verbalize,
        "calibrate": run_calibrate,
        "collect": run_collect,
        "student": run_student,
        **({} if recipe.on_policy is None else {"on_policy": run_on_policy}),
        **({} if recipe.ground is None else {"ground": run_ground}),
        "bundle": run_bundle,
        "fit": run_fit,
    }
    path = workspace.root / "wall.json"
    wall: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    started = time.perf_counter()
    load_samples(recipe, workspace, "train")
    wall["data"] = max(time.perf_counter() - started, wall.get("data", 0.0))
    for number, (name, step) in enumerate(steps.items(), 1):
        _say(f"[{number}/{len(steps)}] {name}")
        started = time.perf_counter()
        result = step(recipe, workspace, resume=True)
        spent = time.perf_counter() - started
        wall[name] = result.wall_s if isinstance(result, Stage) else max(spent, wall.get(name, 0.0))
        atomic_write(path, json.dumps(wall))
    return wall


def _held_out(recipe: Recipe, workspace: Workspace) -> list[_HeldOut]:
    """Returns the test split by taxonomy."""
    samples = load_samples(recipe, workspace, "test")
    groups = {name: [sample for sample in samples if sample.taxonomy == name] for name in recipe.taxonomies}
    return [
        _HeldOut(samples=group, truth=truth_of(group), suffix="" if len(groups) == 1 else f" · {name}")
        for name, group in groups.items()
        if group
    ]


def _measure_model(
    name: str, model: TransformersModel, part: _HeldOut, wall: dict[str, float], measured: _Measured
) -> None:
    """Measures a model in memory: reason mode, and for the student direct mode too."""
    modes: tuple[Mode, ...] = ("direct", "reason") if name in _NAMES else ("reason",)
    for mode in modes:
        chosen = part.samples if mode == "direct" else part.reasoned
        probabilities, stated = teacher_outputs(model, chosen, mode, verbalize=name != "reason")
        if stated is not None:
            labels = part.truth.labels[: len(chosen)]
            measured.stated[name, mode, part.suffix] = (stated, expected_correctness(probabilities, labels))
        measured.results.append(
            stage_result(
                (f"{_NAMES[name]}_{mode}" if name in _NAMES else name) + part.suffix,
                _TITLES[name] + part.suffix,
                mode,
                part.truth,
                probabilities,
                verbalized=stated,
                wall_s=wall[name],
            )
        )


def _measure_bundle(model: EmotionModel, part: _HeldOut, wall: dict[str, float], measured: _Measured) -> None:
    """Measures the exported, quantised, calibrated student through the public API."""
    for mode in MODES:
        chosen = part.samples if mode == "direct" else part.reasoned
        probabilities, stated, predictions = bundle_outputs(model, chosen, mode)
        title = f"student, {model.precision}, calibrated{part.suffix}"
        for coverage in COVERAGES:
            members = set_members(predictions, coverage)
            measured.coverage.append(
                CoverageRow(
                    name=f"{title} ({mode})",
                    target=coverage,
                    coverage=set_coverage(members, part.truth.labels[: len(chosen)]),
                    size=mean_set_size(members),
                    n=len(chosen),
                )
            )
        measured.results.append(
            stage_result(
                f"student_{model.precision}_{mode}{part.suffix}",
                title,
                mode,
                part.truth,
                probabilities,
                verbalized=stated,
                sets=set_members(predictions, 0.9),
                wall_s=wall["bundle"] + wall["fit"],
            )
        )
        if mode == "reason":
            shown = _gallery(part.truth, len(chosen))
            measured.examples += [_example(part, i, predictions[i]) for i in shown]


def _compare_confidences(recipe: Recipe, held_out: list[_HeldOut], measured: _Measured) -> None:
    """Compares the stated confidence before and after reinforcement, and before and after grounding, image by image."""
    pairs: list[tuple[str, str, Mode]] = [("verbalize", "calibrate", "reason")]
    students = student_stages(recipe)
    if students[-1] == "ground":
        pairs += [(students[-2], "ground", mode) for mode in MODES]
    for part in held_out:
        for earlier, later, mode in pairs:
            before, after = (brier_losses(*measured.stated[name, mode, part.suffix]) for name in (earlier, later))
            which = f" ({mode})" if later in _NAMES else ""
            measured.comparisons.append(
                Comparison(
                    title=(f"Brier score of the stated confidence: {later} minus {earlier}{which}{part.suffix}"),
                    interval=paired_difference(before, after),
                )
            )


def _metrics(recipe: Recipe, measured: _Measured, wall: dict[str, float], total_s: float) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "taxonomies": list(recipe.taxonomies),
        "seed": recipe.seed,
        "emocaliber": version("emocaliber"),
        "stages": {
            result.name: {"title": result.title, "mode": result.mode, **result.metrics, "intervals": result.intervals}
            for result in measured.results
        },
        "comparisons": [
            {
                "title": comparison.title,
                "difference": comparison.interval.estimate,
                "interval": list(comparison.interval.bounds),
                "level": comparison.interval.level,
            }
            for comparison in measured.comparisons
        ],
        "coverage": [to_mapping(row) for row in measured.coverage],
        "wall_s": {**wall, "total": total_s},
    }


def _report(recipe: Recipe, measured: _Measured, held_out: list[_HeldOut], total_s: float) -> ReportData:
    count, reasoned = (sum(map(len, parts)) for parts in zip(*((p.samples, p.reasoned) for p in held_out), strict=True))
    return ReportData(
        title=f"EmoCaliber {recipe.name}",
        subtitle=(
            "A small vision-language model learnt to reason about images, to state a confidence, and to mean it; a "
            "smaller one learnt from it, was exported, quantised and calibrated. Every figure is on held-out images."
        ),
        stages=tuple(measured.results),
        examples=tuple(measured.examples),
        notes=_notes(recipe),
        facts={
            "taxonomies": ", ".join(recipe.taxonomies),
            "held-out images": f"{count} direct, {reasoned} with reasoning",
            "seed": str(recipe.seed),
            "run": f"{total_s:.0f} s",
            "version": version("emocaliber"),
        },
        coverage=tuple(measured.coverage),
        comparisons=tuple(measured.comparisons),
    )


def _notes(recipe: Recipe) -> tuple[str, ...]:
    if recipe.data.samples.startswith(SCENES):
        return (
            "Accuracy, ECE, Brier and AUROC are taken against labels sampled from each scene's true posterior; nobody "
            "can be more accurate than the Bayes accuracy beside them.",
            "The scenes are drawn by a program and their truth is a model of emotion, not people's answers.",
        )
    return ("Accuracy, ECE, Brier and AUROC are taken against the label with most votes, KL against the votes.",)


def _gallery(truth: Truth, count: int) -> list[int]:
    """Returns which of the first ``count`` held-out images to show: from the clearest to the most ambiguous."""
    known = truth.posterior if truth.posterior is not None else truth.votes
    sureness = np.zeros(count) if known is None else known[:count].max(axis=1)
    order = np.argsort(-sureness, kind="stable")
    return [int(order[i]) for i in np.linspace(0, len(order) - 1, EXAMPLES).round().astype(int)]


def _example(part: _HeldOut, index: int, prediction: Prediction) -> Example:
    sample = part.samples[index]
    true = sample.true_posterior() or sample.distribution()
    return Example(
        image_png=Path(sample.image).read_bytes(),
        labels=tuple(prediction.distribution),
        true=None if true is None else tuple(true),
        predicted=tuple(prediction.distribution.values()),
        prediction_set=prediction.prediction_set(0.9),
        label=prediction.label,
        confidence=prediction.confidence,
        reasoning=prediction.reasoning,
        answer=tuple(prediction.distribution)[int(part.truth.labels[index])],
    )


def _record_in_card(bundle: Path, metrics: dict[str, Any]) -> None:
    keys = (
        "mode", "accuracy", "bayes_accuracy", "kl", "ece", "ece_votes", "brier", "auroc", "set_coverage",
        "set_coverage_votes", "n",
    )  # fmt: skip
    rows = {
        name: {key: _bounded(stage, key) for key in keys}
        for name, stage in metrics["stages"].items()
        if name.startswith("student")
    }
    with Bundle.open(bundle, verify=False) as opened:
        calibrators = opened.calibrators
    replace_calibration(bundle, calibrators, metrics=rows)


def _bounded(stage: dict[str, Any], key: str) -> Any:
    """Returns a figure, as [estimate, low, high] where it has an interval."""
    interval = stage["intervals"].get(key)
    return stage.get(key) if interval is None else [stage[key], *interval]


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
