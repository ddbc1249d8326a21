"""The listener's own carrier: requests whose body has a length, one after the other, on one connection.

What it does not carry (chunked bodies, and bodies that are made while they are sent) it hands to the framework's
carrier, one request at a time. Every head on the port is read by the one grammar of request_head.py, whoever serves the
request behind it, and what follows a request comes back here. Between requests a connection rests in the lobby.
"""

from __future__ import annotations

import math

import msgspec
import trio

from fluxora import logs
from fluxora.errors import PayloadTooLarge
from fluxora.http.answer import Answer, opens
from fluxora.http.backend import Backend
from fluxora.http.connection import Connection
from fluxora.http.event_stream import EventStream
from fluxora.http.exchange import ClientLeft, Opening, Reply, joined
from fluxora.http.hypercorn_carrier import HypercornCarrier
from fluxora.http.replies import new_request_id, rendered, transport_refusal
from fluxora.http.request_head import END_OF_HEAD, MAX_HEAD_BYTES, Malformed, RequestHead, parse
from fluxora.http.sockets import OF_EVENTS
from fluxora.http.websocket import WebSocket

MOST_AT_ONCE = 16  # requests of one connection before others have their turn
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STARTS = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # of a method

_log = logs.get("http")


class Turn(msgspec.Struct, gc=False):
    """A request that could not be served at once: what was received from its first byte on, and how far it got."""

    received: bytes
    head: RequestHead | None = None
    answer: Answer | None = None
    reply: Reply | None = None


class DirectCarrier:
    """Serves connections; one carrier for each front. `framework` carries what this one does not."""

    def __init__(self, backend: Backend, framework: HypercornCarrier) -> None:
        self._backend = backend
        self._framework = framework

    def serve_at_once(self, connection: Connection, received: bytes) -> Turn | None:
        """Serve the requests at the beginning of `received` without waiting for anything.

        The first one that takes more, or that ends the connection; None where all are served and no byte is left.
        """
        config = self._backend.config
        if not config.direct:
            return Turn(received)
        for _ in range(MOST_AT_ONCE):
            try:
                head = parse(received)
            except Malformed:
                break  # not whole yet, or to be refused: by who may wait
            rest = head.size + head.content_length
            if head.size > MAX_HEAD_BYTES or head.chunked or len(received) < rest or head.upgrade:
                break
            answer = Answer(self._backend, head, connection.peer)
            reply = answer.at_once(received[head.size : rest])
            if reply is None or not head.persistent or self._backend.stopping.is_set():
                return Turn(received, head, answer, reply)
            if not connection.offer(_rendered(reply, answer, head, close=False)):
                return Turn(received, head, answer, reply)
            received = received[rest:]
            if not received:
                return Turn(received) if connection.offered_bytes else None
        return Turn(received)

    async def serve(self, connection: Connection, turn: Turn) -> bool:
        """Go on with a connection, until it rests (True) or has ended (False).

        Who had to wait once will probably have to again: such a connection keeps its task, and rests here.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the peer is gone.
        """
        if connection.offered_bytes:
            await connection.send_all(b"")
        while turn.received:
            if turn.head is None:
                whole = await self._receive_head(connection, turn.received)
                if whole is None:
                    return False
                turn = Turn(whole)
            rest = await self._serve_one(connection, turn)
            if rest is None:
                return connection.outlet is not None
            if not rest:
                if self._backend.stopping.is_set():  # since this answer was begun: nobody will come to end its rest
                    return False
                connection.due, connection.idle = trio.current_time() + self._backend.config.keep_alive_s, True
                rest = await connection.receive_some(MAX_HEAD_BYTES)
                connection.due, connection.idle = math.inf, False
                if not rest:
                    return False
            next_turn = self.serve_at_once(connection, rest)
            if next_turn is None:
                return True
            turn = next_turn
            if connection.offered_bytes:
                await connection.send_all(b"")
        return True

    async def refuse(self, connection: Connection, status: int) -> None:
        """Answer what is no request, and end the connection."""
        request_id = new_request_id()
        _log.info("http.request_refused", status=status, request_id=request_id)
        self._backend.metrics.refused(status)
        await connection.send_all(rendered(transport_refusal(status, request_id), request_id, close=True))
        await connection.aclose()

    async def _receive_head(self, connection: Connection, received: bytes) -> bytes | None:
        """Bytes that begin with a whole head, or with what can be none; None at the end of the connection."""
        searched = 0
        head = bytearray(received)  # grows in place, should it come byte by byte
        connection.due = trio.current_time() + self._backend.config.read_head_timeout_s
        while not END_OF_HEAD.search(head, searched) and head[0] in _STARTS:
            if len(head) > MAX_HEAD_BYTES:
                await self.refuse(connection, 431)
                return None
            searched = max(0, len(head) - 3)
            data = await connection.receive_some(MAX_HEAD_BYTES)
            if not data:
                return None
            head += data
        return bytes(head)

    async def _serve_one(self, connection: Connection, turn: Turn) -> bytes | None:
        """Serve the request at the beginning of `turn`; the bytes behind it.

        None where no request can follow: the connection has ended, or it is something else now.
        """
        connection.due = math.inf  # what serves a request has deadlines of its own
        try:
            head = turn.head or parse(turn.received)
        except Malformed as error:
            _log.debug("http.head_malformed", reason=str(error))
            await self.refuse(connection, error.status)
            return None
        if head.size > MAX_HEAD_BYTES:
            await self.refuse(connection, 431)
            return None
        if not (self._backend.config.direct or opens(head, self._backend)):
            connection.replay(turn.received)
            return await self._framework.serve(connection, head)
        answer = turn.answer or Answer(self._backend, head, connection.peer)
        body = _Body(connection, head, turn.received, self._backend.config.max_body_bytes)
        reply = turn.reply if turn.answer is not None else answer.at_once(body.here)
        if reply is None:
            if head.chunked or answer.needs_framework:
                connection.replay(turn.received)
                return await self._framework.serve(connection, head)
            try:
                reply = await answer.in_time(body.read)
            except ClientLeft:
                return None
        if reply.opens is not None and reply.opens.protocol == "sse" and head.persistent:
            reply = _in_chunks(reply, reply.opens)
        if reply.opens is not None and head.method != "HEAD":
            self._open(connection, answer, head, reply, body.rest)
            return None
        close = reply.opens is not None or not head.persistent or not body.ended or self._backend.stopping.is_set()
        await connection.reply(_rendered(reply, answer, head, close=close))
        if close:
            await connection.aclose()
            return None
        rest = body.rest
        if rest:
            await trio.lowlevel.checkpoint()  # who sends many requests at once must not keep others waiting
        return rest

    def _open(self, connection: Connection, answer: Answer, head: RequestHead, reply: Reply, received: bytes) -> None:
        """Make the connection what the reply says: a WebSocket, or an event stream, which ends with the connection.

        Nothing is waited for here, so that those that were counted stay counted.

        Raises:
            trio.BrokenResourceError: the peer is gone.
        """
        assert reply.opens is not None
        of_events = reply.opens.protocol in OF_EVENTS
        if not connection.offer(_rendered(reply, answer, head, close=of_events)):
            raise trio.BrokenResourceError("the peer left before the head of its answer was sent")
        make = EventStream if of_events else WebSocket
        connection.outlet = make(connection, reply.opens, self._backend.sockets)
        if received:
            connection.outlet.received(received)


