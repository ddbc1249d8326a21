"""The one port: accepts, reads each connection's first request head, and hands the connection to what serves it.

Promises
- A connection fails alone: no exception in one ends another or the listener.
- Everything is bounded: connections, the size of a head and the time for it, a stalled reader.
- A stop is graceful: nothing new is accepted, idle connections close, requests in flight finish within `drain_s`.
"""

from __future__ import annotations

import re
import sys
from functools import partial

import trio

from fluxora import logs
from fluxora.errors import ConfigError
from fluxora.http.app import create_app
from fluxora.http.backend import Backend, Listening
from fluxora.http.connection import LINGER_S, Connection
from fluxora.http.hypercorn_carrier import MAX_HEAD_BYTES, HypercornCarrier
from fluxora.http.replies import rendered, transport_refusal

if sys.platform != "win32":  # which has no such limit
    import resource

BACKLOG = 2048
MAX_REFUSING = 64  # connections over the limit that are told so at a time; the rest are just closed
RESERVED_FILES = 256  # descriptors for everything else: the database, RPC endpoints, connections that are refused
_END_OF_HEAD = re.compile(rb"\n\r?\n")

_log = logs.get("http")


async def serve(backend: Backend, *, task_status: trio.TaskStatus[Listening] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until `backend.stopping` is set, then drain and return. Reports where it listens once it does.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    config = backend.config
    try:
        listeners = await trio.open_tcp_listeners(config.port, host=config.host, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a host's name
        reason = error.strerror if isinstance(error, OSError) else "no such name can be"
        raise ConfigError(f"PORT, HOST: cannot listen on {config.host}:{config.port}: {reason}") from error
    front = Front(backend)
    async with trio.open_nursery() as connections:
        try:
            async with trio.open_nursery() as accepting:
                handler = partial(trio.serve_listeners, front.handle, listeners, handler_nursery=connections)
                accepting.start_soon(handler)
                host, port = listeners[0].socket.getsockname()[:2]
                task_status.started(Listening(host, port))
                _log.info("http.listening_started", host=host, port=port)
                await backend.stopping.wait()  # for ever is what a server does
                accepting.cancel_scope.cancel()
            await front.drain()
        finally:
            front.abort()


class Front:
    """The open connections of one listener."""

    def __init__(self, backend: Backend) -> None:
        self._config = backend.config
        self._most = _affordable(backend.config.max_connections)
        self._carrier = HypercornCarrier(create_app(backend))
        self._connections: set[Connection] = set()
        self._refusing = 0
        self._ended = trio.Event()  # replaced after each connection that ends; `drain` waits on it

    async def handle(self, transport: trio.SocketStream) -> None:
        """Serve one connection to its end. Raises nothing but cancellation."""
        connection = Connection(transport)
        if len(self._connections) >= self._most:
            await self._refuse(connection)
            return
        self._connections.add(connection)
        try:
            with connection.scope:
                await self._serve(connection)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("http.peer_left")
        except* Exception:  # noqa: BLE001 (a defect, logged; it costs this connection and no other)
            _log.exception("http.connection_failed")
        finally:
            connection.abort()
            self._connections.discard(connection)
            self._ended.set()
            self._ended = trio.Event()

    async def drain(self) -> None:
        """Let requests in flight finish, for `drain_s` at most; connections without one close now."""
        await self._carrier.end_idle()
        for connection in self._connections:
            if not connection.received:
                connection.abort()
        with trio.move_on_after(self._config.drain_s) as budget:
            while self._connections:
                await self._ended.wait()
        if budget.cancelled_caught:
            _log.warning("http.drain_ended_early", connections=len(self._connections))

    def abort(self) -> None:
        """Cut off whatever is still open."""
        for connection in self._connections:
            connection.scope.cancel()
            connection.abort()  # a send under Hypercorn's shield does not see the cancellation

    async def _serve(self, connection: Connection) -> None:
        head = await self._read_head(connection)
        if head is None:
            return
        connection.replay(head)
        await self._carrier.serve(connection)

    async def _read_head(self, connection: Connection) -> bytes | None:
        """Everything received up to the end of the first head and perhaps beyond; None if there will be none.

        What can be no request (its first byte is no letter) is handed on at once, to be refused as malformed.
        """
        received = bytearray()
        with trio.move_on_after(self._config.read_head_timeout_s) as deadline:
            while True:
                searched = max(0, len(received) - 3)
                data = await connection.receive_some(MAX_HEAD_BYTES)
                if not data:
                    return None
                received += data
                if end := _END_OF_HEAD.search(received, searched):
                    if end.end() <= MAX_HEAD_BYTES:
                        return bytes(received)
                    break
                if not received[:1].isalpha():
                    return bytes(received)
                if len(received) > MAX_HEAD_BYTES:
                    break
        if not deadline.cancelled_caught:
            await _refused(connection, 431)
        elif received:
            await _refused(connection, 408)
        return None

    async def _refuse(self, connection: Connection) -> None:
        """Over the limit: say so to a few at a time, in bounded time."""
        if self._refusing >= MAX_REFUSING:
            connection.abort()
            return
        self._refusing += 1
        try:
            with trio.move_on_after(2 * LINGER_S):
                await _refused(connection, 503)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("http.peer_left")
        finally:
            self._refusing -= 1
            connection.abort()


def _affordable(wanted: int) -> int:
    """How many connections may be open: `wanted`, or fewer where the process may not open so many files.

    The soft limit is raised as far as the hard one lets it. Without a bound of our own the system would refuse every
    new file at its limit, those of the database among them, and no client could be told why.
    """
    if sys.platform == "win32":
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError):  # a system with a bound below its own hard limit
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(wanted, max(1, soft - RESERVED_FILES))
    if most < wanted:
        _log.warning("http.connections_bounded", connections=most, wanted=wanted, reason="the limit of open files")
    return most


async def _refused(connection: Connection, status: int) -> None:
    _log.info("http.request_refused", status=status)
    await connection.send_all(rendered(transport_refusal(status)))
    await connection.aclose()
