"""``emocaliber serve``: predictions over HTTP, and a page to look at."""

from __future__ import annotations

import argparse
import sys

from emocaliber.runtime.cli import EXIT_OK
from emocaliber.runtime.engine import ENGINES
from emocaliber.runtime.serve.app import create_app
from emocaliber.runtime.serve.server import is_loopback, serve
from emocaliber.runtime.serve.settings import Settings

from .console import write_text
from .inference import load_model

_DEFAULTS = Settings()


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``serve``."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any free one (default: 8000)")
    parser.add_argument("--bundle", metavar="B", help="as in 'predict' (default: the embedded bundle)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="what computes (default: auto)")
    parser.add_argument("--precision", metavar="P", help="precision variant of the bundle, such as int8 or fp32")
    parser.add_argument("--threads", metavar="N", type=int, help="processor threads (default: the engine decides)")
    limits = parser.add_argument_group("limits")
    for option, name, kind, text in (
        ("--max-body-bytes", "max_body_bytes", int, "size of a request"),
        ("--max-pixels", "max_pixels", int, "width times height of an image"),
        ("--time-limit", "time_limit_s", float, "seconds a request may take, upload and waiting included"),
        ("--capacity", "capacity", int, "requests taken on at once; more get 503"),
        ("--max-batch", "max_batch", int, "waiting images computed together"),
    ):
        default = getattr(_DEFAULTS, name)
        limits.add_argument(
            option, dest=name, metavar="N", type=kind, default=default, help=f"{text} (default: {default:g})"
        )


def run(arguments: argparse.Namespace) -> int:
    """Serves until asked to end; what was taken on is finished first."""
    settings = Settings(
        max_body_bytes=arguments.max_body_bytes,
        max_pixels=arguments.max_pixels,
        time_limit_s=arguments.time_limit_s,
        capacity=arguments.capacity,
        max_batch=arguments.max_batch,
    )
    with load_model(arguments) as model:
        model.warm_up()
        made_by = f"{model.manifest.name} {model.manifest.version} ({model.precision}, {model.engine})"

        def ready(address: str) -> None:
            write_text(f"emocaliber: {made_by} at {address}, end with Ctrl+C", sys.stderr)
            if not is_loopback(arguments.host):
                write_text(
                    "emocaliber: this is open to the network, without passwords or encryption; put a proxy that has "
                    "them in front",
                    sys.stderr,
                )

        serve(create_app(model, settings), settings, host=arguments.host, port=arguments.port, ready=ready)
    return EXIT_OK
