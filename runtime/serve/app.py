"""The ASGI application: predictions, a stream of events, health, metrics, and one page for people."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from emocaliber.runtime.drift import UNUSUAL
from emocaliber.runtime.errors import ConfigError, EmoCaliberError, InputError
from emocaliber.runtime.grammar import ASKED_MODES, MODES
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.prediction import Prediction
from emocaliber.runtime.streaming import Provisional, Section
from emocaliber.runtime.taxonomy import TAXONOMIES

from .batching import Batcher, Full, Job
from .front import Front
from .metrics import Metrics
from .openapi import describe
from .questions import read_request
from .settings import Settings

RETRY_AFTER_S = 1
"""What a client that was sent away is told to wait, in seconds."""

COVERAGES = tuple(round(0.01 * step, 2) for step in range(50, 100))
"""Coverages for which a stream tells the size of the prediction set."""

_PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_LONGEST_MESSAGE = 500


def create_app(model: EmotionModel, settings: Settings) -> Starlette:
    """Returns the application. Its lifespan starts the worker, and at the end lets it finish what waits."""
    service = _Service(model, settings)
    routes = [
        Route("/v1/predict", service.predict, methods=["POST"]),
        Route("/v1/stream", service.stream, methods=["POST"]),
        Route("/v1/model", service.model, methods=["GET"]),
        Route("/healthz", service.health, methods=["GET"]),
        Route("/metrics", service.metrics_text, methods=["GET"]),
        Route("/openapi.json", service.openapi, methods=["GET"]),
        *(Route(path, _page, methods=["GET"]) for path in _PAGE),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Front, metrics=service.metrics, endpoints=frozenset(route.path for route in routes))],
        exception_handlers={HTTPException: _http_error, EmoCaliberError: _own_error, Exception: _unexpected},
        lifespan=service.lifespan,
    )


class _Service:
    """The endpoints, around one model and its worker."""

    def __init__(self, model: EmotionModel, settings: Settings) -> None:
        self._model = model
        self._settings = settings
        self.metrics = Metrics()
        self._batcher = Batcher(model, settings, self.metrics)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._batcher.start()
        yield
        await anyio.to_thread.run_sync(self._batcher.close)

    async def predict(self, request: Request) -> Response:
        job = await self._job(request)
        self._batcher.submit(job)
        with _time_limit(job.deadline, 504, self._settings):
            prediction = await asyncio.wrap_future(job.future)
        return Json(prediction.to_dict())

    async def stream(self, request: Request) -> Response:
        job = await self._job(request)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Provisional | Section | Future[Prediction]] = asyncio.Queue()

        def tell(event: Provisional | Section | Future[Prediction]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job.emit = tell
        job.future.add_done_callback(tell)
        self._batcher.submit(job)
        try:
            with _time_limit(job.deadline, 504, self._settings):
                first = await events.get()
            if isinstance(first, Future):
                first.result()  # what fails before the first event is an answer of its own
        except BaseException:
            job.abandon()
            raise
        return StreamingResponse(_lines(first, events, job), media_type="application/x-ndjson")

    async def model(self, _: Request) -> Response:
        manifest = self._model.manifest
        names = dict.fromkeys([manifest.default_taxonomy, *manifest.taxonomies, *TAXONOMIES])
        sets = [manifest.taxonomy(name) for name in names]
        calibrated = {
            each.name: [mode for mode in MODES if self._model.calibrator(each, mode) is not None] for each in sets
        }
        return Json(
            {
                "bundle": self._model.made_by,
                "default_taxonomy": manifest.default_taxonomy,
                "taxonomies": [
                    {"name": each.name, "labels": list(each.labels), "calibrated_modes": calibrated[each.name]}
                    for each in sets
                ],
                "modes": list(ASKED_MODES),
                "limits": {
                    "max_body_bytes": self._settings.max_body_bytes,
                    "max_pixels": self._settings.max_pixels,
                    "time_limit_s": self._settings.time_limit_s,
                    "capacity": self._settings.capacity,
                },
            }
        )

    async def health(self, _: Request) -> Response:
        alive = self._batcher.alive
        return Json({"status": "ok" if alive else "stopping"}, status_code=200 if alive else 503)

    async def metrics_text(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, _: Request) -> Response:
        return Json(describe(self._settings, version("emocaliber")))

    async def _job(self, request: Request) -> Job:
        """Returns the job of a request, which holds a place; the place is given back where reading fails.

        Raises:
            HTTPException: If all places are taken (503), or the upload takes too long (408) or is not as it should be.
            EmoCaliberError: If what is asked makes no sense.
        """
        try:
            self._batcher.admit()
        except Full as error:
            raise HTTPException(
                503, "the service is busy; try again shortly", headers={"Retry-After": str(RETRY_AFTER_S)}
            ) from error
        try:
            deadline = time.monotonic() + self._settings.time_limit_s
            with _time_limit(deadline, 408, self._settings):
                image, question = await read_request(request, self._settings.max_body_bytes)
            question.check(self._model.manifest)
        except BaseException:
            self._batcher.release()
            raise
        return Job(image=image, question=question, deadline=deadline)


class Json(JSONResponse):
    """JSON in ASCII, so that no text of a caller, lone surrogates included, can break an answer."""

    def render(self, content: Any) -> bytes:
        """Returns the encoded content."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode("ascii")


