"""Quart-Trio as a carrier: it reads a request's body and writes the reply; everything between is `answer`.

Quart's own routing, error pages and timeouts stay out of the way, so that any carrier serves the same bytes.
"""

from __future__ import annotations

from typing import cast
from urllib.parse import urlsplit

import trio
from hypercorn.typing import HTTPScope
from quart import Response, request
from quart.wrappers import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge

from fluxora.errors import PayloadTooLarge
from fluxora.http.answer import Head, answer
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply

_TOO_LARGE = "The body is too large"


class _App(QuartTrio):
    """Quart without its URL routing, which would refuse requests by the Host header before we see them."""

    def create_url_adapter(self, _request: BaseRequestWebsocket | None) -> None:
        """No routing."""


def create_app(backend: Backend) -> QuartTrio:
    """The application; it keeps nothing between requests and needs no lifespan."""
    app = _App("fluxora", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = backend.config.max_body_bytes
    app.config["BODY_TIMEOUT"] = None  # `answer` bounds it
    app.config["RESPONSE_TIMEOUT"] = None  # would cut long replies; the connection bounds a stalled reader

    async def serve() -> Response:
        """Stands before Quart's routing and always answers, so that routing never happens there."""
        body = _Body(backend.config.max_body_bytes)
        reply = await answer(backend, _head(), body.read)
        if backend.stopping.is_set() or not body.ended:
            reply = Reply(reply.status, (*reply.headers, ("connection", "close")), reply.body)
        return _response(reply)

    app.before_request(serve)
    return app


def _head() -> Head:
    scope = cast("HTTPScope", request.scope)  # an upgrade never becomes a WebSocket here
    return Head(
        method=scope["method"],
        raw_path=_path_of(scope["raw_path"].decode("latin-1")),
        query_string=scope["query_string"].decode("latin-1"),
        headers=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]),
        client=(scope.get("client") or ("",))[0],
    )


def _path_of(target: str) -> str:
    """The path of a request target: itself, or part of a whole URL, which clients send to proxies (RFC 9112 3.2.2)."""
    if target.startswith("/"):
        return target
    try:
        return urlsplit(target).path
    except ValueError:
        return ""  # is nowhere


class _Body:
    """The request's body. `ended` is False while some of it is unread: the connection cannot carry a next request."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.ended = "content-length" not in request.headers and "transfer-encoding" not in request.headers

    async def read(self) -> bytes:
        """The whole body, counted here: Quart's own bound does not hold for chunked bodies in all of its versions.

        Raises:
            PayloadTooLarge: its announced or its actual length is over the bound.
        """
        body = bytearray()
        try:
            if not self.ended:
                async for chunk in request.body:
                    body += chunk
                    if len(body) > self._max_bytes:
                        break
        except RequestEntityTooLarge as error:
            raise PayloadTooLarge(_TOO_LARGE) from error
        except Exception:
            # A client that leaves is an exception of Quart's own here, raised as this task is cancelled: the latter
            # counts.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        if len(body) > self._max_bytes:
            raise PayloadTooLarge(_TOO_LARGE)
        self.ended = True
        return bytes(body)


def _response(reply: Reply) -> Response:
    response = Response(reply.body, status=reply.status)
    response.headers = Headers(list(reply.headers))
    if reply.status != 304:  # for a 304 it would name the length of another representation
        response.headers["content-length"] = str(len(reply.body))
    return response
