"""The store: everything durable, as the rest of the program sees it. One method is one transaction.

Every method raises StorageUnavailable when PostgreSQL cannot answer (refused, lost, shutting down, too slow). Nothing
is half done then, though a commit whose answer was lost may have happened. Reads answer or fail within
`read_deadline_s`. Cancelling a caller cancels the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache, partial
from typing import TypeVar, TypeVarTuple

import trio

from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.messages import LogEvent, StreamRecord
from fluxora.storage import lease as leases
from fluxora.storage import migrate as migrations
from fluxora.storage import portfolio as portfolios
from fluxora.storage import reads, register, shared_limits, webhook_tallies, webhook_workers
from fluxora.storage.append import Append
from fluxora.storage.bridge import Bridge, BridgeStatus, open_bridge
from fluxora.storage.doorbell import listen
from fluxora.storage.embedded import open_embedded
from fluxora.storage.inspection import DatabaseFacts, inspect
from fluxora.storage.lease import Lease
from fluxora.storage.pool import Connection, Pool, PoolStatus
from fluxora.storage.portfolio import Portfolio
from fluxora.storage.records import (
    Appended,
    BatchOutcome,
    Change,
    Command,
    Committed,
    Create,
    EntryWant,
    EventQuery,
    IdempotencyKey,
    IngestState,
    Listing,
    LogHead,
    Outcome,
    Registered,
    StreamQuery,
)
from fluxora.storage.shared_limits import Heard, Round
from fluxora.storage.slots import SlotCache
from fluxora.storage.webhooks import WebhookStore

__all__ = [
    "Appended",
    "BatchOutcome",
    "Change",
    "Command",
    "Committed",
    "Create",
    "EntryWant",
    "EventQuery",
    "IdempotencyKey",
    "IngestState",
    "Lease",
    "Listing",
    "LogHead",
    "Outcome",
    "Portfolio",
    "Registered",
    "Store",
    "StreamQuery",
    "open_store",
]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_HEARTBEATS = frozenset((reads.ping, reads.head, reads.entry_wants, webhook_workers.renew, webhook_tallies.backlog))
"""Asked every few seconds for nobody in particular."""
CACHED_STREAMS = 20_000  # about 1.5 KB each
REWIND_LIMIT_S = 600.0  # a rollback or a new epoch may touch every stream


class Store:
    """Handle on an open store; made by `open_store`. Methods may be called from any task.

    `webhooks` are the methods for webhooks.
    """

    def __init__(
        self, config: StorageConfig, url: str, bridge: Bridge, pool: Pool, decimals: Mapping[str, int]
    ) -> None:
        self._config = config
        self._url = url
        self._bridge = bridge
        self._pool = pool
        self._decimals = decimals
        self._cache = SlotCache(CACHED_STREAMS)
        self._appending: asyncio.Lock | None = None  # made on the bridge's thread; appends share the cache
        self._adding_up: asyncio.Semaphore | None = None  # made there too
        self.webhooks = WebhookStore(self._read, self._write)

    @property
    def url(self) -> str:
        """Where PostgreSQL is reached. May hold a password: not for logs."""
        return self._url

    @property
    def bridge_status(self) -> BridgeStatus:
        """Units of work on their way to PostgreSQL's thread and back."""
        return self._bridge.status

    @property
    def pool_status(self) -> PoolStatus:
        """The connections to PostgreSQL."""
        return self._pool.status

    async def try_lease(self) -> Lease | None:
        """Take the ingest lease; None while another replica holds it."""
        return await self._lease(wait=False, deadline_s=self._config.connect_timeout_s * 2)

    async def wait_for_lease(self) -> Lease:
        """Take the ingest lease as soon as no other replica holds it, however long that takes."""
        lease = await self._lease(wait=True, deadline_s=None)
        assert lease is not None
        return lease

    async def _lease(self, *, wait: bool, deadline_s: float | None) -> Lease | None:
        acquired = await self._bridge.run(
            partial(leases.acquire, wait=wait), self._url, self._config, deadline_s=deadline_s
        )
        return None if acquired is None else Lease(self._bridge, *acquired)

    async def ingest_state(self) -> IngestState:
        """Where ingest stands."""
        return await self._write(reads.ingest_state)

    async def append(self, batches: Sequence[LedgerBatch], *, lease: int) -> Appended:
        """Record batches in order, in one transaction: rollbacks, epochs, events, streams, headers, cursor, wants.

        Raises:
            LeaseLost: the lease is not the newest one; nothing was recorded.
        """
        rewinds = any(batch.new_epoch or batch.rollback_to is not None for batch in batches)
        limit_s = REWIND_LIMIT_S if rewinds else self._config.write_deadline_s
        return await self._bridge.run(self._append, batches, lease, deadline_s=limit_s, operation="append")

    async def _append(self, batches: Sequence[LedgerBatch], lease: int) -> Appended:
        if self._appending is None:
            self._appending = asyncio.Lock()
        async with self._appending:
            return await self._pool.work(self._append_on, batches, lease)

    async def _append_on(self, connection: Connection, batches: Sequence[LedgerBatch], lease: int) -> Appended:
        return await Append(connection, self._cache, self._decimals, lease).run(batches)

    async def register(self, commands: Sequence[Command]) -> Committed:
        """Carry out API writes in order, in one transaction; what one of them cannot do is its outcome, not an error.

        Raises:
            StorageUnavailable: nobody knows whether the transaction was committed. All of it was, or nothing.
        """
        return await self._write(register.register, commands)

    async def purge_idempotency_keys(self, limit: int) -> int:
        """Delete up to `limit` idempotency keys that have expired; the number of them."""
        return await self._write(register.purge_keys, limit)

    async def limit_salt(self) -> bytes:
        """The key of this database under which callers of rate limits are hashed."""
        return await self._read(shared_limits.salt)

    async def show_for_limits(self, process: str) -> None:
        """Have the other processes know for a while that this one is there."""
        await self._read(shared_limits.show, process)

    async def exchange_limits(self, process: str, rounds: Sequence[Round], known: Mapping[str, int]) -> Heard:
        """Publish what callers spent here, and learn what they spent elsewhere. See fluxora.storage.shared_limits."""
        return await self._read(shared_limits.exchange, process, rounds, known)

    async def entry_wants(self, limit: int) -> list[EntryWant]:
        """Streams whose ledger entry is due to be read."""
        return await self._read(reads.entry_wants, int(time.time()), limit)

    async def drop_wants(self, wants: Sequence[EntryWant]) -> None:
        """These have been answered, as they were when `entry_wants` listed them."""
        await self._write(reads.drop_wants, wants)

    async def postpone_wants(self, wants: Sequence[EntryWant], until: int) -> None:
        """Ask for these again at `until` (Unix seconds)."""
        await self._write(reads.postpone_wants, wants, until)

    async def stream(self, stream_id: str) -> StreamRecord | None:
        """One stream, of whatever epoch; None where there is none."""
        return await self._read(reads.stream, stream_id)

    async def streams(self, query: StreamQuery) -> list[StreamRecord]:
        """A page of streams in creation order."""
        return await self._read(reads.streams, query)

    async def streams_of(self, stream_ids: Sequence[str]) -> dict[str, StreamRecord]:
        """Those of the streams that exist, by id, of whatever epoch."""
        return await self._read(reads.streams_of, stream_ids)

    async def listings(self, queries: Sequence[StreamQuery]) -> list[Listing]:
        """Which streams each page has, in creation order; the queries must be of one shape."""
        return await self._read(reads.listings, queries)

    async def page(self, query: StreamQuery) -> tuple[int, list[StreamRecord]]:
        """A page of streams in creation order, and the position of the log that it shows."""
        return await self._read(reads.page, query)

    async def events(self, query: EventQuery) -> list[LogEvent]:
        """A page of the log in position order."""
        return await self._read(reads.events, query)

    async def position(self) -> int:
        """The newest position; every event up to it can be read."""
        return await self._read(reads.position)

    async def portfolio(self, address: str, as_of: int) -> Portfolio | None:
        """What `address` has in streams at `as_of` (Unix seconds); None where they are too many to add up in time.

        Answers or fails within `portfolio.DEADLINE_S`.
        """
        return await self._bridge.run(
            self._portfolio, address, as_of, deadline_s=portfolios.DEADLINE_S, operation=_name(portfolios.portfolio)
        )

    async def _portfolio(self, address: str, as_of: int) -> Portfolio | None:
        if self._adding_up is None:
            self._adding_up = asyncio.Semaphore(portfolios.MAX_AT_A_TIME)
        async with self._adding_up:
            return await self._pool.work(portfolios.portfolio, address, as_of)

    async def head(self) -> LogHead:
        """Where the log ends, and in which network epoch."""
        return await self._read(reads.head)

    async def ping(self) -> float:
        """Seconds that the least question takes."""
        started = time.perf_counter()
        await self._read(reads.ping)
        return time.perf_counter() - started

    async def inspect(self) -> DatabaseFacts:
        """What an operator should know of the database, migrated or not."""
        return await self._read(inspect)

    async def migrate(self) -> list[int]:
        """Bring the schema up to this program; the versions applied now. See fluxora.storage.migrate."""
        # No deadline: an index on millions of rows takes what it takes, and nothing else runs before it is done.
        return await self._bridge.run(
            migrations.apply, self._url, self._config, migrations.migrations(), operation="migrate"
        )

    async def _read(self, unit: Callable[[Connection, *Ts], Awaitable[T]], *args: *Ts) -> T:
        return await self._work(unit, args, self._config.read_deadline_s)

    async def _write(self, unit: Callable[[Connection, *Ts], Awaitable[T]], *args: *Ts) -> T:
        return await self._work(unit, args, self._config.write_deadline_s)

    async def _work(self, unit: Callable[[Connection, *Ts], Awaitable[T]], args: tuple[*Ts], deadline_s: float) -> T:
        return await self._bridge.run(
            lambda: self._pool.work(unit, *args),
            deadline_s=deadline_s,
            operation=_name(unit),
            heartbeat=unit in _HEARTBEATS,
        )


