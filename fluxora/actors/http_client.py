"""A small HTTP/1.1 client on trio: h11 for the protocol, trio streams for the bytes.

It reuses kept-alive connections, verifies TLS against the system's trust store, bounds each phase in time and the
answer in size (what is longer is refused, or cut off), asks for no compression and follows no redirect. A connection
carries one exchange at a time, and whatever interrupts an exchange (an error, a deadline, cancellation) closes its
connection, so that no answer is ever read by the wrong caller. A request that was sent on a kept-alive connection which
then turns out dead, without one byte of an answer, is sent once more on a fresh one: callers must tolerate that a
request is delivered twice.

`begin` writes a request and leaves the answer in the socket, `Exchange.reply` reads it: work fits in between, without a
task of its own. `request` does both.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal
from urllib.parse import unquote, urlsplit

import h11
import trio

from fluxora.errors import FluxoraError

RECEIVE_BYTES = 256 * 1024  # pages of events are megabytes; fewer, larger reads
MAX_INTERIM = 16  # answers of 1xx before the one that counts
FAIR_EVERY = 64  # pieces of an answer between two chances for other tasks: a peer may send it in chunks of one byte
_PORTS = {"http": 80, "https": 443}


class Fault(StrEnum):
    """What went wrong with an exchange."""

    UNREACHABLE = "unreachable"  # name resolution or connecting failed
    TLS = "tls"  # handshake or certificate
    TIMEOUT = "timeout"
    DROPPED = "dropped"  # the peer closed before a byte of the answer
    TRUNCATED = "truncated"  # the peer closed inside the answer
    MALFORMED = "malformed"  # not HTTP/1.1
    TOO_LARGE = "too_large"


class ExchangeFailed(FluxoraError):
    """No usable answer came. Callers translate it into their own terms; `fault` says which kind it was."""

    code = "EXCHANGE_FAILED"
    retryable = True

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class Deadlines:
    """Seconds for each phase; `total_s` bounds reading the whole answer, `first_byte_s` its beginning."""

    connect_s: float = 5.0
    write_s: float = 10.0
    first_byte_s: float = 30.0
    total_s: float = 60.0


@dataclass(frozen=True)
class Target:
    """A parsed http(s) URL. `address` pins the IP to connect to, while Host and the certificate follow `host`."""

    scheme: str
    host: str
    port: int
    path: str
    authorization: str | None = None
    address: str | None = None

    @classmethod
    def parse(cls, url: str, *, address: str | None = None) -> Target:
        """Parse `url`; user and password become Basic authorization, a fragment is dropped.

        Raises:
            ValueError: not an http or https URL with a host, or not in the form that a request can carry.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("an http:// or https:// URL with a host is needed")
        host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode("ascii")
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + b64encode(pair.encode()).decode("ascii")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not path.isascii() or not path.isprintable() or " " in path:
            raise ValueError("path and query must be ASCII, all else percent-encoded")
        return cls(parts.scheme, host, parts.port or _PORTS[parts.scheme], path, authorization, address)

    @property
    def authority(self) -> str:
        """Host, with the port where it is not the scheme's own; what Host carries and what may be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def _pool_key(self) -> tuple[str, str, int, str | None]:
        return self.scheme, self.host, self.port, self.address


@dataclass(frozen=True)
class HttpReply:
    """An answer, of whatever status: complete, or `cut` off where it got too long. Header names are lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cut: bool = False

    def header(self, name: str) -> str | None:
        """Return the first value of header `name` (lower case)."""
        return next((value for key, value in self.headers if key == name), None)


class _Connection:
    """A connected stream and its protocol state."""

    def __init__(self, stream: trio.abc.Stream, raw: trio.SocketStream) -> None:
        self.stream = stream
        self.raw = raw
        self.protocol = h11.Connection(h11.CLIENT)
        self.reused = False

    def abort(self) -> None:
        """Close at once, without a TLS goodbye: synchronous, so it also serves while being cancelled."""
        self.raw.socket.close()


