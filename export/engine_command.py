"""``emocaliber export tensorrt``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import BackendError, ConfigError, EmoCaliberError, ExportError
from emocaliber.runtime.tensorrt.bindings import Target, named_target, tensorrt_library
from emocaliber.runtime.tensorrt.cache import EngineLimits
from emocaliber.runtime.tensorrt.engine import local_target
from emocaliber.runtime.tensorrt.memory import cuda_runtime

from .tensorrt import UnsupportedGraphError, build_engines


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    usual = EngineLimits()
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder; engines are put beside it")
    parser.add_argument(
        "--precision", action="append", metavar="P", help="repeat for more (default: all that TensorRT can read)"
    )
    parser.add_argument(
        "--target", metavar="SM89", help="with TensorRT-RTX: build for a GPU that need not be in this machine"
    )
    parser.add_argument(
        "--batch", type=int, default=usual.batch, metavar="N", help=f"most images of one pass (default {usual.batch})"
    )
    parser.add_argument(
        "--text-tokens",
        type=int,
        default=usual.text_tokens,
        metavar="N",
        help=f"most tokens of a prompt or of all labels, the image apart (default {usual.text_tokens})",
    )
    parser.add_argument("--rebuild", action="store_true", help="build anew what is up to date")
    parser.set_defaults(action_run=run)


def run(arguments: argparse.Namespace) -> int:
    """Builds what is not up to date, writes a line for each precision, and returns 0.

    Raises:
        EmoCaliberError: If the bundle, the library or the GPU cannot be used, or nothing could be built.
    """
    limits = EngineLimits(batch=arguments.batch, text_tokens=arguments.text_tokens)
    if arguments.bundle.is_file():
        raise ConfigError(f"{arguments.bundle} is a file; unpack it, so that engines can stand beside its folder")
    with Bundle.open(arguments.bundle) as bundle:
        wanted = [bundle.manifest.precision(name) for name in arguments.precision or bundle.manifest.precisions]
        library = tensorrt_library()
        target = _target(library, arguments.target)
        refused: dict[str, EmoCaliberError] = {}
        for precision in dict.fromkeys(wanted):
            try:
                built = build_engines(
                    bundle, precision, library=library, target=target, limits=limits, rebuild=arguments.rebuild
                )
            except UnsupportedGraphError as error:
                if arguments.precision:
                    raise
                refused[precision] = error
                sys.stdout.write(f"{precision}: not built: {error}\n")
                continue
            state = "up to date" if built.seconds is None else f"built in {built.seconds:.0f} s"
            sys.stdout.write(f"{precision}: {state}, {built.size_bytes:,} bytes: {built.folder}\n")
        if len(refused) == len(wanted):
            raise ExportError(f"TensorRT can read no precision of {bundle.manifest.name} ({', '.join(refused)})")
    return 0


def _target(library: Any, name: str | None) -> Target:
    if name is not None:
        return named_target(library, name)
    try:
        return local_target(library, cuda_runtime())
    except BackendError as error:
        raise BackendError(
            f"{error}; build engines on the device that runs them or, with TensorRT-RTX, for a --target such as SM89"
        ) from error
