"""A model behind an OpenAI-compatible endpoint that answers questions about images; vLLM and others serve one."""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from emocaliber.runtime.errors import BackendError, ConfigError, InputError
from emocaliber.runtime.images import decode_image

from .responders import Drawing, Request

API_KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable whose key is sent where none is named."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may yet succeed."""
_REFUSED = (400, 413, 422)
"""HTTP statuses by which an endpoint refuses this one request."""
_MAX_ANSWER_BYTES = 2**24
_SHOWN = 300
"""Characters of an endpoint's own message that ours repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model is served and how patiently it is asked."""

    url: str
    """Base of the interface, such as ``http://localhost:8000/v1``."""
    model: str
    """Name of the model there."""
    api_key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; None sends none."""
    concurrency: int = 8
    """Requests in flight at once."""
    retries: int = 5
    """How often a request is sent again after a failure that may pass."""
    timeout_s: float = 120.0
    """Longest silence of the endpoint, in seconds."""
    backoff_s: float = 1.0
    """Wait before the first repetition, in seconds; doubled each time, and drawn from the upper half of that."""
    max_wait_s: float = 120.0
    """Longest wait before a repetition, also where the endpoint asks for a longer one."""
    max_edge: int = 1024
    """Longest side, in pixels, in which images are sent."""
    jpeg_quality: int = 92
    """Quality, 1 to 95, in which they are encoded."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"endpoint is {self.url!r}, expected a URL such as http://localhost:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ConfigError("the endpoint's URL holds a user, a password, a query or a fragment; give the plain base")
        if not self.model.strip():
            raise ConfigError("the endpoint needs the name of a model it serves")
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.isprintable()):
            raise ConfigError("the API key holds characters that no header can carry; look for a line break in it")
        limits = {"concurrency": 1, "retries": 0, "timeout_s": 0.001, "backoff_s": 0, "max_wait_s": 0, "max_edge": 16}
        for name, least in limits.items():
            if not least <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} of the endpoint is {getattr(self, name)!r}, expected at least {least}")
        if not 1 <= self.jpeg_quality <= 95:
            raise ConfigError(f"jpeg_quality is {self.jpeg_quality}, expected 1 to 95")


def default_api_key(url: str) -> str | None:
    """Returns the key in `API_KEY_VARIABLE`; None without one, or if it would go unencrypted to another machine."""
    parts = urlsplit(url)
    private = parts.scheme == "https" or parts.hostname in LOOPBACK
    return (os.environ.get(API_KEY_VARIABLE, "").strip() or None) if private else None


