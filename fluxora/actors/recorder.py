"""The recorder: the one writer. What waits in its inbox becomes one transaction; nothing is told before its commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import trio
from structlog.contextvars import bind_contextvars

from fluxora import logs, tracing
from fluxora.actors.parcel import Parcel, Recorded
from fluxora.actors.progress import Progress
from fluxora.errors import Resync, StorageError, StorageUnavailable
from fluxora.storage.store import Appended, Store

_PROBE_INTERVAL_S = 0.5


class Recorder:
    """Records parcels in the order in which they arrive.

    A failed transaction leaves nothing behind, but a lost connection can hide whether a commit went through. So nothing
    is retried here: the recorder waits until the database answers again and then asks for a fresh start from the stored
    cursor (`Resync`), where whatever was recorded is seen to be.
    """

    name = "recorder"

    def __init__(
        self,
        inbox: trio.MemoryReceiveChannel[Parcel],
        *,
        store: Store,
        lease: int,
        progress: Progress,
        publish: Callable[[Appended], None],
        events_per_transaction: int,
    ) -> None:
        self._inbox = inbox
        self._store = store
        self._lease = lease
        self._progress = progress
        self._publish = publish
        self._limit = events_per_transaction
        self._log = logs.get(self.name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record until the inbox ends.

        Raises:
            Resync: the database failed and answers again.
            LeaseLost: another replica ingests.
        """
        async with self._inbox:
            task_status.started()
            async for first in self._inbox:
                await self._record(self._gather(first))

    def _gather(self, first: Parcel) -> list[Parcel]:
        """`first` and whatever else waits, up to the bound: one commit, one fsync for all of it."""
        parcels, events = [first], len(first.batch.events)
        while events < self._limit:
            try:
                parcel = self._inbox.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            parcels.append(parcel)
            events += len(parcel.batch.events)
        return parcels

    async def _record(self, parcels: Sequence[Parcel]) -> None:
        bind_contextvars(rounds=list(dict.fromkeys(parcel.round for parcel in parcels)))
        began = time.perf_counter()
        try:
            appended = await self._appended(parcels)
        except StorageError as error:
            for parcel in parcels:
                if parcel.receipt is not None:
                    parcel.receipt.fail(error)
            if not isinstance(error, StorageUnavailable):
                raise
            await self._wait_for_database(error)
        self._count(parcels, appended, time.perf_counter() - began)
        self._publish(appended)
        for parcel, outcome in zip(parcels, appended.outcomes, strict=True):
            outcome.duplicates.extend(parcel.duplicates)
            if parcel.receipt is not None:
                parcel.receipt.resolve(Recorded(outcome, appended.position))
        self._note(parcels, appended)

    async def _appended(self, parcels: Sequence[Parcel]) -> Appended:
        events = sum(len(parcel.batch.events) for parcel in parcels)
        told = {"fluxora.parcels": len(parcels), "fluxora.events": events}
        with tracing.caused("recorder.record", [parcel.cause for parcel in parcels], told) as span:
            appended = await self._store.append([parcel.batch for parcel in parcels], lease=self._lease)
            if appended.events:
                tracing.appended(appended.events[0].position, appended.position, span)
            return appended

    def _count(self, parcels: Sequence[Parcel], appended: Appended, seconds: float) -> None:
        counts = self._progress.counts
        counts.seconds.add(seconds)
        counts.events.add(sum(len(parcel.batch.events) for parcel in parcels))
        counts.sifted += sum(len(parcel.duplicates) for parcel in parcels)
        for outcome in appended.outcomes:
            counts.known += len(outcome.duplicates)
            counts.recorded += len(outcome.inserted)
            counts.undone += outcome.rolled_back
            counts.rollbacks += outcome.rolled_back_to is not None

    def _note(self, parcels: Sequence[Parcel], appended: Appended) -> None:
        progress = self._progress
        for parcel in parcels:
            batch = parcel.batch
            if batch.new_epoch or batch.rollback_to is not None:
                progress.taken_back(batch.rollback_to)
            for header in batch.headers[-1:]:
                progress.checked(header)
            progress.recorded(batch.complete_through, time.time(), events=bool(batch.events))
        if appended.events:
            self._log.debug("recorder.batch_committed", events=len(appended.events), position=appended.position)

    async def _wait_for_database(self, cause: StorageUnavailable) -> NoReturn:
        """Until it answers: there is nothing else to do for the one writer, and cancellation ends it."""
        self._log.warning("recorder.database_lost", error=str(cause))
        while True:
            await trio.sleep(_PROBE_INTERVAL_S)
            try:
                await self._store.ping()
            except StorageUnavailable:
                continue
            self._log.info("recorder.database_back")
            raise Resync("the database is back; going on from the stored cursor") from cause
