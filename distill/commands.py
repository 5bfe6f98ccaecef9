"""``emocaliber distill collect|train|calibrate RECIPE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from emocaliber.train.commands.train import add_recipe_arguments
from emocaliber.train.quiet import quiet_libraries
from emocaliber.train.recipe import load_recipe
from emocaliber.train.run import Stage
from emocaliber.train.workspace import Workspace

from .stages import run_collect, run_fit, run_student

_STAGES: dict[str, tuple[Callable[..., Stage | Path], str]] = {
    "collect": (run_collect, "the teacher's traces: what it writes, and how probable it finds every label"),
    "train": (run_student, "the student: sequence and label-distribution distillation"),
    "calibrate": (run_fit, "calibrators and conformal thresholds, fitted on the exported graphs"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the stages and their arguments."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, (_, text) in _STAGES.items():
        add_recipe_arguments(stages.add_parser(name, help=text, description=text[0].upper() + text[1:]))


def run(arguments: argparse.Namespace) -> int:
    """Runs one stage and prints the folder it left."""
    quiet_libraries()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    workspace = Workspace(arguments.out or Path("runs") / recipe.name)
    step, _ = _STAGES[arguments.stage]
    result = step(recipe, workspace, resume=arguments.resume)
    sys.stdout.write(f"{result if isinstance(result, Path) else result.folder}\n")
    return 0
