"""``emocaliber evaluate``: accuracy and calibration of a bundle, or of predictions made before."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emocaliber.runtime.bundle import named_bundle
from emocaliber.runtime.engine import ENGINES
from emocaliber.runtime.errors import InputError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.grammar import MODES
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.samples import Sample, read_samples

from .comparing import COMPARED, compare_rows, pair_responses
from .official import make_official_row, responses_of, score_official
from .predictions import Outcome, match_predictions, predict_samples, read_predictions
from .report import render_report
from .responses import ResponseLine, holds_responses, read_responses
from .rows import Row, make_response_row, make_row
from .scoring import score_strict, score_strict_responses
from .task_report import build_report
from .vecbench import canonical_task

_TABLE = ("acc", "f1", "kl", "ece", "ece_votes", "brier", "auroc", "set_coverage", "set_coverage_votes", "set_size")
_OVERALL = "all"
_CONSTANT = "  constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evaluation:
    """What was evaluated, and what came out."""

    scores: dict[str, Any]
    rows: list[Row]
    outcomes: list[Outcome]
    status: int = 0


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``emocaliber evaluate``."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", metavar="B", help="bundle to run: a folder, a .tar, or 'default'")
    source.add_argument(
        "--predictions",
        metavar="F.jsonl",
        type=Path,
        help="prediction lines, as 'batch' writes them, or lines with task, ground_truth, candidates, response",
    )
    parser.add_argument(
        "--data", metavar="SAMPLES.jsonl", type=Path, help="samples with their labels; response lines need none"
    )
    parser.add_argument("--split", help="only samples of this split")
    parser.add_argument("--taxonomy", metavar="T", help="only samples of this taxonomy, or responses of this task")
    parser.add_argument("--mode", choices=MODES, help="with --bundle: answer at once, or reason first")
    parser.add_argument("--engine", choices=ENGINES, help="with --bundle: what computes")
    parser.add_argument("--precision", metavar="P", help="with --bundle: precision variant, such as int8")
    parser.add_argument("--coverage", type=float, help="with --bundle: coverage of the prediction sets (0.9)")
    parser.add_argument(
        "--compare", metavar="OTHER.jsonl", type=Path, help="predictions of another run, to test against"
    )
    parser.add_argument("--json", metavar="F", type=Path, help="write all figures to this file")
    parser.add_argument("--report", metavar="F.html", type=Path, help="write a page with diagrams and examples")
    parser.add_argument(
        "--scoring",
        choices=("strict", "official"),
        default="strict",
        help="how answers are counted: by the grammar, or as the scripts published with EmoCaliber do",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluates and returns the exit status: 0, or 1 where an image of a bundle run could not be read.

    Raises:
        InputError: If samples or predictions cannot be used, or nothing is left to evaluate.
        EmoCaliberError: If the bundle or its engine does not load.
    """
    if arguments.predictions is not None and holds_responses(arguments.predictions):
        made = _evaluate_responses(arguments)
    else:
        made = _evaluate_samples(arguments)
    if arguments.report is not None:
        report = build_report(
            made.rows,
            made.scores,
            facts=_facts(arguments, made.outcomes),
            outcomes=made.outcomes,
            folders=_folders(arguments),
            other=None if arguments.compare is None else arguments.compare.name,
        )
        atomic_write(arguments.report, render_report(report))
    if arguments.json is None:
        sys.stdout.write(format_table(made.scores))
    else:
        atomic_write(arguments.json, json.dumps(made.scores, indent=1, allow_nan=False) + "\n")
    return made.status


def _evaluate_responses(arguments: argparse.Namespace) -> _Evaluation:
    _refuse_model_options(arguments)
    if arguments.split is not None:
        raise InputError("--split chooses samples; response lines have none, put those to evaluate in one file")
    if arguments.data is not None:
        _say("response lines hold their own labels: of --data only the folder is used, to find images")
    lines = _responses(arguments, arguments.predictions)
    if arguments.compare is None:
        return _score_responses(arguments, lines, [], [])
    others = _responses(arguments, arguments.compare)
    pairs = pair_responses(lines, others)
    if len(pairs) < max(len(lines), len(others)):
        _say(f"{len(pairs)} samples are in both runs, which have {len(lines)} and {len(others)}")
    return _score_responses(arguments, lines, [], pairs)


def _responses(arguments: argparse.Namespace, path: Path) -> list[ResponseLine]:
    lines = read_responses(path)
    if arguments.taxonomy is None:
        return lines
    task = canonical_task(arguments.taxonomy)
    lines = [line for line in lines if canonical_task(line.task) == task]
    if not lines:
        raise InputError(f"{path} holds no response of task {arguments.taxonomy!r}")
    return lines