class EndpointResponder:
    """Answers questions about images with a model behind an endpoint, several at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Prepares the responder; nothing is sent before the first question."""
        self.name = f"{endpoint.model} at {endpoint.url.rstrip('/')}"
        self._endpoint = endpoint
        self._opener = urllib.request.build_opener(_NoRedirect())

    def respond(self, requests: Sequence[Request], drawing: Drawing) -> list[list[str]]:
        """Returns ``drawing.count`` responses for each request, in order.

        Args:
            requests: Questions about images, which are sent as JPEG within the endpoint's ``max_edge``.
            drawing: How responses are drawn; ``drawing.seed`` is sent along, and not every endpoint heeds it.

        Raises:
            InputError: If an image cannot be read, or the endpoint refuses this request but may answer others.
            BackendError: If the endpoint cannot be reached, fails time and again, refuses the key, or answers with
                something that is no chat completion.
        """
        stopped = threading.Event()
        failures: list[Exception] = []

        def ask(request: Request) -> list[str]:
            try:
                return self._respond(request, drawing, stopped)
            except Exception as error:
                failures.append(error)
                stopped.set()
                raise

        with ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="endpoint") as pool:
            try:
                return list(pool.map(ask, requests))
            except BaseException:
                stopped.set()
                if failures:
                    raise failures[0]  # noqa: B904 - the others were only given up because of this one
                raise

    def _respond(self, request: Request, drawing: Drawing, stopped: threading.Event) -> list[str]:
        texts: list[str] = []
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": _messages(request, self._endpoint),
            "temperature": drawing.temperature,
            "max_tokens": drawing.max_new_tokens,
        }
        while len(texts) < drawing.count:  # some endpoints return one choice whatever n is
            body.update(n=drawing.count - len(texts), seed=drawing.seed + len(texts))
            texts += _texts(self._send(body, str(request.image), stopped), self._endpoint.url)
        return texts[: drawing.count]

    def _send(self, body: dict[str, Any], image: str, stopped: threading.Event) -> bytes:
        """Returns the body of the endpoint's answer, after as many repetitions as it takes and the endpoint allows."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "emocaliber"}
        if self._endpoint.api_key is not None:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        data = json.dumps(body).encode()
        fault = ""
        for repetition in range(self._endpoint.retries + 1):
            if stopped.is_set():
                break
            asked_wait = None
            try:
                return self._post(urllib.request.Request(url, data, headers))  # noqa: S310 - scheme checked
            except urllib.error.HTTPError as error:
                with error:
                    fault = _http_fault(error)
                    _raise_lasting(error, fault, url, image)
                    asked_wait = _retry_after(error.headers.get("Retry-After"))
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                fault = _connection_fault(error, self._endpoint.timeout_s)
            if repetition < self._endpoint.retries:
                stopped.wait(self._wait(repetition, asked_wait))
        else:
            raise BackendError(
                f"endpoint {url} failed {self._endpoint.retries + 1} times, at last with: {fault}; "
                "see that it runs and is not overloaded, or allow more retries, a longer timeout or less concurrency"
            )
        raise BackendError(f"endpoint {url}: given up, because another request failed")

    def _post(self, request: urllib.request.Request) -> bytes:
        with self._opener.open(request, timeout=self._endpoint.timeout_s) as answer:
            body: bytes = answer.read(_MAX_ANSWER_BYTES + 1)
            missing: int | None = answer.length
        if len(body) > _MAX_ANSWER_BYTES:
            raise BackendError(f"endpoint {request.full_url} answered with more than {_MAX_ANSWER_BYTES} bytes")
        if missing:  # a read of limited size does not notice by itself that the connection broke
            raise http.client.IncompleteRead(body, missing)
        return body

    def _wait(self, repetition: int, asked: float | None) -> float:
        """Returns the seconds to wait before the next repetition; jitter keeps threads from coming back all at once."""
        wait: float = self._endpoint.backoff_s * 2**repetition * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return min(wait if asked is None else max(asked, wait), self._endpoint.max_wait_s)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: key and images go to the host that was named, or nowhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _messages(request: Request, endpoint: Endpoint) -> list[dict[str, Any]]:
    """Returns the turns of a request, the image as a data URL."""
    picture = {"type": "image_url", "image_url": {"url": _data_url(request, endpoint)}}
    messages = request.conversation()
    for message in messages:
        message["content"] = [picture if part["type"] == "image" else part for part in message["content"]]
        if message["role"] == "system":  # some endpoints take a system turn as plain text only
            message["content"] = request.system
    return messages


def _data_url(request: Request, endpoint: Endpoint) -> str:
    picture = Image.fromarray(decode_image(request.image))
    picture.thumbnail((endpoint.max_edge, endpoint.max_edge), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=endpoint.jpeg_quality)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _texts(body: bytes, url: str) -> list[str]:
    """Returns the text of each choice; a choice without text, as a content filter leaves it, is empty.

    Raises:
        BackendError: If the body is no chat completion.
    """
    try:
        choices = json.loads(body)["choices"]
        texts = [choice["message"].get("content") or "" for choice in choices]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError("no text in it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        shown = body[:_SHOWN].decode("utf-8", "replace")
        raise BackendError(
            f"endpoint {url} answered with no chat completion ({type(error).__name__}: {error}) but with {shown!r}; "
            "check that the URL is the base of an OpenAI-compatible interface, such as http://localhost:8000/v1"
        ) from error
    return texts


def _raise_lasting(error: urllib.error.HTTPError, fault: str, url: str, image: str) -> None:
    """Raises for a status after which sending the same request again is useless."""
    if error.code in RETRIED:
        return
    if error.code in _REFUSED:
        raise InputError(f"endpoint {url} refuses the request about image {image}: {fault}") from error
    hints = {
        401: "the key is missing or wrong; name the environment variable that holds it",
        403: "the key may not use this model",
        404: "check the URL, which usually ends in /v1, and the name of the model",
    }
    redirect = f"it redirects to {error.headers.get('Location')}, which is not followed; give the final URL"
    hint = redirect if 300 <= error.code < 400 else hints.get(error.code, "see the endpoint's log")
    raise BackendError(f"endpoint {url} answered: {fault}; {hint}") from error


def _http_fault(error: urllib.error.HTTPError) -> str:
    try:
        said = error.read(_SHOWN * 4).decode("utf-8", "replace").strip()[:_SHOWN]
    except (OSError, http.client.HTTPException):
        said = ""
    return f"HTTP {error.code} {error.reason}" + (f" ({said})" if said else "")


def _connection_fault(error: Exception, timeout_s: float) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)


def _retry_after(header: str | None) -> float | None:
    """Returns the seconds that a Retry-After header, seconds or a date, asks to wait, or None."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
