"""What each term of the student's training buys, and what the student keeps of its teacher.

``python benchmarks/distillation.py RUN --out benchmarks/distillation.md`` takes a run of the pipeline whose traces are
collected (such as ``emocaliber quickstart --recipe recipes/nano/recipe.toml --out RUN ...``), trains its student anew
on them, each time with one term changed, or trains the full student on with one more, and holds all of them against the
run's test split. Students stay in ``RUN/ablation``: what is there is not trained again. A finished run adds the table
of teacher and student, from its metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from emocaliber.distill.collect import read_traces
from emocaliber.distill.grounding import train_grounded, unseen_first
from emocaliber.distill.measure import Truth, teacher_outputs, truth_of
from emocaliber.distill.on_policy import train_on_policy
from emocaliber.distill.packing import PackedRow
from emocaliber.distill.rows import student_rows
from emocaliber.distill.stages import chosen_samples, new_student, open_model
from emocaliber.distill.student import train_student
from emocaliber.evaluate.intervals import bootstrap_mean, paired_difference
from emocaliber.evaluate.metrics import expected_calibration_error
from emocaliber.evaluate.transformers_loading import load_model, load_processor
from emocaliber.runtime.grammar import MODES, Mode
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.choosing import take_balanced
from emocaliber.train.quiet import quiet_libraries
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import finished
from emocaliber.train.stage_recipes import AugmentRecipe, StudentRecipe
from emocaliber.train.stages import longest_response, model_after, prepare
from emocaliber.train.student_recipes import GroundRecipe, OnPolicyRecipe
from emocaliber.train.workspace import Workspace, load_samples

Floats = NDArray[np.float64]
Rows = Sequence[PackedRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A student that differs from the full one in one thing."""

    name: str
    said: str
    """In words, for the table."""
    table: Callable[[StudentRecipe], StudentRecipe] = lambda table: table
    rows: Callable[[Rows], Rows] = lambda rows: rows
    further: Callable[[Recipe, Workspace, Path, Path], object] | None = None
    """Trains the full student, which lies in the first folder, on, into the second; None trains one of its own."""


def one_hot(rows: Rows) -> Rows:
    """Returns the rows with all of the target on the answer that the teacher gave."""
    return [replace(row, target=tuple(float(label == row.answer) for label in row.labels)) for row in rows]


def ground(recipe: Recipe, workspace: Workspace, full: Path, folder: Path) -> None:
    """Grounds the full student's stated confidence, in training images that it has not learnt from first."""
    table = recipe.ground or GroundRecipe(learning_rate=5e-4, batch_size=64, epochs=2.0, images=600, samples=4)
    learnt = {trace["id"] for trace in read_traces(workspace.traces)}
    every = unseen_first(load_samples(recipe, workspace, table.split), learnt, recipe.seed)
    train_grounded(
        load_model(full), load_processor(full), take_balanced(every, table.images, recipe.data.balance),
        replace(recipe, ground=table), folder, max_new_tokens=longest_response(recipe), resume=True,
    )  # fmt: skip


def on_policy(recipe: Recipe, workspace: Workspace, full: Path, folder: Path) -> None:
    """Corrects the full student on its own responses."""
    table = recipe.on_policy or OnPolicyRecipe(learning_rate=1e-4, steps=40, batch_size=16, images=640)
    teacher = model_after(recipe, workspace, "calibrate")
    train_on_policy(
        (load_model(full), load_processor(full)), (load_model(teacher), load_processor(teacher)),
        chosen_samples(recipe, workspace, table.images), replace(recipe, on_policy=table), folder,
        max_new_tokens=longest_response(recipe), resume=True,
    )  # fmt: skip