def _in_chunks(reply: Reply, opening: Opening) -> Reply:
    """An event stream for a client that reads chunks and did not ask for an end: so none waits for a buffer to fill."""
    return msgspec.structs.replace(
        reply,
        headers=(*reply.headers, ("transfer-encoding", "chunked")),
        opens=msgspec.structs.replace(opening, protocol="sse_chunked"),
    )


def _rendered(reply: Reply, answer: Answer, head: RequestHead, *, close: bool) -> bytes:
    return rendered(reply, answer.request_id, close=close, with_body=head.method != "HEAD")


class _Body:
    """The body behind a head: what of it is here, and the rest when it is asked for."""

    __slots__ = ("_buffer", "_chunked", "_connection", "_length", "_max_bytes", "_size", "_waits")

    def __init__(self, connection: Connection, head: RequestHead, received: bytes, max_bytes: int) -> None:
        self._connection = connection
        self._buffer = received
        self._size = head.size
        self._chunked = head.chunked
        self._waits = head.waits and _is_to_continue(head)
        self._length = head.content_length
        self._max_bytes = max_bytes

    @property
    def ended(self) -> bool:
        """True where all of it is here, read or not: the connection can carry a next request.

        Never where it is chunked, for then nobody here knows its end.
        """
        return not self._chunked and len(self._buffer) >= self._size + self._length

    @property
    def here(self) -> bytes | None:
        """The whole body, where it is here already."""
        return self._buffer[self._size : self._size + self._length] if self.ended else None

    @property
    def rest(self) -> bytes:
        """What follows it."""
        return self._buffer[self._size + self._length :]

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            PayloadTooLarge: its length is over the bound.
            ClientLeft: the client ended the connection before its end.
        """
        if self._length > self._max_bytes:
            raise PayloadTooLarge("The body is too large")
        if not self.ended:
            if self._waits:
                await self._send_continue()
            parts, missing = [self._buffer], self._size + self._length - len(self._buffer)
            while missing > 0:
                try:
                    data = await self._connection.receive_some(MAX_HEAD_BYTES)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise ClientLeft from error
                if not data:
                    raise ClientLeft
                parts.append(data)
                missing -= len(data)
            self._buffer = b"".join(parts)
        return self._buffer[self._size : self._size + self._length]

    async def _send_continue(self) -> None:
        """The client holds its body back until it hears that the body is wanted."""
        try:
            await self._connection.send_all(CONTINUE)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ClientLeft from error


def _is_to_continue(head: RequestHead) -> bool:
    """The one expectation that there is; every other is passed over (RFC 9110 10.1.1)."""
    return "100-continue" in (part.strip() for part in (joined(head.headers, "expect") or "").lower().split(","))
