"""Quart-Trio as a carrier: it reads a request's body and writes the reply; everything between is an `Answer`.

Quart's own routing, error pages and timeouts stay out of the way, so that any carrier serves the same bytes.
"""

from __future__ import annotations

from typing import cast

import trio
from hypercorn.typing import HTTPScope
from quart import Response, request
from quart.wrappers import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge

from fluxora.errors import PayloadTooLarge
from fluxora.http.answer import Answer
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply
from fluxora.http.replies import headers_of
from fluxora.http.request_head import RequestHead, origin_form

PROCEED = "proceed"
"""In the scope's state: to be awaited before the body, for clients that hold it back until they are told to go on."""

_TOO_LARGE = "The body is too large"


class _App(QuartTrio):
    """Quart without its URL routing, which would refuse requests by the Host header before we see them."""

    def create_url_adapter(self, _request: BaseRequestWebsocket | None) -> None:
        """No routing."""


def create_app(backend: Backend) -> QuartTrio:
    """The application; it keeps nothing between requests and needs no lifespan."""
    app = _App("fluxora", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = backend.config.max_body_bytes
    app.config["BODY_TIMEOUT"] = None  # `Answer` bounds it
    app.config["RESPONSE_TIMEOUT"] = None  # would cut long replies; the connection bounds a stalled reader

    async def serve() -> Response:
        """Stands before Quart's routing and always answers, so that routing never happens there."""
        head, peer = _head(), (request.scope.get("client") or ("",))[0]
        body = _Body(head, backend.config.max_body_bytes)
        answer = Answer(backend, head, peer)
        reply = answer.at_once(b"" if body.ended else None)
        if reply is None:
            reply = await answer.in_time(body.read)
        return _response(
            reply, answer.request_id, close=not (head.persistent and body.ended) or backend.stopping.is_set()
        )

    app.before_request(serve)
    return app


def _head() -> RequestHead:
    scope = cast("HTTPScope", request.scope)  # an upgrade never becomes a WebSocket here
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"])
    target = scope["raw_path"].decode("latin-1")
    length = next((value for name, value in headers if name == "content-length"), "")
    return RequestHead(
        method=scope["method"],
        raw_path=origin_form(target).partition("?")[0],
        query_string=scope["query_string"].decode("latin-1"),
        headers=headers,
        content_length=int(length) if length.isdigit() else 0,
        chunked=any(name == "transfer-encoding" for name, _ in headers),
        persistent=scope["http_version"] == "1.1" and not any(map(_is_close, headers)),
    )


def _is_close(header: tuple[str, str]) -> bool:
    """The option "close" of a connection header."""
    name, value = header
    return name == "connection" and "close" in {option.strip() for option in value.lower().split(",")}


class _Body:
    """The request's body. `ended` is False while some of it is unread: the connection cannot carry a next request."""

    def __init__(self, head: RequestHead, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._length = head.content_length
        self.ended = not head.content_length and not head.chunked

    async def read(self) -> bytes:
        """The whole body, counted here: Quart's own bound does not hold for chunked bodies in all of its versions.

        Raises:
            PayloadTooLarge: its announced or its actual length is over the bound.
        """
        if self._length > self._max_bytes:
            raise PayloadTooLarge(_TOO_LARGE)
        body = bytearray()
        try:
            if not self.ended:
                proceed = request.scope.get("state", {}).get(PROCEED)
                if proceed is not None:  # another server tells its clients by itself
                    await proceed()
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


def _response(reply: Reply, request_id: str, *, close: bool) -> Response:
    response = Response(reply.body if reply.chunks is None else reply.chunks, status=reply.status)
    response.headers = Headers(headers_of(reply, request_id, close=close))
    return response