VARIANTS = (
    Variant(name="full", said="the recipe's student: text, and the label distribution of its votes_share"),
    Variant(name="answers", said="for the label distribution, the teacher's answer", rows=one_hot),
    Variant(name="teacher", said="the teacher's distribution alone", table=lambda t: replace(t, votes_share=0.0)),
    Variant(name="mixture", said="teacher's and votes', half each", table=lambda t: replace(t, votes_share=0.5)),
    Variant(
        name="no-text", said="no text: direct mode alone", table=lambda t: replace(t, sequence_weight=0.0),
        rows=lambda rows: [row for row in rows if row.mode == "direct"],
    ),
    Variant(
        name="plain-images", said="images as they are, mirrored",
        table=lambda t: replace(t, augment=AugmentRecipe()),
    ),
    Variant(name="ground", said="the full student, its confidence then grounded in its own success", further=ground),
    Variant(name="on-policy", said="the full student, then corrected on its own responses", further=on_policy),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Losses of one student in one mode on one taxonomy, N images."""

    correct: Floats
    """(N,) whether the most probable label has most votes."""
    kl: Floats
    """(N,) KL(votes to prediction), nats."""
    brier: Floats
    """(N,) expected squared error of the top label's probability, under the votes."""
    stated: Floats
    """(N,) the same of the confidence that the student states."""
    ece: float
    """ECE of the top label against the votes."""


def main() -> int:
    """Trains, measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--images", type=int, default=4000, help="traced images each student learns from")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--held-out", type=int, default=400, help="most test images of a taxonomy")
    parser.add_argument("--variants", nargs="*", default=[variant.name for variant in VARIANTS])
    arguments = parser.parse_args()
    quiet_libraries()
    workspace = Workspace(arguments.run)
    recipe = from_mapping(Recipe, json.loads((arguments.run / "recipe.json").read_text(encoding="utf-8")), "recipe")
    chosen = [variant for variant in VARIANTS if variant.name in arguments.variants]
    measured = {
        variant.name: _measured(variant, recipe, workspace, arguments)
        for variant in tqdm(chosen, desc="students", file=sys.stderr)
    }
    text = _document(chosen, measured, recipe.name, arguments)
    metrics = arguments.run / "metrics.json"
    if metrics.is_file():
        text += _teacher_and_student(json.loads(metrics.read_text(encoding="utf-8")))
    arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{arguments.out}\n")
    return 0


def _measured(
    variant: Variant, recipe: Recipe, workspace: Workspace, arguments: argparse.Namespace
) -> dict[tuple[str, Mode], Scores]:
    folder = workspace.root / "ablation" / variant.name
    if not finished(folder) and variant.further is not None:
        prepare(recipe)
        variant.further(recipe, workspace, folder.parent / VARIANTS[0].name, folder)
    elif not finished(folder):
        table = variant.table(replace(recipe.stage("student"), epochs=arguments.epochs))
        samples = chosen_samples(recipe, workspace)
        known = {sample.id for sample in samples[: arguments.images]}
        traces = [trace for trace in read_traces(workspace.traces) if trace["id"] in known]
        rows, _ = student_rows(traces, samples, votes_share=table.votes_share)
        model, processor = new_student(recipe, workspace)
        train_student(model, processor, variant.rows(rows), replace(recipe, student=table), folder, resume=True)
    model = open_model(recipe, folder, student=True)
    groups: dict[str, list[Sample]] = {}
    for sample in load_samples(recipe, workspace, "test"):
        groups.setdefault(sample.taxonomy, []).append(sample)
    scores = {}
    for taxonomy, samples in groups.items():
        held_out = samples[: arguments.held_out]
        truth = truth_of(held_out)
        for mode in MODES:
            probabilities, stated = teacher_outputs(model, held_out, mode, verbalize=True)
            assert stated is not None
            scores[taxonomy, mode] = _scores(probabilities, stated, truth)
    return scores


def _scores(probabilities: Floats, stated: Floats, truth: Truth) -> Scores:
    votes = truth.votes if truth.votes is not None else truth.posterior
    assert votes is not None
    top = probabilities.argmax(axis=1)
    confidence, agreed = probabilities.max(axis=1), votes[np.arange(len(top)), top]
    ratio = np.log(np.where(votes > 0, votes, 1.0)) - np.log(np.maximum(probabilities, 1e-12))
    return Scores(
        correct=(top == truth.labels).astype(np.float64),
        kl=(votes * ratio).sum(axis=1),
        brier=_squared_error(confidence, agreed),
        stated=_squared_error(stated, agreed),
        ece=expected_calibration_error(confidence, agreed),
    )


def _squared_error(confidence: Floats, right: Floats) -> Floats:
    return right * (1 - confidence) ** 2 + (1 - right) * confidence**2


def _document(
    chosen: Sequence[Variant],
    measured: dict[str, dict[tuple[str, Mode], Scores]],
    recipe: str,
    arguments: argparse.Namespace,
) -> str:
    made = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, {date.today():%d %B %Y}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        "# Distillation: what each term buys",
        "",
        f"Made by `python benchmarks/distillation.py RUN --out FILE --images {arguments.images} --epochs "
        f"{arguments.epochs:g} --held-out {arguments.held_out} --variants {' '.join(arguments.variants)}` on a "
        f"run of the recipe `{recipe}` ({made}; {versions}). Students in float32, not calibrated, on the run's "
        'own test split; one seed. Accuracy is against the label with most votes, all else against the votes; "Brier" '
        'is of the top label\'s probability, "Brier, stated" of the confidence that the student states. In brackets, '
        "95 % bootstrap intervals; below a figure, the paired difference to the full student, of which an interval "
        "beside 0 tells.",
        "",
        *(f"- **{variant.name}**: {variant.said}" for variant in chosen),
        "",
    ]
    for taxonomy, mode in measured[chosen[0].name]:
        n = len(measured[chosen[0].name][taxonomy, mode].kl)
        lines += [
            f"## {taxonomy}, {mode} mode, n = {n}",
            "",
            "| student | accuracy | KL, nats | Brier | Brier, stated | ECE |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for variant in chosen:
            lines.append(_line(variant.name, measured[variant.name][taxonomy, mode], measured["full"][taxonomy, mode]))
        lines.append("")
    return "\n".join(lines) + "\n"


def _line(name: str, scores: Scores, full: Scores) -> str:
    cells = []
    for part in ("correct", "kl", "brier", "stated"):
        values, reference = getattr(scores, part), getattr(full, part)
        mean = bootstrap_mean(values)
        cell = f"{mean.estimate:.3f} ({mean.low:.3f} to {mean.high:.3f})"
        if scores is not full:
            change = paired_difference(reference, values)
            cell += f"<br>{change.estimate:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
        cells.append(cell)
    return f"| {name} | {' | '.join(cells)} | {scores.ece:.3f} |"


def _teacher_and_student(metrics: dict[str, object]) -> str:
    """Returns the table of the finished run: teacher after stage 3, student in float and as exported."""
    stages = metrics["stages"]
    assert isinstance(stages, dict)
    lines = [
        "# Teacher and student",
        "",
        "The same run's own measurement (`RUN/metrics.json`), on its test split. For another recipe, run it and this "
        "script on its folder.",
        "",
        "| model | mode | accuracy | KL, nats | ECE against votes | Brier against votes | AUROC | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in stages.items():
        if name.startswith(("calibrate", "student", "ground")):
            figures = [_figure(row, key) for key in ("accuracy", "kl", "ece_votes", "brier_votes", "auroc")]
            lines.append(f"| {row['title']} | {row['mode']} | {' | '.join(figures)} | {row['n']} |")
    return "\n".join(lines) + "\n"


def _figure(row: dict[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, float):
        return "–"
    intervals = row["intervals"]
    assert isinstance(intervals, dict)
    bounds = intervals.get(key)
    return f"{value:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


if __name__ == "__main__":
    sys.exit(main())
