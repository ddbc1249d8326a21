"""The ingest lease: an advisory lock on a connection held for it, and a number that fences out earlier holders.

PostgreSQL frees the lock when the connection ends, so a holder that dies is replaced at once, and one whose machine
vanishes after the server's TCP keepalive, about ten seconds. The machine of one that only hangs goes on answering for
it: the server ends the connection where no ping has come for ten seconds. The number is raised by each new holder and
checked in every append, so a holder that does not know yet that it lost the lease cannot write.
"""

from __future__ import annotations

import asyncio

import trio

from fluxora import logs
from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.bridge import Bridge
from fluxora.storage.pool import Connection, connect, is_unavailable, unavailable

LOCK_KEY = 0x666C75786C6561  # "fluxlea"
PING_EVERY_S = 2.0
PING_LIMIT_S = 3.0
SILENT_S = 10  # after which the server takes a holder for hung; twice what may lie between two pings
HUNG_S = 5.0  # of waiting for a client in the middle of a transaction; those of ours wait for milliseconds

# Who hangs in the middle of an append has the log's head locked. PostgreSQL's own time-outs end a transaction that is
# idle, and none of them one whose client stopped in the middle of a COPY.
_CUT_HUNG = """
SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
WHERE l.locktype = 'relation' AND l.relation = 'log_head'::regclass AND l.mode = 'RowShareLock'
    AND a.datname = current_database() AND a.wait_event = 'ClientRead'
    AND a.state_change < clock_timestamp() - make_interval(secs => $1)
"""

log = logs.get("lease")


class Lease:
    """Held while `lost` is not set. `number` goes with every append. Close it to hand over at once."""

    def __init__(self, bridge: Bridge, connection: Connection, number: int) -> None:
        self._bridge = bridge
        self._connection = connection
        self._token = trio.lowlevel.current_trio_token()
        self.number = number
        self.lost = trio.Event()
        bridge.spawn(self._watch)

    async def _watch(self) -> None:
        """On the bridge's thread: ping the connection until it ends, then set `lost`."""
        try:
            await _until_lost(self._connection)
        finally:
            try:
                self._token.run_sync_soon(self._lose)
            except trio.RunFinishedError:
                log.debug("lease.holder_gone", lease=self.number)

    def _lose(self) -> None:
        if not self.lost.is_set():
            log.warning("lease.connection_lost", lease=self.number)
            self.lost.set()

    async def aclose(self) -> None:
        """Give the lease up; another replica can have it at once. Does nothing when it is lost or closed already."""
        self.lost.set()
        with trio.move_on_after(PING_LIMIT_S, shield=True):
            try:
                await self._bridge.run(_end, self._connection, deadline_s=PING_LIMIT_S)
            except StorageUnavailable as error:
                log.info("lease.was_gone", lease=self.number, error=str(error))


async def acquire(url: str, config: StorageConfig) -> tuple[Connection, int] | None:
    """On the bridge's thread: the held connection and the lease's number, or None while another replica holds it.

    Raises:
        StorageUnavailable: PostgreSQL cannot answer now.
    """
    connection = await connect(url, config, idle_session_timeout=str(SILENT_S * 1000))
    try:
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
            if cut := await connection.fetch(_CUT_HUNG, HUNG_S):
                log.warning("lease.hung_transactions_cut", transactions=len(cut))
            number: int = await connection.fetchval("UPDATE log_head SET lease = lease + 1 RETURNING lease")
            return connection, number
    except BaseException as error:
        connection.terminate()
        if is_unavailable(error):
            raise unavailable(error) from error
        raise
    connection.terminate()
    return None


async def _until_lost(connection: Connection) -> None:
    ended = asyncio.Event()
    connection.add_termination_listener(lambda _connection: ended.set())
    try:
        while not connection.is_closed():
            try:
                await asyncio.wait_for(ended.wait(), PING_EVERY_S)
            except TimeoutError:
                await connection.fetchval("SELECT 1", timeout=PING_LIMIT_S)
    except Exception as error:  # noqa: BLE001 (whatever it is, the lease cannot be counted on)
        log.info("lease.ping_failed", error=f"{type(error).__name__}: {error}")
    finally:
        connection.terminate()


async def _end(connection: Connection) -> None:
    try:
        await connection.close(timeout=PING_LIMIT_S / 2)
    except Exception as error:
        connection.terminate()
        if is_unavailable(error):
            raise unavailable(error) from error
        raise
