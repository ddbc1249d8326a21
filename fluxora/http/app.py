"""Quart-Trio as a carrier: it reads a request's body and writes the reply; everything between is an `Answer`.

Quart's own routing, error pages and timeouts stay out of the way, so that any carrier serves the same bytes. The
application is complete: under any ASGI server on trio it serves all routes, those whose answers have no end among them
(hosted.py). Under our own listener it only gets what the listener does not carry itself.
"""

from __future__ import annotations

from typing import Any, cast

import trio
from quart import Request, Response, request
from quart.wrappers import BaseRequestWebsocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge

from fluxora import logs
from fluxora.errors import PayloadTooLarge
from fluxora.http.answer import Answer, opens
from fluxora.http.asgi import PROCEED, Scope, has_connections, head_of, headers_for, peer_of
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply
from fluxora.http.hosted import serve_events, serve_websocket
from fluxora.http.request_head import RequestHead
from fluxora.http.whole_request import WholeRequest

_TOO_LARGE = "The body is too large"
_log = logs.get("http")


class _Http(TrioASGIHTTPConnection):
    """Quart carries what has an end, and lets it come to that.

    Servers tell of the end of a request that they are about to end, and would be cut off there by Quart: it cancels
    whoever sends when the client leaves.
    """

    _whole = False

    async def __call__(self, receive: Any, send: Any) -> None:
        backend = cast("Application", self.app).backend
        scope = cast("Scope", self.scope)
        if opens(head_of(scope), backend):
            await serve_events(backend, scope, receive, send)
            return

        async def noting(message: Any) -> None:
            self._whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        await super().__call__(receive, noting)

    async def handle_messages(  # type: ignore[override]  # as Quart-Trio's is to Quart's
        self, nursery: trio.Nursery, request: Request, receive: Any
    ) -> None:
        """As Quart's, which cancels the request when its client leaves; but not in its last act.

        How it reads differs between its versions; that it cancels this nursery does not.
        """
        await super().handle_messages(cast("trio.Nursery", _Leaving(self, nursery)), request, receive)

    def leave(self, nursery: trio.Nursery) -> None:
        """The client has left."""
        if not self._whole:
            nursery.cancel_scope.cancel(reason="the client has left")


class _Leaving:
    """Stands for a request's nursery where Quart cancels it."""

    def __init__(self, connection: _Http, nursery: trio.Nursery) -> None:
        self.cancel_scope = self
        self._connection = connection
        self._nursery = nursery

    def cancel(self) -> None:
        """What Quart calls when the client leaves."""
        self._connection.leave(self._nursery)


class _WebSocket(TrioASGIWebsocketConnection):
    """Quart would keep neither the code of a close nor a message without bytes."""

    async def __call__(self, receive: Any, send: Any) -> None:
        await serve_websocket(cast("Application", self.app).backend, cast("Scope", self.scope), receive, send)


class Application(QuartTrio):
    """Quart without its URL routing, which would refuse requests by the Host header before we see them."""

    asgi_http_class = _Http
    asgi_websocket_class = _WebSocket

    def __init__(self, backend: Backend) -> None:
        super().__init__("fluxora", static_folder=None)
        self.backend = backend
        self.config["MAX_CONTENT_LENGTH"] = backend.config.max_body_bytes
        self.config["BODY_TIMEOUT"] = None  # `Answer` bounds it
        self.config["RESPONSE_TIMEOUT"] = None  # would cut long replies; the connection bounds a stalled reader
        self._in_flight = 0
        self._landed = trio.Event()
        self.before_request(self._serve)

    def create_url_adapter(self, _request: BaseRequestWebsocket | None) -> None:
        """No routing."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request, a WebSocket or the server's own start and stop."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        if scope["type"] == "http" and not has_connections(scope):
            whole = WholeRequest(receive, send)
            receive, send = whole.receive, whole.send
        self._in_flight += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._in_flight -= 1
            self._landed.set()
            self._landed = trio.Event()

    async def stand_by(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """What the listener does for its own connections, for those of another server: log lines, and the stop.

        Until `backend.stopping` is set; then live connections are told to go, and for `drain_s` whatever is in flight
        may end.
        """
        backend = self.backend
        with backend.access_log.in_use():
            task_status.started()
            await backend.stopping.wait()  # for ever is what a server does
            backend.sockets.drain()
            with trio.move_on_after(backend.config.drain_s) as budget:
                while self._in_flight:
                    await self._landed.wait()
            if budget.cancelled_caught:
                _log.warning("http.drain_ended_early", requests=self._in_flight)

    async def _serve(self) -> Response:
        """Stands before Quart's routing and always answers, so that routing never happens there."""
        backend, scope = self.backend, cast("Scope", request.scope)
        head = head_of(scope)
        body = _Body(head, scope, backend.config.max_body_bytes)
        answer = Answer(backend, head, peer_of(scope))
        reply = answer.at_once(b"" if body.ended else None)
        if reply is None:
            reply = await answer.in_time(body.read)
        close = not (head.persistent and body.ended) or backend.stopping.is_set()
        return _response(scope, reply, answer.request_id, close=close)


def create_app(backend: Backend) -> Application:
    """The application; it keeps nothing between requests and needs no lifespan."""
    return Application(backend)


class _Body:
    """The request's body. `ended` is False while some of it is unread: the connection cannot carry a next request."""

    def __init__(self, head: RequestHead, scope: Scope, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._length = head.content_length
        self._proceed = scope.get("state", {}).get(PROCEED)
        # In HTTP/2 a body may come without a word of it in the head.
        self.ended = has_connections(scope) and not head.content_length and not head.chunked

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
                if self._proceed is not None:  # another server tells its clients by itself
                    await self._proceed()
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


def _response(scope: Scope, reply: Reply, request_id: str, *, close: bool) -> Response:
    response = Response(reply.body if reply.chunks is None else reply.chunks, status=reply.status)
    response.headers = Headers(headers_for(scope, reply, request_id, close=close))
    return response
