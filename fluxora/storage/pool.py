"""Connections: the pool, what each connection is told, and which failures mean "PostgreSQL cannot answer now".

Everything here runs on the bridge's thread. A connection that saw a failure other than an SQL error is not reused, and
the idle ones are renewed after a lost connection, so that a restarted server is noticed once and not once per socket.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple

import asyncpg
import msgspec

from fluxora.config import StorageConfig
from fluxora.errors import ConfigError, StorageUnavailable
from fluxora.storage.bridge import Bridge

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Connection = Any  # asyncpg publishes no types: a Connection or the pool's proxy of one

RELEASE_S = 1.0  # longest wait for a cancelled query to end before its connection is cut
IDLE_IN_TRANSACTION_S = 10  # for one that hangs where no other process looks (see lease.py)
PROCESS = f"fluxora {secrets.token_hex(4)}"  # what the server knows this process by
PROCESS_NAMES = "^fluxora [0-9a-f]{8}$"  # of all of them, as a regular expression of PostgreSQL
IDLE_CONNECTION_S = 300.0

# SQLSTATE classes that say nothing about the statement and everything about the server at this moment.
_UNAVAILABLE_CLASSES = (
    "08",  # connection exceptions
    "28",  # authentication: a password is being changed, or pg_hba reloaded
    "3D",  # the database does not exist (yet)
    "53",  # out of connections, memory or disk
    "57",  # shutting down, starting up, statement cancelled by its timeout
    "58",  # I/O errors of the server
    "25006",  # a standby that is not promoted yet, or a primary that was set read-only
    "25P03",  # we were idle in a transaction for too long, or
    "25P04",  # in it for longer than the server lets anyone: the transaction is gone
    "40",  # deadlock or serialization failure: nothing happened, again may do
    "55000",  # the database takes no connections, or is in recovery; nothing of ours has another prerequisite
    "55006",  # the database is being used for what nobody else may see: it is copied, moved or dropped
    "55P03",  # lock not available
    "72",  # the snapshot is too old: another is to be had
    "F0",  # the server's own configuration cannot be read
    "XX",  # internal errors, corrupted data among them: not ours to interpret
)


# The server went away, or this connection did: the idle ones are worth nothing either.
_LOST = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.OperatorInterventionError)


def is_unavailable(error: BaseException) -> bool:
    """True for what the driver, the system or a timeout raises when PostgreSQL cannot answer; False for real bugs."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_UNAVAILABLE_CLASSES)
    if isinstance(error, asyncpg.InterfaceError):
        # asyncpg has one class for "you hold it wrong" and "it broke": the second says so in words.
        text = str(error)
        return any(word in text for word in ("closed", "closing", "released", "terminated"))
    return isinstance(error, OSError | TimeoutError | asyncpg.InternalClientError | EOFError)


def _reason(error: BaseException | None) -> BaseException | None:
    """Why PostgreSQL cannot answer, where that is what `error` comes from; None for real bugs.

    Where a connection broke, asyncpg's own rollback fails as well, with an error ("another operation is in progress")
    that says nothing of it: what it hides counts.
    """
    if error is None or is_unavailable(error):
        return error
    return _reason(error.__context__) if isinstance(error, asyncpg.InterfaceError) else None


def unavailable(error: BaseException) -> StorageUnavailable:
    """The error for callers; its message names the class and the server's words, never a password."""
    return StorageUnavailable(f"PostgreSQL cannot answer: {type(error).__name__}: {error}".rstrip(": "))


