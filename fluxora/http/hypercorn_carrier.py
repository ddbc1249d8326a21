"""Hypercorn on our stream: HTTP/1.1 framing for the Quart-Trio application, one request at a time.

Hypercorn's `serve` is not used; each request that comes this way gets its own `TCPServer` over the `Connection`, and
what follows the request goes back to whoever handed it over. Its head has passed the one grammar (request_head.py)
before Hypercorn sees it, and the framing of a chunked body passes one as strict (chunk_framing.py). Where Hypercorn
would answer by itself (a malformed body, defects of the application) the reply is made here, so that it has the error
shape and the headers of every other. Not taken over: h2c and HTTP/2 by prior knowledge (no client of this API needs
them, and an upgrade hides requests from proxies), and WebSocket.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body, EndBody, Request, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
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
from fluxora.http.asgi import PROCEED, encoded
from fluxora.http.chunk_framing import ChunkFraming
from fluxora.http.connection import LINGER_S, Connection
from fluxora.http.metrics import HttpMetrics
from fluxora.http.replies import headers_of, new_request_id, rendered, transport_refusal
from fluxora.http.request_head import MAX_HEAD_BYTES, Malformed, RequestHead

_log = logs.get("http")


class HypercornCarrier:
    """Serves single requests with an ASGI application."""

    def __init__(self, app: ASGIFramework, metrics: HttpMetrics) -> None:
        self._app = _Shim(app)
        self._config = _config()
        self._context = WorkerContext(None)
        self._metrics = metrics

    async def serve(self, connection: Connection, head: RequestHead) -> bytes | None:
        """Serve the request that the connection receives next; `head` is its head, and is received once more.

        What was received behind it; None where the connection has ended with it.
        """
        server = _Server(self._app, self._config, self._context, ConnectionState({}), connection)  # type: ignore[arg-type]
        server.metrics = self._metrics
        server.head = head
        return await server.serve()


def _config() -> Config:
    config = Config()
    config.include_server_header = False
    config.include_date_header = False  # the application sends it, in its place
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.h11_pass_raw_headers = False
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
    """TCPServer with our protocol, without TLS, and without the time before and after its one request."""

    metrics: HttpMetrics
    head: RequestHead

    async def serve(self) -> bytes | None:
        """Serve one request: the bytes behind it, or None where the connection is over."""
        self._reading = trio.CancelScope()
        try:
            client = parse_socket_addr(self.stream.socket.family, self.stream.socket.getpeername())
            server = parse_socket_addr(self.stream.socket.family, self.stream.socket.getsockname())
            async with TaskGroup() as self._task_group:
                protocol = _Protocol(
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
                self.protocol = protocol  # type: ignore[assignment]  # Hypercorn's type is a wrapper of three protocols
                protocol.metrics = self.metrics
                protocol.expect(self.head)
                protocol.reading = self._reading
                with self._reading:
                    await self._read_data()
            if protocol.reusable:
                return protocol.connection.trailing_data[0]
        except OSError as error:  # the peer was gone before it had an address
            _log.debug("http.peer_left", error=str(error))
        await self._close()
        return None

    async def _read_data(self) -> None:
        """As Hypercorn's, but a client that ends its side after its request still gets the answer whole."""
        protocol = cast("_Protocol", self.protocol)
        while True:
            try:
                data = await self.stream.receive_some(MAX_RECV)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            if not data:
                if protocol.whole:
                    await protocol.answered()
                break
            await protocol.handle(RawData(bytes(data)))
            if protocol.whole and len(protocol.connection.trailing_data[0]) > MAX_HEAD_BYTES:
                await protocol.answered()  # who sends that far ahead is heard again when it is its turn
                break
        await protocol.handle(Closed())

    async def protocol_send(self, event: Event) -> None:
        """Bytes, the end, or a change between idle and busy, from the protocol.

        Quart cancels the request's task as soon as its reply is complete, and that task is the one that comes here to
        close: it must happen all the same, or the connection would wait for ever.
        """
        if isinstance(event, RawData):
            await super().protocol_send(event)  # shielded there; the connection bounds it
            if self.stream.is_broken:  # Hypercorn has told the application, and nobody else
                self._reading.cancel(reason="the peer takes nothing")
        elif isinstance(event, Closed):
            with trio.move_on_after(2 * LINGER_S, shield=True):
                await super().protocol_send(event)


