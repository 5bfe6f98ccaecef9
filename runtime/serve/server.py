"""Listening: one process, one model, a clean start and a clean end."""

from __future__ import annotations

import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from emocaliber.runtime.errors import ConfigError

from .settings import Settings

_GRACE_S = 5.0
"""What is left after a request's time limit to write its answer, in seconds."""


def serve(app: Starlette, settings: Settings, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until the process is asked to end (SIGTERM or SIGINT), then finishes what it has taken on.

    Args:
        app: What `create_app` returned.
        settings: The limits of the same service.
        host: Address or name to listen on.
        port: Port to listen on; 0 lets the system choose.
        ready: Told the address, once it is listened on.

    Raises:
        ConfigError: If the address cannot be listened on.
    """
    listener = _listen(host, port)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else any malformed form writes to the log
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.time_limit_s + _GRACE_S),
    )
    with listener, _signals_end_quietly():
        ready(address(listener))
        uvicorn.Server(config).run(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(listener: socket.socket) -> str:
    """Returns the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        return socket.create_server((str(place[0]), port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose others with --host, --port"
        ) from error


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Lets the signals that end the service do nothing more: uvicorn raises them again when it has ended."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
