"""The one port: accepts connections, watches over them, and ends them.

Promises
- A connection fails alone: no exception in one ends another or the listener.
- Everything is bounded: connections, the size of a head and the time for it, the rest between two, a stalled reader.
- A stop is graceful: who has connected is answered once more and nobody new is accepted, connections on which nothing
  comes then close, requests in flight finish within `drain_s`.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import sys
from functools import partial

import trio

from fluxora import logs
from fluxora.errors import ConfigError
from fluxora.http.app import create_app
from fluxora.http.backend import Backend, Listening
from fluxora.http.connection import LINGER_S, Connection
from fluxora.http.direct_carrier import DirectCarrier, Turn
from fluxora.http.hypercorn_carrier import HypercornCarrier
from fluxora.http.line import Work, attended
from fluxora.http.lobby import AT_A_TIME, Lobby
from fluxora.http.outlet import Outlet

if sys.platform != "win32":  # which has no such limit
    import resource

BACKLOG = 2048
MAX_REFUSING = 64  # connections over the limit that are told so at a time; the rest are just closed
RESERVED_FILES = 256  # descriptors for everything else: the database, RPC endpoints, connections that are refused
WATCH_EVERY_S = 0.25
LATE_S = 0.5  # more than a busy loop makes the watch wait
ACCEPT_AGAIN_S = 0.1
LAST_CALL_S = 0.5  # for a request that was sent before its client could know of a stop
SOCKET_BYTES = 4_096  # read from a WebSocket in one turn: its messages are small, and a flood of them waits its turn
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

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
    async with trio.open_nursery() as nursery:
        front = Front(backend, nursery)
        with backend.access_log.in_use():
            try:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(front.accept, listener)
                    nursery.start_soon(front.lobby.run)
                    nursery.start_soon(front.watch)
                    host, port = listeners[0].socket.getsockname()[:2]
                    task_status.started(Listening(host, port))
                    _log.info("http.listening_started", host=host, port=port)
                    await backend.stopping.wait()  # for ever is what a server does
                    accepting.cancel_scope.cancel(reason="the front is stopping")
                await front.drain()
            finally:
                front.abort()
        nursery.cancel_scope.cancel(reason="the front has stopped")


class Front:
    """The open connections of one listener: those that rest, and those that a task of `nursery` serves."""

    def __init__(self, backend: Backend, nursery: trio.Nursery) -> None:
        self.lobby = Lobby(self._arrive)
        self._config = backend.config
        self._metrics = backend.metrics
        self._stopping = backend.stopping
        self._nursery = nursery
        self._most = backend.metrics.most_connections = _affordable(backend.config.max_connections)
        self._carrier = DirectCarrier(backend, HypercornCarrier(create_app(backend), backend.metrics))
        self._connections: set[Connection] = set()
        self._sockets = backend.sockets
        self._refusing = 0
        self._ended = trio.Event()  # replaced after each connection that ends; `drain` waits on it

    async def accept(self, listener: trio.SocketListener) -> None:
        """Take in connections until cancelled, and then listen no more."""
        async with listener:
            while True:
                try:
                    transport = await listener.accept()
                except trio.Cancelled:
                    self._accept_waiting(listener)
                    raise
                except OSError as error:
                    if error.errno not in _OUT_OF_FILES:
                        raise
                    _log.error("http.accept_failed", error=str(error), again_in_s=ACCEPT_AGAIN_S)
                    await trio.sleep(ACCEPT_AGAIN_S)
                    continue
                self._admit(transport)

    def _accept_waiting(self, listener: trio.SocketListener) -> None:
        """Take in who has connected already: the kernel resets whom it finds waiting at the listener's end."""
        with socket.socket(fileno=os.dup(listener.socket.fileno())) as waiting:
            while True:
                try:
                    accepted, _ = waiting.accept()
                except OSError:  # nobody is left, or no more can be had
                    return
                self._admit(trio.SocketStream(trio.socket.from_stdlib_socket(accepted)))

    def _admit(self, transport: trio.SocketStream) -> None:
        connection = Connection(transport, keeper=self, write_timeout_s=self._config.write_timeout_s)
        if len(self._connections) >= self._most:
            if self._refusing >= MAX_REFUSING:
                connection.abort()
            else:
                self._refusing += 1
                self._nursery.start_soon(self._refuse, connection)
            return
        self._connections.add(connection)
        self._metrics.connections = len(self._connections)
        self._rest(connection, self._config.read_head_timeout_s)

    def _rest(self, connection: Connection, patience_s: float) -> None:
        connection.due = trio.current_time() + patience_s
        if not self.lobby.rest(connection):
            self._drop(connection)

    def _rest_open(self, connection: Connection, outlet: Outlet) -> None:
        """A new outlet goes where connections rest, unless its first bytes, or ours, were its last."""
        if self._stopping.is_set():
            self._sockets.drain()
        if not outlet.ending and not self.lobby.rest(connection):
            self._drop(connection)

    def _arrive(self, connection: Connection) -> None:
        """Something came on a resting connection."""
        outlet, turn = connection.outlet, None
        try:
            if outlet is not None:
                received = connection.receive_nowait(SOCKET_BYTES)
                if received:
                    outlet.received(received)
                    return
            else:
                received = connection.receive_nowait()
                turn = self._carrier.serve_at_once(connection, received) if received else None
        except trio.WouldBlock:
            return
        except trio.BrokenResourceError:
            received, turn = b"", None
        except Exception:  # noqa: BLE001 (a defect, logged; it costs this connection and no other)
            _log.exception("http.connection_failed")
            received, turn = b"", None
        if not received:
            self._drop(connection)
        elif turn is None:
            connection.due = trio.current_time() + self._config.keep_alive_s
        else:
            self.lobby.leave(connection)
            self._nursery.start_soon(self._serve, connection, turn)

    async def _serve(self, connection: Connection, turn: Turn) -> None:
        """Serve one connection until it rests or ends. Raises nothing but cancellation."""
        connection.scope, connection.overdue = trio.CancelScope(), False
        connection.due = math.inf  # of its rest; an answer that is still going out has the deadline of writing
        rests = False
        try:
            with connection.scope:
                rests = await self._carrier.serve(connection, turn)
            if connection.overdue:
                await self._carrier.refuse(connection, 408)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("http.peer_left")
        except* Exception:  # noqa: BLE001 (a defect, logged; it costs this connection and no other)
            _log.exception("http.connection_failed")
        finally:
            if connection.outlet is not None and connection.is_open:
                self._rest_open(connection, connection.outlet)
            elif rests and not self._stopping.is_set() and connection.is_open:
                self._rest(connection, self._config.keep_alive_s)
            else:
                self._drop(connection)

    def attend(self, connection: Connection, work: Work) -> None:
        """Work for an outlet that has to wait, beside the lobby that goes on reading what it sends."""
        self._nursery.start_soon(attended, work, partial(self._drop, connection))

    def silence(self, connection: Connection) -> None:
        """Take the connection of an outlet that ends out of the lobby."""
        self.lobby.leave(connection)

    def _drop(self, connection: Connection) -> None:
        self.lobby.leave(connection)
        connection.abort()
        if connection.outlet is not None:
            connection.outlet.left()
        self._connections.discard(connection)
        self._metrics.connections = len(self._connections)
        self._ended.set()
        self._ended = trio.Event()

    async def drain(self) -> None:
        """Let requests in flight finish, for `drain_s` at most, and after the last call close connections without one.

        WebSockets are told, event streams end, and both have the same time for what is queued.
        """
        self._sockets.drain()
        with trio.move_on_after(self._config.drain_s) as budget:
            with trio.move_on_after(LAST_CALL_S):  # what is asked now is answered with `Connection: close`
                await self._all_ended()
            self._close_idle()
            await self._all_ended()
        if budget.cancelled_caught:
            _log.warning("http.drain_ended_early", connections=len(self._connections))

    async def _all_ended(self) -> None:
        while self._connections:
            await self._ended.wait()

    def _close_idle(self) -> None:
        for connection in tuple(self._connections):
            if connection.outlet is not None:
                continue
            if connection in self.lobby:
                self._drop(connection)
            elif connection.idle:
                connection.scope.cancel(reason="the front is stopping")

    def abort(self) -> None:
        """Cut off whatever is still open."""
        for connection in tuple(self._connections):
            self.lobby.leave(connection)
            connection.scope.cancel()
            connection.abort()  # a send under Hypercorn's shield does not see the cancellation
            if connection.outlet is not None:
                connection.outlet.left()

    async def watch(self) -> None:
        """End connections that have rested for too long, and give up heads that are overdue, until cancelled.

        The same loop is the clock of WebSockets and event streams.
        """
        config = self._config
        period_s = min(
            WATCH_EVERY_S, *(s / 2 for s in (config.read_head_timeout_s, config.ws_ping_s, config.sse_comment_s))
        )
        spared = False
        while True:
            look_at = trio.current_time() + period_s
            await trio.sleep_until(look_at)
            now = trio.current_time()
            # Where the whole process stood still, its clients were in time and it was not: what they have sent by now
            # is read first.
            spared = not spared and now - look_at > LATE_S
            if spared:
                continue
            for nth, connection in enumerate([one for one in self._connections if one.due <= now], 1):
                if nth % AT_A_TIME == 0:
                    await trio.lowlevel.checkpoint()
                if connection.due > now or connection not in self._connections:
                    continue  # since it was looked for
                if connection.outlet is not None:
                    connection.outlet.beat(now)
                elif connection in self.lobby:
                    self._drop(connection)
                else:
                    connection.overdue = not connection.idle
                    connection.scope.cancel(reason="the next head is overdue")

    async def _refuse(self, connection: Connection) -> None:
        """Over the limit: say so, in bounded time."""
        try:
            with trio.move_on_after(2 * LINGER_S):
                await self._carrier.refuse(connection, 503)
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