class _Protocol(H11Protocol):
    """H11Protocol for one request, whose own answers have our shape.

    `whole`: all of the request was received. `reusable`: another one may follow it.
    """

    metrics: HttpMetrics
    reading: trio.CancelScope

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.whole = False
        self.reusable = False
        self._chunks: ChunkFraming | None = None
        self._of_head = 0  # bytes of the head that are to come
        self._idle = trio.Event()  # set at the request's end

    def expect(self, head: RequestHead) -> None:
        """The head of the request that is received next."""
        self._of_head = head.size
        if head.chunked:
            self._chunks = ChunkFraming()

    async def handle(self, event: Event) -> None:
        """As Hypercorn's, but chunks that could be read in two ways end here."""
        if isinstance(event, RawData) and self._chunks is not None:
            cut = min(self._of_head, len(event.data))
            self._of_head -= cut
            try:
                self._chunks.feed(event.data[cut:])
            except Malformed:
                await self._refuse(400)
                return
        await super().handle(event)

    async def _handle_events(self) -> None:
        """As Hypercorn's, but what stands behind the request is not looked at: that is for whoever comes next."""
        while not self.whole:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return
            if isinstance(event, h11.Request):
                await self._create_stream(event)
            elif isinstance(event, h11.Data) and self.stream is not None:
                await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                self.whole = True
                if self.stream is not None:
                    await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:  # more is needed, or the request is answered already
                return

    async def _refuse(self, status: int) -> None:
        """The body is malformed: say so and end the connection, unless a reply is under way, which ends it anyway."""
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error_response(status)
            await self.send(Closed())

    async def proceed(self) -> None:
        """The body is wanted: tell a client that holds it back until then."""
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    async def answered(self) -> None:
        """Wait until no request is in flight; the deadlines of requests and of writing bound that."""
        while self.stream is not None:
            await self._idle.wait()

    async def _close_stream(self) -> None:
        await super()._close_stream()
        self._idle.set()

    async def _maybe_recycle(self) -> None:
        """The request is over: end the reading, so that what follows it goes back to where it came from."""
        await self._close_stream()
        self.reusable = self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE
        self.reading.cancel(reason="the request is over")

    async def stream_send(self, event: StreamEvent) -> None:
        """As Hypercorn's, but with the reason phrase that every other answer has."""
        if isinstance(event, Response) and event.status_code >= 200:
            phrase = HTTPStatus(event.status_code).phrase.encode("ascii")
            await self._send_h11_event(
                h11.Response(headers=list(event.headers), status_code=event.status_code, reason=phrase)
            )
        else:
            await super().stream_send(event)

    async def _create_stream(self, request: h11.Request) -> None:
        """Every request is an ordinary one here, an offer of another protocol is ignored (RFC 9110 7.8).

        The method stays as it came: it is case-sensitive, and Hypercorn would make it upper case.
        """
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=request.target,
                state=ConnectionState({PROCEED: self.proceed}),
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        if self.connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return  # a reply is under way already; the connection just ends
        request_id = new_request_id()
        _log.info("http.request_refused", status=status_code, request_id=request_id)
        self.metrics.refused(status_code)
        reply = transport_refusal(status_code, request_id)
        await self.send(RawData(data=rendered(reply, request_id, close=True)))


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
            request_id = new_request_id()
            _log.exception("http.application_failed", request_id=request_id)
            if not started:
                await _send_refusal(send, request_id)


def _with_rooted_path(scope: Scope) -> Scope:
    """Quart takes a path to begin with a slash. Routing reads `raw_path`, so what stands here does not matter."""
    if scope["type"] == "http" and not scope["path"].startswith("/"):
        return HTTPScope(**{**scope, "path": "/"})
    return scope


async def _send_refusal(send: ASGISendCallable, request_id: str) -> None:
    reply = transport_refusal(500, request_id)
    headers = encoded(headers_of(reply, request_id, close=True))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})
