"""What stands before every endpoint: counting, security headers, and no service to other sites' pages."""

from __future__ import annotations

import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Sent with every answer. The page needs nothing that the policy forbids, so a fault in it can load nothing either."""

_CLIENT_GONE = 499


class Front:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, endpoints: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and counts its answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.monotonic()
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, text in HEADERS.items():
                    headers[name] = text
            await send(message)

        app = _refuse if _comes_from_another_site(scope) else self._app
        try:
            await app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = _CLIENT_GONE
        finally:
            endpoint = scope["path"] if scope["path"] in self._endpoints else "other"
            self._metrics.answered(endpoint, status, time.monotonic() - started)


def _comes_from_another_site(scope: Scope) -> bool:
    """Returns whether a browser sends this for another site's page, which could else use a service on loopback."""
    return scope["method"] == "POST" and Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site")


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    content: dict[str, Any] = {"type": "HTTPException", "message": "pages of other sites may not use this service"}
    await JSONResponse({"error": content}, status_code=403)(scope, receive, send)
