"""``emocaliber distill STAGE RECIPE``; what a stage needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emocaliber.train.commands.train import add_recipe_arguments
from emocaliber.train.recipe import load_recipe

_HELP = {
    "collect": "the teacher's traces: what it writes, and how probable it finds every label",
    "train": "the student: sequence and label-distribution distillation",
    "on-policy": "the student on its own responses, token by token towards the teacher",
    "ground": "the student's stated confidence, towards how often the student itself is right",
    "calibrate": "calibrators and conformal thresholds, fitted on the exported graphs",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the stages and their arguments."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, text in _HELP.items():
        add_recipe_arguments(stages.add_parser(name, help=text, description=text[0].upper() + text[1:]))


def run(arguments: argparse.Namespace) -> int:
    """Runs one stage and prints the folder it left."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from emocaliber.train.quiet import quiet_libraries
    from emocaliber.train.workspace import Workspace

    from .stages import STAGES

    quiet_libraries()
    workspace = Workspace(arguments.out or Path("runs") / recipe.name)
    result = STAGES[arguments.stage](recipe, workspace, resume=arguments.resume)
    sys.stdout.write(f"{result if isinstance(result, Path) else result.folder}\n")
    return 0
