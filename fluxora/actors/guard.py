"""The guard: nothing reaches the log that does not fit the history that we hold.

Rules, for the headers of each batch against the known chain
- first sight of a ledger: its parent's hash must be the one that we know, where we know it;
- the same sequence with the same hash: fine (a recheck, a replay);
- the same sequence with another hash: another history. The newest ledger on which both agree is looked for, everything
  above it is taken back, and fetching goes on from there;
- no ledger on which both agree: the network began anew (a testnet reset). A new epoch starts; the old one is parked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import trio
from structlog.contextvars import bind_contextvars

from fluxora import logs
from fluxora.actors.parcel import Parcel, Rewind
from fluxora.actors.progress import Progress
from fluxora.errors import SourceError, StorageUnavailable
from fluxora.protocol.chain import Conflict, KnownChain, LedgerBatch

Probe = Callable[[int], Awaitable[str | None]]
_PROBE_RETRY_S = 1.0


class Guard:
    """Checks headers, turns contradictions into rollbacks or a new epoch, and drops parcels from before a rewind.

    `probe` asks the node for the hash of one ledger (None where it has pruned it); without a probe (push source) a
    contradiction at ledger n takes back n and all above it, in the same transaction as the events that came with it.
    `complete_through` is the stored cursor: what was let through before.
    """

    name = "guard"

    def __init__(
        self,
        inbox: trio.MemoryReceiveChannel[Parcel],
        outbox: trio.MemorySendChannel[Parcel],
        *,
        chain: KnownChain,
        rewind: Rewind,
        progress: Progress,
        probe: Probe | None,
        complete_through: int | None = None,
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._chain = chain
        self._rewind = rewind
        self._progress = progress
        self._probe = probe
        self._complete_through = complete_through
        self._log = logs.get(self.name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Judge parcels until the inbox ends."""
        async with self._inbox, self._outbox:
            task_status.started()
            async for parcel in self._inbox:
                bind_contextvars(round=parcel.round)
                self._progress.counts.received += len(parcel.batch.events)
                if parcel.batch.generation < self._rewind.generation:
                    if parcel.receipt is not None:
                        parcel.receipt.fail(StorageUnavailable("it belongs to a history that has been taken back"))
                    self._progress.counts.dropped += len(parcel.batch.events)
                    self._log.debug("guard.parcel_dropped", generation=parcel.batch.generation)
                    continue
                judged = await self._judge(parcel)
                if judged.batch.complete_through is not None:
                    self._complete_through = judged.batch.complete_through
                await self._outbox.send(judged)

    async def _judge(self, parcel: Parcel) -> Parcel:
        batch = parcel.batch
        if batch.new_epoch:
            self._chain.truncate(None)
            self._complete_through = None
        conflict = self._chain.conflict(batch.headers) if batch.headers else None
        if conflict is None:
            self._chain.add(batch.headers)
            return parcel
        if self._probe is None:
            return self._undo_and_apply(parcel, conflict)
        self._progress.counts.dropped += len(batch.events)
        return replace(parcel, batch=await self._undo(conflict, batch, self._probe), receipt=None, duplicates=())

    def _undo_and_apply(self, parcel: Parcel, conflict: Conflict) -> Parcel:
        self._announce(conflict, conflict.sequence - 1)
        self._chain.truncate(conflict.sequence - 1)
        self._chain.add(parcel.batch.headers)
        changed = msgspec.structs.replace(
            parcel.batch,
            rollback_to=conflict.sequence - 1,
            existing_hash=conflict.existing_hash,
            incoming_hash=conflict.incoming_hash,
        )
        return replace(parcel, batch=changed)

    async def _undo(self, conflict: Conflict, batch: LedgerBatch, probe: Probe) -> LedgerBatch:
        ancestor = await self._common_ancestor(conflict.sequence, probe)
        self._announce(conflict, ancestor)
        self._chain.truncate(ancestor)
        self._complete_through = _lower(self._complete_through, ancestor)
        self._rewind.back_to(ancestor, complete_through=self._complete_through)
        return LedgerBatch(
            rollback_to=ancestor,
            new_epoch=ancestor is None,
            tip=batch.tip,
            generation=self._rewind.generation,
            existing_hash=conflict.existing_hash,
            incoming_hash=conflict.incoming_hash,
        )

    async def _common_ancestor(self, refuted: int, probe: Probe) -> int | None:
        """The newest known ledger below `refuted` that the node agrees with, by bisection; None where there is none.

        From old to new the known ledgers are: pruned by the node (proving nothing), agreed on, refuted.
        """
        known = self._chain.below(refuted)
        agreed = None
        low, high = 0, len(known)
        while low < high:
            middle = (low + high) // 2
            theirs = await self._ask(probe, known[middle])
            if theirs is not None and theirs != self._chain.hash_of(known[middle]):
                high = middle
                continue
            low = middle + 1
            if theirs is not None:
                agreed = known[middle]
        return agreed

    async def _ask(self, probe: Probe, sequence: int) -> str | None:
        while True:  # without an answer there is no safe way on; cancellation ends the wait
            try:
                return await probe(sequence)
            except SourceError as error:
                self._log.info("guard.probe_failed", ledger=sequence, failure=error.failure)
                await trio.sleep(error.retry_after_s or _PROBE_RETRY_S)

    def _announce(self, conflict: Conflict, ancestor: int | None) -> None:
        self._progress.fork_found(ancestor)
        self._log.warning(
            "guard.network_reset" if ancestor is None else "guard.fork_detected",
            ledger=conflict.sequence,
            existingHash=conflict.existing_hash,
            incomingHash=conflict.incoming_hash,
            rollbackTo=ancestor,
        )


def _lower(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else min(one, other)
