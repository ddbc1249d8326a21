"""The ingest lease: of all replicas on one database, exactly one writes chain events.

It is an advisory lock on a connection that this actor holds, and a number that fences: each holder raises it, and the
log refuses whoever comes with an older one. A replica without the lease waits here, ready to take over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from fluxora import logs
from fluxora.actors.progress import Progress
from fluxora.errors import LeaseLost, StorageUnavailable
from fluxora.storage.store import Lease, Store

_RETRY_S = 0.5  # where the database is away


class LeaseKeeper:
    """Waits for the lease, reports its number through `granted`, and ends with LeaseLost once it is gone."""

    name = "lease"

    def __init__(self, store: Store, *, progress: Progress, granted: Callable[[int], Awaitable[None]]) -> None:
        self._store = store
        self._progress = progress
        self._granted = granted
        self._stop = trio.CancelScope()
        self._log = logs.get(self.name)

    def drain(self) -> None:
        """Let go of the lease; the actor ends."""
        self._stop.cancel(reason="the lease is being released")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the lease until it is lost or `drain` is called.

        Raises:
            LeaseLost: the connection that holds it died; another replica may have it.
        """
        task_status.started()
        with self._stop:
            await self._hold()

    async def _hold(self) -> None:
        lease = await self._take()
        try:
            self._progress.leading, self._progress.lease = True, lease.number
            self._log.info("lease.taken", number=lease.number)
            await self._granted(lease.number)
            await lease.lost.wait()
            raise LeaseLost(f"the connection that held lease {lease.number} is gone")
        finally:
            self._progress.leading, self._progress.lease = False, None
            with trio.move_on_after(2, shield=True):  # released on cancellation too, or the next holder waits for TCP
                await lease.aclose()

    async def _take(self) -> Lease:
        waiting = False
        while True:
            try:
                lease = await self._store.try_lease()
                if lease is not None:
                    return lease
                if not waiting:
                    waiting = True
                    self._log.info("lease.waiting", reason="another replica ingests")
                return await self._store.wait_for_lease()
            except StorageUnavailable as error:
                self._log.info("lease.database_unavailable", error=str(error))
            await trio.sleep(_RETRY_S)