def _score_responses(
    arguments: argparse.Namespace,
    lines: list[ResponseLine],
    outcomes: list[Outcome],
    pairs: list[tuple[ResponseLine, ResponseLine]],
    status: int = 0,
) -> _Evaluation:
    official = arguments.scoring == "official"
    make = make_official_row if official else make_response_row
    scores = score_official(lines) if official else score_strict_responses(lines)
    rows = [row for line in lines if (row := make(line)) is not None]
    if pairs:
        made = [(this, other) for one, two in pairs if (this := make(one)) and (other := make(two))]
        if not made:
            raise InputError("no line that both runs answer is left to compare")
        scores["comparison"] = compare_rows(made)
    return _Evaluation(scores=scores, rows=rows, outcomes=outcomes, status=status)


def _evaluate_samples(arguments: argparse.Namespace) -> _Evaluation:
    if arguments.data is None:
        raise InputError("--data is missing: give the samples file that the predictions are about")
    samples = _select(arguments)
    status = 0
    if arguments.bundle is None:
        _refuse_model_options(arguments)
        outcomes = _read(arguments, samples, arguments.predictions)
    else:
        outcomes = _predict(arguments, samples)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        for outcome in failed:
            _say(f"{outcome.sample.image}: {outcome.error}")
        status = 1 if failed else 0
    others = None if arguments.compare is None else _read(arguments, samples, arguments.compare)
    if arguments.scoring == "official":
        lines = responses_of(outcomes)
        pairs = [] if others is None else pair_responses(lines, responses_of(others))
        return _score_responses(arguments, lines, outcomes, pairs, status)
    scores = score_strict(outcomes)
    if others is not None:
        both = [(make_row(one), make_row(two)) for one, two in zip(outcomes, others, strict=True)]
        scores["comparison"] = compare_rows([(one, two) for one, two in both if one is not None and two is not None])
    rows = [row for outcome in outcomes if (row := make_row(outcome)) is not None]
    return _Evaluation(scores=scores, rows=rows, outcomes=outcomes, status=status)


def _read(arguments: argparse.Namespace, samples: list[Sample], path: Path) -> list[Outcome]:
    lines = read_predictions(path)
    outcomes, unused = match_predictions(samples, lines, (Path(), path.parent, arguments.data.parent))
    if unused:
        _say(f"{unused} of {len(lines)} predictions belong to no sample and are left out")
    return outcomes


def _folders(arguments: argparse.Namespace) -> tuple[Path, ...]:
    named = (arguments.predictions, arguments.data)
    return (Path(), *(path.parent for path in named if path is not None))


def format_table(scores: dict[str, Any]) -> str:
    """Returns the main figures as a plain text table: tasks, groups, all together, and any comparison.

    The row under each is what a constant for each task reaches.
    """
    entries = [*scores["tasks"].items(), *_filled(scores["groups"]), (_OVERALL, scores["overall"])]
    columns = [name for name in _TABLE if any(figures.get(name) is not None for _, figures in entries)]
    rows = [("task", "n", *columns)]
    for name, figures in entries:
        rows.append((name, str(figures["n"]), *(_cell(figures.get(column)) for column in columns)))
        if "baseline" in figures:
            rows.append((_CONSTANT, "", *(_cell(figures["baseline"].get(column)) for column in columns)))
    text = _aligned(rows)
    compared = scores.get("comparison")
    if compared is None:
        return text
    names = ("this", "other", "difference", "low", "high", "p")
    rows = [("compared", *names)]
    for name in COMPARED:
        if compared[name] is not None:
            rows.append((name, *(_cell(compared[name][column]) for column in names)))
    return text + "\n" + _aligned(rows)


def _filled(groups: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, figures) for name, figures in groups.items() if figures["n"]]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: list[tuple[str, ...]]) -> str:
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
    bundle = named_bundle(arguments.bundle)
    with EmotionModel.load(bundle, precision=arguments.precision, engine=arguments.engine or "auto") as model:
        outcomes = predict_samples(model, samples, mode=arguments.mode or "direct", coverage=coverage)
        return list(tqdm(outcomes, total=len(samples), unit="image", file=sys.stderr, disable=None))


def _facts(arguments: argparse.Namespace, outcomes: list[Outcome]) -> dict[str, str]:
    first = next((outcome.prediction for outcome in outcomes if outcome.prediction is not None), None)
    source = arguments.data if outcomes else arguments.predictions
    facts = {"data": source.name + (f", split {arguments.split}" if arguments.split else "")}
    facts["scoring"] = arguments.scoring
    if first is not None:
        facts["bundle"] = "{name} {version}".format(**first.bundle)
        facts["precision"] = first.bundle["precision"]
        facts["engine"] = first.bundle["engine"]
        facts["mode"] = first.mode
    return facts


def _say(message: str) -> None:
    sys.stderr.write(f"emocaliber evaluate: {message}\n")
