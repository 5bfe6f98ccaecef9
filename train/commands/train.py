"""``emocaliber train vision|reason|annotate|verbalize|calibrate RECIPE``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emocaliber.train.quiet import quiet_libraries
from emocaliber.train.recipe import load_recipe
from emocaliber.train.stages import STAGES
from emocaliber.train.workspace import Workspace

_HELP = {
    "vision": "before stage 1, for models built from scratch: teach the vision tower to see",
    "reason": "stage 1: supervised fine-tuning on reasoning and answer",
    "annotate": "confidence labels: how often the stage-1 model is right about each image",
    "verbalize": "stage 2: supervised fine-tuning on a stated confidence after the answer",
    "calibrate": "stage 3: GRPO, until the stated confidence means what it says",
    "respond": "a stage's responses to held-out samples, for 'emocaliber evaluate --predictions'",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the stages and their arguments."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name in STAGES:
        add_recipe_arguments(stages.add_parser(name, help=_HELP[name], description=_HELP[name]))


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that runs a recipe takes."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="TOML file; see the folder recipes/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one value of the recipe",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME of the recipe)")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=False, help="continue an unfinished run"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs one stage and prints the folder or file it left."""
    quiet_libraries()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    workspace = Workspace(arguments.out or Path("runs") / recipe.name)
    result = STAGES[arguments.stage](recipe, workspace, resume=arguments.resume)
    sys.stdout.write(f"{result if isinstance(result, Path) else result.folder}\n")
    return 0
