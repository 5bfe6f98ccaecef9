"""``emocaliber predict``: the emotion distribution of images, for people or as JSON lines."""

from __future__ import annotations

import argparse
import sys

from emocaliber.runtime.cli import EXIT_ERROR, EXIT_OK
from emocaliber.runtime.prediction import Prediction

from .console import write_text
from .inference import (
    Unreadable,
    add_prediction_arguments,
    candidates_of,
    json_line,
    load_model,
    predict_path,
    question_of,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``predict``."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    add_prediction_arguments(parser, auto=True)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Writes one prediction an image; returns 1 if any image could not be read, after all others were predicted.

    What the calibrator does not cover is said once, on standard error.
    """
    question = question_of(arguments)
    status = EXIT_OK
    told: set[str | None] = {None}
    with load_model(arguments) as model:
        candidates_of(model, question)
        for path in arguments.images:
            result = predict_path(model, path, question)
            if isinstance(result, Unreadable):
                status = EXIT_ERROR
            elif result.out_of_scope not in told:
                told.add(result.out_of_scope)
                write_text(f"emocaliber: outside the calibration: {result.out_of_scope}", sys.stderr)
            if arguments.json:
                write_text(json_line(result))
            else:
                _show(result)
    return status


def _show(result: Prediction | Unreadable) -> None:
    if isinstance(result, Unreadable):
        write_text(f"emocaliber: {result.error}", sys.stderr)
    else:
        write_text(result.describe() + "\n")
