"""``emocaliber evaluate``: accuracy and calibration of a bundle, or of predictions made before."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emocaliber.runtime.errors import InputError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.grammar import MODES
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.samples import Sample, read_samples

from .predictions import Outcome, match_predictions, predict_samples, read_predictions
from .report import render_report
from .scoring import score_strict
from .task_report import build_report

_TABLE = ("acc", "f1", "kl", "ece", "brier", "auroc", "set_coverage", "set_size")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``emocaliber evaluate``."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", metavar="B", help="bundle to run: a folder, a .tar, or 'default'")
    source.add_argument("--predictions", metavar="F.jsonl", type=Path, help="prediction lines, as 'batch' writes them")
    parser.add_argument("--data", metavar="SAMPLES.jsonl", type=Path, required=True, help="samples with their labels")
    parser.add_argument("--split", help="only samples of this split")
    parser.add_argument("--taxonomy", metavar="T", help="only samples of this taxonomy")
    parser.add_argument("--mode", choices=MODES, help="with --bundle: answer at once, or reason first")
    parser.add_argument("--engine", choices=("auto", "cpu", "cuda", "tensorrt"), help="with --bundle: what computes")
    parser.add_argument("--precision", metavar="P", help="with --bundle: precision variant, such as int8")
    parser.add_argument("--coverage", type=float, help="with --bundle: coverage of the prediction sets (0.9)")
    parser.add_argument("--json", metavar="F", type=Path, help="write all figures to this file")
    parser.add_argument("--report", metavar="F.html", type=Path, help="write a page with diagrams and examples")
    parser.add_argument("--scoring", choices=("strict",), default="strict", help="how answers are counted")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates and returns the exit status: 0, or 1 where an image of a bundle run could not be read.

    Raises:
        InputError: If samples or predictions cannot be used, or nothing is left to evaluate.
        EmoCaliberError: If the bundle or its engine does not load.
    """
    samples = _select(arguments)
    if arguments.bundle is None:
        _refuse_model_options(arguments)
        lines = read_predictions(arguments.predictions)
        folders = (Path(), arguments.predictions.parent, arguments.data.parent)
        outcomes, unused = match_predictions(samples, lines, folders)
        if unused:
            _say(f"{unused} of {len(lines)} predictions belong to no sample and are left out")
        status = 0
    else:
        outcomes = _predict(arguments, samples)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        for outcome in failed:
            _say(f"{outcome.sample.image}: {outcome.error}")
        status = 1 if failed else 0
    scores = score_strict(outcomes)
    if arguments.report is not None:
        report = build_report(outcomes, scores, facts=_facts(arguments, outcomes))
        atomic_write(arguments.report, render_report(report))
    if arguments.json is None:
        sys.stdout.write(format_table(scores))
    else:
        atomic_write(arguments.json, json.dumps(scores, indent=1, allow_nan=False) + "\n")
    return status


def format_table(scores: dict[str, Any]) -> str:
    """Returns the main figures as a plain text table, one line a task and one for all together."""
    rows = [("task", "n", *_TABLE)]
    for name, figures in (*scores["tasks"].items(), ("all", scores["overall"])):
        cells = ("-" if figures[key] is None else f"{figures[key]:.3f}" for key in _TABLE)
        rows.append((name, str(figures["n"]), *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _select(arguments: argparse.Namespace) -> list[Sample]:
    samples = read_samples(arguments.data, arguments.split)
    if arguments.taxonomy is not None:
        samples = [sample for sample in samples if sample.taxonomy == arguments.taxonomy]
    if not samples:
        asked = {"split": arguments.split, "taxonomy": arguments.taxonomy}
        chosen = ", ".join(f"{name} {value!r}" for name, value in asked.items() if value is not None)
        raise InputError(f"{arguments.data} holds no sample of {chosen}")
    return samples


def _refuse_model_options(arguments: argparse.Namespace) -> None:
    given = [name for name in ("mode", "engine", "precision", "coverage") if getattr(arguments, name) is not None]
    if given:
        raise InputError(f"--{given[0]} says how a bundle is run; with --predictions everything is already in the file")


def _predict(arguments: argparse.Namespace, samples: list[Sample]) -> list[Outcome]:
    coverage = 0.9 if arguments.coverage is None else arguments.coverage
    bundle = None if arguments.bundle == "default" else arguments.bundle
    with EmotionModel.load(bundle, precision=arguments.precision, engine=arguments.engine or "auto") as model:
        outcomes = predict_samples(model, samples, mode=arguments.mode or "direct", coverage=coverage)
        return list(tqdm(outcomes, total=len(samples), unit="image", file=sys.stderr, disable=None))


def _facts(arguments: argparse.Namespace, outcomes: list[Outcome]) -> dict[str, str]:
    first = next((outcome.prediction for outcome in outcomes if outcome.prediction is not None), None)
    facts = {"data": arguments.data.name + (f", split {arguments.split}" if arguments.split else "")}
    if first is not None:
        facts["bundle"] = "{name} {version}".format(**first.bundle)
        facts["precision"] = first.bundle["precision"]
        facts["engine"] = first.bundle["engine"]
        facts["mode"] = first.mode
    return facts


def _say(message: str) -> None:
    sys.stderr.write(f"emocaliber evaluate: {message}\n")
