"""A real HTTP server on this machine that answers chat completions as a script says."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass(kw_only=True)
class Reply:
    """What the server does with one request."""

    texts: tuple[str, ...] = ()
    """One choice each; ignored where there is a body."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    wait_s: float = 0.0
    """Silence before the answer."""
    cut: bool = False
    """Whether the connection breaks in the middle of the answer."""

    def encoded(self) -> bytes:
        if self.body is not None:
            return self.body
        choices = [{"index": i, "message": {"role": "assistant", "content": t}} for i, t in enumerate(self.texts)]
        return json.dumps({"object": "chat.completion", "choices": choices}).encode()


Script = Callable[[dict[str, Any], int], Reply]
"""``script(body, number)`` returns the reply to the request with this number, counted from 0."""


@dataclass(kw_only=True)
class ChatServer:
    """What the server has seen."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    """Monotonic time of each request, in seconds."""
    most_at_once: int = 0


@contextmanager
def chat_server(script: Script) -> Iterator[ChatServer]:
    """Yields the server while it runs."""
    lock = threading.Lock()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # one packet an answer, which a client need not acknowledge half-way

        def do_POST(self) -> None:
            nonlocal busy
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.bodies)
                seen.bodies.append(body)
                seen.headers.append(dict(self.headers))
                seen.paths.append(self.path)
                seen.at.append(time.monotonic())
                busy += 1
                seen.most_at_once = max(seen.most_at_once, busy)
            try:
                self.answer(script(body, number))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    busy -= 1

        do_GET = do_POST  # noqa: N815 - what a followed redirect would ask with

        def answer(self, reply: Reply) -> None:
            time.sleep(reply.wait_s)
            data = reply.encoded()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if reply.cut else data)
            self.close_connection = self.close_connection or reply.cut

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    seen = ChatServer(url=f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def text_of(body: dict[str, Any]) -> str:
    """Returns the text of a request's user turn."""
    return "".join(part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text")


def image_of(body: dict[str, Any]) -> Image.Image:
    """Returns the picture of a request, which must be a JPEG in a data URL."""
    urls = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    assert len(urls) == 1
    kind, _, data = urls[0].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["JPEG"])
