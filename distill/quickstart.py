"""``emocaliber quickstart``: the whole pipeline, small, on a CPU."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from emocaliber.runtime import EmotionModel
from emocaliber.train.recipe import load_recipe, shipped_recipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--out", type=Path, default=Path("quickstart-out"), metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="another recipe with every table (default: the one that ships)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one value of the recipe",
    )
    parser.add_argument("--predict", type=Path, metavar="IMAGE", help="end with a prediction for this image")


def run(arguments: argparse.Namespace) -> int:
    """Runs the pipeline, or finishes an interrupted one, and prints where its results are and what they say."""
    recipe = load_recipe(arguments.recipe or shipped_recipe("quickstart"), arguments.overrides)
    # Seconds to import, which help does without.
    from emocaliber.train.quiet import quiet_libraries

    from .pipeline import run_pipeline

    quiet_libraries()
    bundle = run_pipeline(recipe, arguments.out)
    metrics = json.loads((arguments.out / "metrics.json").read_text(encoding="utf-8"))
    sys.stdout.write(_summary(metrics, arguments.out))
    if arguments.predict is not None:
        with EmotionModel.load(bundle) as model:
            sys.stdout.write(f"\n{model.predict(arguments.predict)!r}\n")
    return 0


def _summary(metrics: dict[str, Any], out: Path) -> str:
    width = max(24, *map(len, metrics["stages"]))
    lines = [f"{'stage':<{width}} {'accuracy':>8} {'Bayes':>6} {'KL':>6} {'ECE':>6} {'Brier':>6} {'AUROC':>6} {'n':>5}"]
    for name, row in metrics["stages"].items():
        figures = [row.get(key) for key in ("accuracy", "bayes_accuracy", "kl", "ece", "brier", "auroc")]
        shown = [f"{'-' if value is None else format(value, '.3f'):>6}" for value in figures]
        lines.append(f"{name:<{width}}   {' '.join(shown)} {row['n']:>5}")
    lines.append("")
    for change in metrics["comparisons"]:
        low, high = change["interval"]
        difference = f"{change['difference']:+.4f} ({change['level']:.0%} interval {low:+.4f} to {high:+.4f})"
        lines.append(f"{change['title']}: {difference}")
    lines += [
        f"bundle:  {out / 'bundle'}",
        f"figures: {out / 'metrics.json'}",
        f"report:  {out / 'report.html'}",
    ]
    return "\n".join(lines) + "\n"
