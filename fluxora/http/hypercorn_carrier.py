"""Hypercorn on our stream: HTTP/1.1 framing for the Quart-Trio application, one connection at a time.

Hypercorn's `serve` is not used; each connection gets its own `TCPServer` over a `Connection`. Where Hypercorn would
answer by itself (malformed requests, defects of the application) the reply is made here, so that it has the error shape
and the headers of every other. Not taken over: h2c and HTTP/2 by prior knowledge (no client of this API needs them, and
an upgrade hides requests from proxies), and WebSocket, which the listener serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    HTTPScope,
    Scope,
)
from hypercorn.utils import parse_socket_addr

from fluxora import logs
from fluxora.http.connection import LINGER_S, Connection
from fluxora.http.exchange import Reply
from fluxora.http.replies import transport_refusal

MAX_HEAD_BYTES = 1 << 16
KEEP_ALIVE_S = 30.0

_log = logs.get("http")


class HypercornCarrier:
    """Serves connections with an ASGI application until `end_idle`."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = _Shim(app)
        self._config = _config()
        self._context = WorkerContext(None)

    async def serve(self, connection: Connection) -> None:
        """Serve one connection to its end."""
        await _Server(self._app, self._config, self._context, ConnectionState({}), connection)  # type: ignore[arg-type]

    async def end_idle(self) -> None:
        """Close connections that wait for a next request; those with a request in flight close after its reply."""
        await self._context.terminated.set()


def _config() -> Config:
    config = Config()
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S  # also bounds the arrival of the next head
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.logger_class = _HypercornLog  # type: ignore[assignment]
    return config


class _HypercornLog:
    """What Hypercorn has to say, as our log lines. Access lines are written where the reply is made."""

    def __init__(self, _config: Config) -> None:
        pass

    async def access(self, *_: Any) -> None:
        """Not here."""

    async def exception(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        _log.exception("http.carrier_failed", detail=message)

    async def error(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        _log.error("http.carrier_failed", detail=message)

    async def warning(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        _log.warning("http.carrier_warned", detail=message)

    async def info(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        _log.debug("http.carrier_noted", detail=message)

    debug = info
    critical = error


class _Server(TCPServer):
    """TCPServer with our protocol and without TLS."""

    async def run(self) -> None:
        try:
            client = parse_socket_addr(self.stream.socket.family, self.stream.socket.getpeername())
            server = parse_socket_addr(self.stream.socket.family, self.stream.socket.getsockname())
            async with TaskGroup() as self._task_group:
                self.protocol = _Protocol(  # type: ignore[assignment]
                    self.app,
                    self.config,
                    self.context,
                    self._task_group,
                    ConnectionState(dict(self.state)),
                    False,  # noqa: FBT003 (ssl; Hypercorn passes it by position)
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
        except OSError as error:  # the peer was gone before it had an address
            _log.debug("http.peer_left", error=str(error))
        finally:
            await self._close()

    async def _read_data(self) -> None:
        """As Hypercorn's, but a client that ends its side after its request still gets the answer whole."""
        while True:
            try:
                data = await self.stream.receive_some(MAX_RECV)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            await self.protocol.handle(RawData(bytes(data)))
            if not data:
                await self.protocol.answered()  # type: ignore[attr-defined]  # it is a _Protocol
                break
        await self.protocol.handle(Closed())

    async def protocol_send(self, event: Event) -> None:
        """Bytes, the end, or a change between idle and busy, from the protocol.

        Quart cancels the request's task as soon as its reply is complete, and that task is the one that comes here to
        start the idle clock or to close: both must happen all the same, or the connection would wait for ever.
        """
        if isinstance(event, RawData):
            await super().protocol_send(event)  # shielded there; the connection bounds it
            return
        with trio.move_on_after(2 * LINGER_S, shield=True):
            await super().protocol_send(event)


class _Protocol(H11Protocol):
    """H11Protocol whose own answers have our shape."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._idle = trio.Event()  # replaced with each request, set at its end

    async def answered(self) -> None:
        """Wait until no request is in flight; the deadlines of requests and of writing bound that."""
        while self.stream is not None:
            await self._idle.wait()

    async def _close_stream(self) -> None:
        await super()._close_stream()
        self._idle.set()

    async def _check_protocol(self, _event: h11.Request) -> None:
        """An offer of h2c is ignored, as RFC 9110 7.8 allows."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Every request is an ordinary one here: an upgrade that reaches this carrier is not acted upon.

        One with two lengths for its body is refused, and nothing that follows it is read (RFC 9112 6.3).
        """
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}:
            await self._send_error_response(400)
            await self.send(Closed())
            return
        self._idle = trio.Event()
        headers = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"upgrade"]
        plain = h11.Request(
            method=request.method, target=request.target, headers=headers, http_version=request.http_version
        )
        await super()._create_stream(plain)

    async def _send_error_response(self, status_code: int) -> None:
        reply = transport_refusal(status_code)
        _log.info("http.request_refused", status=reply.status)
        headers = _encoded((*reply.headers, ("content-length", str(len(reply.body))), ("connection", "close")))
        response = h11.Response(status_code=reply.status, headers=[*headers, *self.config.response_headers("h11")])
        try:
            data = self.connection.send(response) or b""
            data += self.connection.send(h11.Data(data=reply.body)) or b""
            data += self.connection.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError as error:  # a reply is under way already; the connection just ends
            _log.debug("http.refusal_dropped", error=str(error))
            return
        await self.send(RawData(data=data))


class _Shim:
    """The application as Hypercorn calls it: nothing that it raises leaves a client without a whole answer."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        _sync_spawn: Callable[..., Any],
        _call_soon: Callable[..., Any],
    ) -> None:
        started = False

        async def noting(message: ASGISendEvent) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(_with_rooted_path(scope), receive, noting)
        except* Exception:  # noqa: BLE001 (logged; a group, whose cancellations have to pass on)
            _log.exception("http.application_failed")
            if not started:
                await _send_reply(send, transport_refusal(500))


def _with_rooted_path(scope: Scope) -> Scope:
    """Quart takes a path to begin with a slash. Routing reads `raw_path`, so what stands here does not matter."""
    if scope["type"] == "http" and not scope["path"].startswith("/"):
        return HTTPScope(**{**scope, "path": "/"})
    return scope


async def _send_reply(send: ASGISendCallable, reply: Reply) -> None:
    headers = _encoded((*reply.headers, ("content-length", str(len(reply.body)))))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
