"""Runs stages one after the other, in a launcher's process: ``run_stages.py CHUNK RECIPE OUT:STAGE[:KEY=VALUE]...``."""

from __future__ import annotations

import sys
from pathlib import Path

from emocaliber.train import respond
from emocaliber.train.launch import in_place
from emocaliber.train.quiet import quiet_libraries
from emocaliber.train.recipe import load_recipe
from emocaliber.train.stages import STAGES
from emocaliber.train.workspace import Workspace


def main(chunk: str, recipe: str, *runs: str) -> None:
    quiet_libraries()
    # Small enough that a few images make several.
    respond.CHUNK = int(chunk)
    for run in runs:
        out, stage, *overrides = run.split(":")
        STAGES[stage](load_recipe(Path(recipe), overrides), Workspace(Path(out)))


if __name__ == "__main__":
    in_place(lambda: main(*sys.argv[1:]))