def keep_alive(connection: Connection) -> None:
    """Notice a peer that vanished without a word within about ten seconds (TCP only; Unix sockets need none)."""
    sock: socket.socket | None = connection._transport.get_extra_info("socket")  # noqa: SLF001 (no public way to the socket)
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def settings(config: StorageConfig) -> dict[str, str]:
    """What every connection is told. The tcp_* ones let the server notice us vanish; Unix sockets ignore them."""
    return {
        "application_name": PROCESS,
        "statement_timeout": str(round(config.statement_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_S * 1000),
        "client_connection_check_interval": "2000",
        "tcp_keepalives_idle": "4",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "10000",
        "jit": "off",  # compiling costs more than any query here takes
        "timezone": "UTC",
    }


async def connect(url: str, config: StorageConfig, **more: str) -> Connection:
    """One connection outside the pool, for what holds on to it: the lease and the listener; `more` settings.

    Raises:
        StorageUnavailable: it cannot be made now.
        ConfigError: the URL has a part that no server could be reached with.
    """
    try:
        connection = await asyncpg.connect(
            url,
            timeout=config.connect_timeout_s,
            command_timeout=config.statement_timeout_s + 1,
            server_settings={**settings(config), **more},
        )
    except asyncpg.ClientConfigurationError as error:
        raise ConfigError(f"DATABASE_URL: {error}") from error
    except Exception as error:
        if is_unavailable(error):
            raise unavailable(error) from error
        raise
    keep_alive(connection)
    return connection


class PoolStatus(msgspec.Struct, frozen=True):
    """For metrics: connections that may be open, are, and are at work; units of work that wait for one; counts.

    `acquired` counts the connections that were handed out, `given_up` the waits that a deadline or the caller ended.
    """

    size: int
    open: int
    in_use: int
    waiting: int
    acquired: int
    given_up: int


class Pool:
    """At most `pool_size` connections, made when needed, so that it can be opened while PostgreSQL is away."""

    def __init__(self, bridge: Bridge, size: int) -> None:
        self._bridge = bridge
        self._size = size
        self._pool: Any = None  # made by `open`
        self._cut_short: set[int] = set()  # server processes of connections whose unit of work was
        self._open = 0
        self._in_use = 0
        self._waiting = 0
        self._acquired = 0
        self._given_up = 0

    @property
    def status(self) -> PoolStatus:
        """For metrics; may be asked from any thread."""
        return PoolStatus(self._size, self._open, self._in_use, self._waiting, self._acquired, self._given_up)

    @classmethod
    async def open(cls, bridge: Bridge, url: str, config: StorageConfig) -> Pool:
        """Make the pool; nothing is connected yet."""
        made = cls(bridge, config.pool_size)
        made._pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=config.pool_size,
            timeout=config.connect_timeout_s,
            command_timeout=config.statement_timeout_s + 1,
            max_inactive_connection_lifetime=IDLE_CONNECTION_S,
            server_settings=settings(config),
            init=made._init,
            reset=made._reset,
        )
        return made

    async def _init(self, connection: Connection) -> None:
        keep_alive(connection)
        self._open += 1
        connection.add_termination_listener(self._ended)

    def _ended(self, _connection: Connection) -> None:
        self._open -= 1

    async def _reset(self, connection: Connection) -> None:
        """Mostly nothing: no unit of work leaves session state behind, and RESET ALL would cost a round trip each.

        After one that was cut short in the middle of a statement, driver and server may differ on whether a
        transaction is open; a ROLLBACK settles it either way.
        """
        pid = connection.get_server_pid()
        if pid in self._cut_short:
            self._cut_short.discard(pid)
            await connection.execute("ROLLBACK")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await self._acquire()
        # Found through the connection, for after a release the proxy is empty.
        keep = self._bridge.on_abandon(connection.terminate)
        try:
            yield connection
        except (asyncio.CancelledError, asyncpg.InterfaceError):
            self._cut_short.add(connection.get_server_pid())
            raise
        finally:
            keep()
            self._in_use -= 1
            await self._pool.release(connection, timeout=RELEASE_S)

    async def _acquire(self) -> Connection:
        self._waiting += 1
        try:
            connection = await self._pool.acquire()
        except asyncio.CancelledError:
            self._given_up += 1
            raise
        finally:
            self._waiting -= 1
        self._acquired += 1
        self._in_use += 1
        return connection

    async def work(self, unit: Callable[[Connection, *Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run `unit(connection, *args)` on a connection of the pool.

        Raises:
            StorageUnavailable: PostgreSQL cannot answer; the cause is the driver's error.
        """
        try:
            async with self._connection() as connection:
                return await unit(connection, *args)
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            if isinstance(reason, _LOST) and not isinstance(reason, asyncpg.QueryCanceledError):
                await self._pool.expire_connections()
            raise unavailable(reason) from error

    async def close(self) -> None:
        """Close every connection, politely for a moment and then at once."""
        try:
            await asyncio.wait_for(self._pool.close(), RELEASE_S)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()
