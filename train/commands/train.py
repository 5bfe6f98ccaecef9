"""``emocaliber train vision|reason|annotate|verbalize|calibrate|respond RECIPE``.

What a stage needs takes seconds to import: it is left to `run`, so that help comes at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emocaliber.train.recipe import Recipe, load_recipe

_HELP = {
    "vision": "before stage 1, for models built from scratch: teach the vision tower to see",
    "reason": "stage 1: supervised fine-tuning on reasoning and answer",
    "annotate": "confidence labels: how often the stage-1 model is right about each image",
    "verbalize": "stage 2: supervised fine-tuning on a stated confidence after the answer",
    "calibrate": "stage 3: GRPO, until the stated confidence means what it says",
    "respond": "a stage's responses to held-out samples, for 'emocaliber evaluate --predictions'",
}
_EXAMPLES = """examples:
  emocaliber train {stage} recipes/emocaliber-7b/recipe.toml
  emocaliber train {stage} recipes/quickstart/recipe.toml --out runs/mine --set seed=1 --set reason.learning_rate=1e-3
  emocaliber train {stage} RECIPE --resume        after a kill: goes on at the newest checkpoint, with the same result

The folder of a run gets one folder a stage, with weights, stage.json, TensorBoard logs and curves.svg.
"""

_ALONE = ("vision",)
"""Stages of models so small that one process is enough."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the stages and their arguments."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, text in _HELP.items():
        stage = stages.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EXAMPLES.format(stage=name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_recipe_arguments(stage)


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
    """Runs one stage, in as many processes as the recipe says, and prints the folder or file it left."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from emocaliber.train.launch import in_place, launch, launched
    from emocaliber.train.quiet import quiet_libraries

    quiet_libraries()
    if launched():
        in_place(lambda: _run_stage(arguments, recipe))
    elif recipe.launch.processes > 1 and arguments.stage not in _ALONE:
        launch(recipe.launch, _words(arguments))
    else:
        _run_stage(arguments, recipe)
    return 0


def _run_stage(arguments: argparse.Namespace, recipe: Recipe) -> None:
    # Not needed by a process that only starts others.
    from emocaliber.train.launch import processes
    from emocaliber.train.stages import STAGES
    from emocaliber.train.workspace import Workspace

    workspace = Workspace(arguments.out or Path("runs") / recipe.name)
    result = STAGES[arguments.stage](recipe, workspace, resume=arguments.resume)
    if processes().is_main_process:
        sys.stdout.write(f"{result if isinstance(result, Path) else result.folder}\n")


def _words(arguments: argparse.Namespace) -> list[str]:
    """Returns the command line that these arguments were read from."""
    words = ["train", arguments.stage, str(arguments.recipe), *(f"--set={change}" for change in arguments.overrides)]
    if arguments.out is not None:
        words.append(f"--out={arguments.out}")
    return [*words, "--resume"] if arguments.resume else words
