"""The deduplicator: drops events that passed a moment ago, so that replays cost the database nothing.

It is a fast path, never the guarantee: that is the unique key in the log. Keys are (epoch, ledger, event id), for an id
is unique in one incarnation of the network only.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import trio
from cachetools import LRUCache

from fluxora.actors.parcel import Parcel
from fluxora.protocol.contract import ContractEvent


class Deduplicator:
    """Remembers the last `entries` events; entries of rolled-back ledgers are forgotten with them."""

    name = "dedup"

    def __init__(
        self,
        inbox: trio.MemoryReceiveChannel[Parcel],
        outbox: trio.MemorySendChannel[Parcel],
        *,
        epoch: int,
        entries: int = 10_000,
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._epoch = epoch
        self._seen: LRUCache[tuple[int, int, str], None] = LRUCache(entries)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass parcels on until the inbox ends."""
        async with self._inbox, self._outbox:
            task_status.started()
            async for parcel in self._inbox:
                await self._outbox.send(self.sift(parcel))

    def sift(self, parcel: Parcel) -> Parcel:
        """The parcel without what has been seen; a rollback or a new epoch takes effect before its events do."""
        batch = parcel.batch
        if batch.new_epoch:
            self._epoch += 1
        if batch.rollback_to is not None:
            # By the keys alone: reading a value would count as its use.
            for key in [key for key in self._seen if key[1] > batch.rollback_to]:
                del self._seen[key]
        seen, epoch = self._seen, self._epoch
        fresh: list[ContractEvent] = []
        duplicates: list[str] = []
        for event in batch.events:
            key = (epoch, event.ledger, event.id)
            if key in seen:
                duplicates.append(event.id)
            else:
                fresh.append(event)
            seen[key] = None  # as the one used last
        if not duplicates:
            return parcel
        return replace(
            parcel,
            batch=msgspec.structs.replace(batch, events=tuple(fresh)),
            duplicates=parcel.duplicates + tuple(duplicates),
        )