@lru_cache
def _name(unit: Callable[..., object]) -> str:
    """What a unit of work is called in traces: by it the function is found."""
    return f"{unit.__module__.rpartition('.')[2]}.{unit.__name__}"


@asynccontextmanager
async def open_store(
    config: StorageConfig,
    *,
    decimals: Mapping[str, int],
    wakeup: Callable[[], object] | None = None,
    webhook_wakeup: Callable[[], object] | None = None,
) -> AsyncIterator[Store]:
    """Start the bridge, the pool, and PostgreSQL itself where `database_url` is unset. Does not migrate.

    A server of one's own need not be up yet. `wakeup` is called in the trio thread after each append, by whichever
    process, and may be called without one; `webhook_wakeup` in the same way where there may be deliveries to send.
    `decimals` are those of the contracts' tokens (7 where missing).

    Raises:
        ConfigError: embedded PostgreSQL cannot be started.
    """
    async with AsyncExitStack() as stack:
        url = config.database_url
        if url is None:
            url = await stack.enter_async_context(open_embedded(config.data_dir))
        bridge = await stack.enter_async_context(open_bridge())
        pool = await bridge.run(Pool.open, bridge, url, config)
        try:
            if wakeup is not None:
                bridge.spawn(listen, url, config, _bells(wakeup, webhook_wakeup))
            yield Store(config, url, bridge, pool, decimals)
        finally:
            with trio.move_on_after(config.connect_timeout_s, shield=True):
                await _close(bridge, pool)


async def _close(bridge: Bridge, pool: Pool) -> None:
    try:
        await bridge.run(pool.close, deadline_s=3)
    except StorageUnavailable:
        return  # it was cut; there is nobody to tell


def _bells(wakeup: Callable[[], object], webhook_wakeup: Callable[[], object] | None) -> Callable[[str], None]:
    """What the doorbell rings, on the bridge's thread."""
    ring = _in_trio(wakeup)
    ring_for_webhooks = None if webhook_wakeup is None else _in_trio(webhook_wakeup)

    def rung(said: str) -> None:
        ring()
        if not said and ring_for_webhooks is not None:
            ring_for_webhooks()

    return rung


def _in_trio(wakeup: Callable[[], object]) -> Callable[[], None]:
    """`wakeup` for the bridge's thread: rings that come before trio gets to them count as one."""
    token = trio.lowlevel.current_trio_token()

    def ring() -> None:
        try:
            token.run_sync_soon(wakeup, idempotent=True)
        except trio.RunFinishedError:
            return

    return ring
