"""The ``emocaliber`` command: finds the subcommand, imports its layer on demand, turns errors into messages."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType

from .errors import DependencyError, EmoCaliberError

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand and the module that implements it.

    The module offers ``configure(parser)``, which adds its arguments, and ``run(arguments) -> int``, the exit status.
    It is imported only when its command was asked for, so ``emocaliber predict`` never loads a training library.
    """

    module: str
    extra: str | None
    help: str


COMMANDS = {
    "predict": Command("emocaliber.runtime.commands.predict", None, "the emotion distribution of images"),
    "batch": Command("emocaliber.runtime.commands.batch", None, "predictions for folders, tars or samples files"),
    "serve": Command("emocaliber.runtime.commands.serve", "serve", "predictions over HTTP, and a page to look at"),
    "bundle": Command("emocaliber.runtime.commands.bundle", None, "look into a bundle, check its files, calibrate it"),
    "bench": Command("emocaliber.runtime.commands.bench", None, "time and memory of a bundle on this machine"),
    "doctor": Command("emocaliber.runtime.commands.doctor", None, "what is installed, what is missing, what to do"),
    "evaluate": Command("emocaliber.evaluate.commands", "evaluate", "accuracy and calibration of predictions"),
    "data": Command("emocaliber.train.commands.data", "train", "import and check samples"),
    "train": Command("emocaliber.train.commands.train", "train", "the teacher's stages: reason, verbalize, calibrate"),
    "distill": Command("emocaliber.distill.commands", "train", "from the teacher to a small student"),
    "export": Command("emocaliber.export.commands", "export", "ONNX graphs, their proof, and the bundle"),
    "quickstart": Command("emocaliber.distill.quickstart", "train,export", "the whole pipeline, small, on a CPU"),
}


def build_parser(selected: str | None) -> argparse.ArgumentParser:
    """Returns the parser with the selected subcommand's arguments, and a line of help for every other.

    Raises:
        DependencyError: If the selected command's optional packages are not installed.
    """
    parser = argparse.ArgumentParser(
        prog="emocaliber", description="The emotion an image evokes, as a calibrated probability distribution."
    )
    parser.add_argument("--version", action="version", version=f"emocaliber {version('emocaliber')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        title = command.help[0].upper() + command.help[1:]
        subparser = subparsers.add_parser(name, help=command.help, description=title)
        if name == selected:
            module = load_command(name, command)
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def load_command(name: str, command: Command) -> ModuleType:
    """Returns the module of a command, imported now.

    Raises:
        DependencyError: If its optional packages are not installed; the message says how to get them.
    """
    with _naming_what_is_missing(name, command), _leaving_at_once():
        return importlib.import_module(command.module)


@contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process without ceremony: an exception is dropped or garbled by some modules that load."""

    def leave(*_: object) -> None:
        os.write(2, b"emocaliber: interrupted\n")
        os._exit(EXIT_INTERRUPTED)

    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not own or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _naming_what_is_missing(name: str, command: Command) -> Iterator[None]:
    """Turns a failed import of an optional package into an error that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if command.extra is None or error.name is None or error.name.startswith("emocaliber"):
            raise
        raise DependencyError(
            f"'emocaliber {name}' needs {error.name}, which is not installed; "
            f"run: pip install 'emocaliber[{command.extra}]'"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 1 failed with a message, 2 wrong usage."""
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        selected = next((word for word in words if not word.startswith("-")), None)
        arguments = build_parser(selected if selected in COMMANDS else None).parse_args(words)
        # Commands import what takes seconds only when they run.
        with _naming_what_is_missing(arguments.command, COMMANDS[arguments.command]):
            status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except EmoCaliberError as error:
        print(f"emocaliber: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output has gone: nothing is left to say, and nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_ERROR
        reason = error.strerror or str(error) or type(error).__name__
        print(f"emocaliber: error: {reason}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        return EXIT_ERROR
    except (KeyboardInterrupt, ImportError) as error:
        if not _interrupted(error):
            raise
        print("emocaliber: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _interrupted(error: BaseException | None) -> bool:
    """Returns whether Ctrl-C is at the root of an error: compiled modules turn it into an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


if __name__ == "__main__":
    sys.exit(main())
