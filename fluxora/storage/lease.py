"""The ingest lease: an advisory lock on a session held for it, and a number that fences out earlier holders.

PostgreSQL frees the lock when the session ends, so a holder that dies is replaced at once. One that hangs, or whose
machine vanishes, sends no pings any more: the server ends the session, whatever TCP makes of it. The number is raised
by each new holder and checked in every append, so a holder that does not know yet that it lost the lease cannot write.

What hangs may be in the middle of a transaction, with the log's head locked. So each process, holder or not, looks for
such ones as often as it pings or asks, and has the server end them; the lock that API writes wait for is free then too.

Ingest goes on within five seconds: the server has heard nothing for SILENT_S at the latest that long after the hang,
the next holder asks RETRY_S later at the latest, and what is left is to begin. A transaction that hangs has been ended
by then, for HUNG_S and the RETRY_S to the next look are less than that. What stalls for no longer than SILENT_S less
PING_EVERY_S keeps the lease. A false alarm costs a pause and a round of fetching, never an event: what was committed
stays, and what was not is fetched again.
"""

from __future__ import annotations

import asyncio

import asyncpg
import trio

from fluxora import logs
from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.bridge import Bridge
from fluxora.storage.pool import PROCESS_NAMES, Connection, connect, is_unavailable, unavailable

LOCK_KEY = 0x666C75786C6561  # "fluxlea"
PING_EVERY_S = 0.5
PING_LIMIT_S = 3.0
SILENT_S = 3.0  # without a ping, after which the server takes a holder for hung
RETRY_S = 0.5  # between two questions of one that waits for the lease
HUNG_S = 2.0  # of no sign of life, after which a transaction that waits for its process is ended
CLOSE_S = 1.5

# A process that pings, or asks for the lease, shows life however long its transaction computes, which that of a deep
# rollback does. PostgreSQL's own time-outs know nothing of that, and none of them ends a transaction whose client
# stopped in the middle of a COPY. Ended with it are those of the process that wait for a lock: they would hang next.
_CUT_HUNG = """
SELECT application_name AS process, count(pg_terminate_backend(pid)) AS transactions FROM pg_stat_activity
WHERE datname = current_database() AND usename = session_user AND xact_start IS NOT NULL AND application_name IN (
    SELECT application_name FROM pg_stat_activity
    WHERE datname = current_database() AND usename = session_user AND application_name ~ $2
    GROUP BY application_name
    HAVING max(state_change) < clock_timestamp() - make_interval(secs => $1)
        AND bool_or(backend_xid IS NOT NULL AND wait_event IN ('ClientRead', 'ClientWrite'))
)
GROUP BY application_name
"""

log = logs.get("lease")


class Lease:
    """Held while `lost` is not set. `number` goes with every append. Close it to hand over at once.

    Both threads must live to hold it: a process whose trio thread hangs ingests nothing, so it does not ping either.
    """

    def __init__(self, bridge: Bridge, connection: Connection, number: int) -> None:
        self._bridge = bridge
        self._connection = connection
        self._token = trio.lowlevel.current_trio_token()
        self._heard = True  # trio has run since it was asked last
        self.number = number
        self.lost = trio.Event()
        bridge.spawn(self._watch)

    async def _watch(self) -> None:
        """On the bridge's thread: ping the connection until it ends, then set `lost`."""
        ended = asyncio.Event()
        self._connection.add_termination_listener(lambda _connection: ended.set())
        try:
            while not self._connection.is_closed():
                try:
                    await asyncio.wait_for(ended.wait(), PING_EVERY_S)
                except TimeoutError:
                    if self._trio_lives():
                        await _cut_hung(self._connection)
        except Exception as error:  # noqa: BLE001 (whatever it is, the lease cannot be counted on)
            log.info("lease.ping_failed", error=f"{type(error).__name__}: {error}")
        finally:
            self._connection.terminate()
            try:
                self._token.run_sync_soon(self._lose)
            except trio.RunFinishedError:
                log.debug("lease.holder_gone", lease=self.number)

    def _trio_lives(self) -> bool:
        """True where trio has run since the last question; asks the next one."""
        if self._heard:
            self._heard = False
            self._token.run_sync_soon(self._hear)
            return True
        return False

    def _hear(self) -> None:
        self._heard = True

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


async def acquire(url: str, config: StorageConfig, *, wait: bool) -> tuple[Connection, int] | None:
    """On the bridge's thread: the held connection and the lease's number; None where another replica holds it.

    With `wait` it asks until it has the lease, however long that takes, and is never None.

    Raises:
        StorageUnavailable: PostgreSQL cannot answer now.
    """
    connection = await connect(url, config, **session_settings())
    try:
        while True:
            number = await _try(connection)
            if number is not None:
                return connection, number
            if not wait:
                break
            await asyncio.sleep(RETRY_S)
    except BaseException as error:
        connection.terminate()
        if is_unavailable(error):
            raise unavailable(error) from error
        raise
    connection.terminate()
    return None


def session_settings() -> dict[str, str]:
    """What the server is told of a session that holds the lease or asks for it."""
    return {
        "idle_session_timeout": str(round(SILENT_S * 1000)),
        # The log's head is waited for from one look for the hung to the next.
        "lock_timeout": str(round(RETRY_S * 1000)),
    }


async def _try(connection: Connection) -> int | None:
    """Ask once; the lease's number where it was to be had."""
    await _cut_hung(connection)
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
        return None
    while True:
        try:
            number: int = await connection.fetchval("UPDATE log_head SET lease = lease + 1 RETURNING lease")
        except asyncpg.LockNotAvailableError:
            await _cut_hung(connection)
        else:
            return number


async def _cut_hung(connection: Connection) -> None:
    """End the transactions of processes that hang in one. It is the ping as well."""
    for row in await connection.fetch(_CUT_HUNG, HUNG_S, PROCESS_NAMES, timeout=PING_LIMIT_S):
        log.warning("lease.hung_process_cut", process=row["process"], transactions=row["transactions"])


async def _end(connection: Connection) -> None:
    try:
        await connection.close(timeout=CLOSE_S)
    except Exception as error:
        connection.terminate()
        if is_unavailable(error):
            raise unavailable(error) from error
        raise