@contextmanager
def _time_limit(deadline: float, status: int, settings: Settings) -> Iterator[None]:
    """Ends the block at a deadline (on the clock of `time.monotonic`) and answers with an HTTP status then."""
    with anyio.move_on_after(max(0.0, deadline - time.monotonic())) as scope:
        yield
    if scope.cancelled_caught:
        raise HTTPException(status, f"this took longer than the {settings.time_limit_s:g} s a request may take")


async def _lines(
    first: Provisional | Section | Future[Prediction],
    events: asyncio.Queue[Provisional | Section | Future[Prediction]],
    job: Job,
) -> AsyncIterator[str]:
    """Yields one JSON line an event; the worker is told when the client has gone."""
    try:
        event = first
        while not isinstance(event, Future):
            yield _line(_event(event))
            event = await events.get()
        try:
            yield _line({"event": "final", **_judged(event.result())})
        except Exception as error:  # noqa: BLE001 - the status is sent: the error has to go the way of the events
            yield _line({"event": "error", "error": _error(type(error).__name__, str(error))})
    finally:
        job.abandon()


def _event(event: Provisional | Section) -> dict[str, Any]:
    if isinstance(event, Provisional):
        return {"event": "provisional", **_judged(event.prediction)}
    return {"event": "section", "tag": event.tag, "text": event.text, "elapsed_ms": round(event.elapsed_ms, 3)}


def _judged(prediction: Prediction) -> dict[str, Any]:
    """Returns a prediction and what a person needs to judge it that its record does not hold."""
    drift = prediction.drift
    return {
        "prediction": prediction.to_dict(),
        "set_sizes": [{"coverage": c, "size": len(prediction.prediction_set(c))} for c in COVERAGES],
        "calibrator": prediction.calibrator,
        "unusual_image": drift is not None and drift.p_value <= UNUSUAL,
        "out_of_time": prediction.out_of_time,
    }


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=True, allow_nan=False) + "\n"


def _error(kind: str, message: str) -> dict[str, str]:
    return {"type": kind, "message": message[:_LONGEST_MESSAGE]}


async def _page(request: Request) -> Response:
    name, kind = _PAGE[request.scope["route"].path]
    return Response((files(__package__) / "page" / name).read_bytes(), media_type=kind)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json({"error": _error("HTTPException", error.detail)}, status_code=error.status_code, headers=error.headers)


async def _own_error(_: Request, error: Exception) -> Response:
    status = 422 if isinstance(error, (InputError, ConfigError)) else 500
    return Json({"error": _error(type(error).__name__, str(error))}, status_code=status)


async def _unexpected(_: Request, __: Exception) -> Response:
    return Json({"error": _error("InternalError", "the service failed; its log says how")}, status_code=500)