class Exchange:
    """A request that has been written and whose answer has not been read. Read it once, or abort it.

    `status` is that of the answer as soon as its head is there, also where the rest of it never comes.
    """

    def __init__(
        self, client: HttpClient, target: Target, head: h11.Request, body: bytes, deadlines: Deadlines
    ) -> None:
        self._client = client
        self._target = target
        self._head = head
        self._body = body
        self._deadlines = deadlines
        self._connection: _Connection | None = None
        self._was_reused = False
        self._arrived = False
        self.status: int | None = None

    async def reply(self) -> HttpReply:
        """Read the whole answer.

        Raises:
            ExchangeFailed: no complete answer within the deadlines and the size bound.
        """
        with _deadline(self._deadlines.total_s, "complete answer"):
            try:
                return await self._read()
            except ExchangeFailed as error:
                if error.fault is not Fault.DROPPED or not self._was_reused:
                    raise
            # The kept-alive connection had died meanwhile: the one case that deserves a second delivery.
            await self._send(fresh=True)
            return await self._read()

    def abort(self) -> None:
        """Give the answer up and close the connection. Harmless after `reply`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def _send(self, *, fresh: bool) -> None:
        connection = None if fresh else self._client._take(self._target)  # noqa: SLF001 (one unit with the client)
        if connection is None:
            with _deadline(self._deadlines.connect_s, "connection"):
                connection = await self._client._connect(self._target)  # noqa: SLF001
        self._connection = connection
        self._was_reused = connection.reused
        protocol = connection.protocol
        parts = [protocol.send(self._head)]
        if self._body:
            parts.append(protocol.send(h11.Data(data=self._body)))
        parts.append(protocol.send(h11.EndOfMessage()))
        try:
            with _deadline(self._deadlines.write_s, "room to write the request"):
                await connection.stream.send_all(b"".join(part for part in parts if part))
        except trio.BrokenResourceError as error:
            self.abort()
            if not self._was_reused:
                raise ExchangeFailed(Fault.DROPPED, "the peer closed while the request was written") from error
            await self._send(fresh=True)
        except BaseException:
            self.abort()
            raise

    async def _read(self) -> HttpReply:
        connection = self._connection
        assert connection is not None, "an exchange is read once"
        try:
            reply = await self._read_events(connection)
        except h11.RemoteProtocolError as error:
            self.abort()
            ended = connection.protocol.trailing_data[1]
            fault = Fault.TRUNCATED if ended else Fault.MALFORMED
            raise ExchangeFailed(fault, f"the answer broke off: {error}" if ended else f"not HTTP: {error}") from error
        except BaseException:
            self.abort()
            raise
        self._connection = None
        self._client._give_back(self._target, connection)  # noqa: SLF001
        return reply

    async def _read_events(self, connection: _Connection) -> HttpReply:
        headers: tuple[tuple[str, str], ...] = ()
        body = bytearray()
        limit = self._client.max_body_bytes
        pieces = interim = 0
        while True:
            pieces += 1
            if pieces % FAIR_EVERY == 0:
                await trio.lowlevel.checkpoint()
            event = connection.protocol.next_event()
            if event is h11.NEED_DATA:
                await self._receive(connection)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit:
                    if self._client.overlong == "refuse":
                        raise ExchangeFailed(Fault.TOO_LARGE, f"the answer is longer than {limit} bytes")
                    assert self.status is not None, "a body follows its head"
                    return HttpReply(self.status, headers, bytes(body[:limit]), cut=True)
            elif isinstance(event, h11.EndOfMessage):
                assert self.status is not None, "an end follows its head"
                return HttpReply(self.status, headers, bytes(body))
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
                if self._client.overlong == "refuse" and any(
                    name == "content-length" and int(value) > limit for name, value in headers
                ):
                    raise ExchangeFailed(Fault.TOO_LARGE, f"an answer longer than {limit} bytes was announced")
            elif isinstance(event, h11.InformationalResponse):
                interim += 1
                if interim > MAX_INTERIM:
                    raise ExchangeFailed(Fault.MALFORMED, f"more than {MAX_INTERIM} interim answers")
            else:
                raise ExchangeFailed(Fault.MALFORMED, f"unexpected {type(event).__name__} in the answer")

    async def _receive(self, connection: _Connection) -> None:
        try:
            if self._arrived:
                data = await connection.stream.receive_some(RECEIVE_BYTES)
            else:
                with _deadline(self._deadlines.first_byte_s, "first byte of an answer"):
                    data = await connection.stream.receive_some(RECEIVE_BYTES)
        except trio.BrokenResourceError as error:
            fault = Fault.TRUNCATED if self._arrived else Fault.DROPPED
            raise ExchangeFailed(fault, "the connection broke before the answer was complete") from error
        if not data and not self._arrived:
            raise ExchangeFailed(Fault.DROPPED, "the peer closed without an answer")
        self._arrived = True
        connection.protocol.receive_data(bytes(data))


class HttpClient:
    """Connections to any number of hosts; at most `max_idle` are kept alive, the longest idle is closed first.

    An answer whose body is longer than `max_body_bytes` is refused, or cut off there and its connection closed.
    `tls` replaces the default context (the system's trust store, certificate and host name verified).
    """

    def __init__(
        self,
        *,
        deadlines: Deadlines | None = None,
        max_body_bytes: int = 64 * 1024 * 1024,
        overlong: Literal["refuse", "cut"] = "refuse",
        max_idle: int = 16,
        tls: ssl.SSLContext | None = None,
        user_agent: str = "fluxora",
    ) -> None:
        self.deadlines = deadlines or Deadlines()
        self.max_body_bytes = max_body_bytes
        self.overlong = overlong
        self._max_idle = max_idle
        self._tls = tls
        self._user_agent = user_agent
        self._idle: list[tuple[tuple[str, str, int, str | None], _Connection]] = []

    async def request(
        self,
        method: str,
        target: Target,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        deadlines: Deadlines | None = None,
    ) -> HttpReply:
        """Send a request and read its whole answer, of whatever status.

        Raises:
            ExchangeFailed: see `Fault`.
        """
        exchange = await self.begin(method, target, headers=headers, body=body, deadlines=deadlines)
        return await exchange.reply()

    async def begin(
        self,
        method: str,
        target: Target,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        deadlines: Deadlines | None = None,
    ) -> Exchange:
        """Send a request; the caller must `reply` or `abort` the exchange.

        Raises:
            ExchangeFailed: it could not be written.
        """
        fields = [("Host", target.authority), ("User-Agent", self._user_agent), ("Accept-Encoding", "identity")]
        if target.authorization is not None:
            fields.append(("Authorization", target.authorization))
        if body or method not in ("GET", "HEAD"):
            fields.append(("Content-Length", str(len(body))))
        head = h11.Request(method=method, target=target.path, headers=[*fields, *headers])
        exchange = Exchange(self, target, head, body, deadlines or self.deadlines)
        await exchange._send(fresh=False)  # noqa: SLF001 (its own module)
        return exchange

    def close(self) -> None:
        """Close the idle connections; the client stays usable."""
        while self._idle:
            self._idle.pop()[1].abort()

    def _take(self, target: Target) -> _Connection | None:
        for index in range(len(self._idle) - 1, -1, -1):  # the youngest first: the least likely to be dead
            if self._idle[index][0] == target._pool_key:  # noqa: SLF001 (its own module)
                connection = self._idle.pop(index)[1]
                connection.reused = True
                return connection
        return None

    def _give_back(self, target: Target, connection: _Connection) -> None:
        protocol = connection.protocol
        if protocol.our_state is not h11.DONE or protocol.their_state is not h11.DONE or protocol.trailing_data[0]:
            connection.abort()  # the peer wants it closed, or spoke out of turn
            return
        protocol.start_next_cycle()
        self._idle.append((target._pool_key, connection))  # noqa: SLF001
        if len(self._idle) > self._max_idle:
            self._idle.pop(0)[1].abort()

    async def _connect(self, target: Target) -> _Connection:
        try:
            raw = await trio.open_tcp_stream(target.address or target.host, target.port)
        except OSError as error:
            raise ExchangeFailed(Fault.UNREACHABLE, f"cannot connect: {_reason(error)}") from error
        if target.scheme == "http":
            return _Connection(raw, raw)
        try:
            if self._tls is None:
                # Reading the trust store takes tens of milliseconds: not on the loop's thread.
                self._tls = await trio.to_thread.run_sync(ssl.create_default_context)
            stream = trio.SSLStream(raw, self._tls, server_hostname=target.host, https_compatible=True)
            await stream.do_handshake()
        except trio.BrokenResourceError as error:
            raw.socket.close()
            raise ExchangeFailed(Fault.TLS, f"TLS handshake failed: {_reason(error.__cause__ or error)}") from error
        except BaseException:
            raw.socket.close()
            raise
        return _Connection(stream, raw)


@contextmanager
def _deadline(seconds: float, awaited: str) -> Iterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise ExchangeFailed(Fault.TIMEOUT, f"no {awaited} within {seconds:g} s")


def _reason(error: BaseException) -> str:
    """One line of the innermost cause; trio wraps the attempts on several addresses in one error."""
    while isinstance(error.__cause__, BaseException):
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return _reason(error.exceptions[0])
    return str(error) or type(error).__name__
