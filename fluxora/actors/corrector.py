"""The corrector: where events cannot tell a stream's state, it reads the ledger entry and records what it says.

The log stays the only source of state: a correction is an event like any other, with the entry as its data. It is
placed after the ledger of the entry's last change. An entry that is ahead of what is recorded tells only what never
changes; the rest is read again once the log has caught up. Off the hot path, and at most so many reads a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio
from structlog.contextvars import bind_contextvars

from fluxora import logs
from fluxora.actors.parcel import Parcel, Receipt, Rewind, new_round
from fluxora.actors.progress import Progress
from fluxora.actors.sources import LedgerEntry, Source
from fluxora.errors import SourceError, StorageUnavailable
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.contract import ContractEvent, correction
from fluxora.protocol.fold import fold
from fluxora.protocol.streams import StreamState
from fluxora.storage.store import EntryWant, Store

_KEYS_PER_READ = 200  # getLedgerEntries' limit
_RECORDED_WITHIN_S = 30.0


class Corrector:
    """Works off the store's list of wanted entries."""

    name = "corrector"

    def __init__(
        self,
        outbox: trio.MemorySendChannel[Parcel],
        *,
        source: Source,
        store: Store,
        progress: Progress,
        rewind: Rewind,
        reads_per_minute: int,
        wanted: Callable[[], trio.Event],
    ) -> None:
        self._outbox = outbox
        self._source = source
        self._store = store
        self._progress = progress
        self._rewind = rewind
        self._interval_s = 60 / reads_per_minute
        self._wanted = wanted
        self._log = logs.get(self.name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read entries until cancelled; failures are tried again later, and cost nothing else."""
        async with self._outbox:
            task_status.started()
            while True:
                doorbell = self._wanted()  # taken before looking, so that nothing rings unheard
                try:
                    idle = await self._work()
                except (SourceError, StorageUnavailable, trio.TooSlowError) as error:
                    self._log.info("corrector.postponed", error=str(error))
                    idle = False
                if idle:
                    with trio.move_on_after(self._interval_s):  # one that was postponed may be due by then
                        await doorbell.wait()
                await trio.sleep(self._interval_s)

    async def _work(self) -> bool:
        """One read; True where there is nothing to do now."""
        round_id = new_round()
        bind_contextvars(round=round_id)
        generation = self._rewind.generation
        wants = await self._store.entry_wants(_KEYS_PER_READ)
        if not wants or self._progress.rollbacks or self._rewind.generation != generation:
            return True  # while a rollback is under way, the list and the cursor are those of what it takes back
        recorded = self._progress.complete_through
        found, as_of = await self._source.entries([(want.contract_id, want.chain_stream_id) for want in wants])
        entries = {(entry.contract_id, entry.stream_id): entry for entry in found}
        corrections: list[ContractEvent] = []
        settled: list[EntryWant] = []
        later: list[EntryWant] = []
        for want in wants:
            entry = entries.get((want.contract_id, want.chain_stream_id))
            if entry is not None and entry.entry is None:
                self._log.warning("corrector.entry_unreadable", stream=want.stream_id, ledger=entry.last_modified)
                later.append(want)
                continue
            ahead = entry is not None and recorded is not None and entry.last_modified > recorded
            unseen = entry is None and as_of < want.ledger  # a node behind us cannot say that there is none
            if entry is not None and (event := await self._correction(want, entry, ahead=ahead)) is not None:
                corrections.append(event)
            (later if ahead or unseen else settled).append(want)
        if corrections:
            batch = LedgerBatch(events=tuple(sorted(corrections, key=lambda e: e.id)), generation=generation)
            receipt = Receipt()
            await self._outbox.send(Parcel(batch, receipt, round=round_id))
            with trio.fail_after(_RECORDED_WITHIN_S):
                await receipt.wait()  # a want is settled only once its correction is durable
        await self._store.drop_wants(settled)
        await self._store.postpone_wants(later, int(time.time() + self._interval_s))
        self._log.info("corrector.entries_read", wanted=len(wants), found=len(found), corrected=len(corrections))
        return False

    async def _correction(self, want: EntryWant, entry: LedgerEntry, *, ahead: bool) -> ContractEvent | None:
        """The event that takes the stream to what the entry says; None where it changes nothing that anyone can see."""
        assert entry.entry is not None
        record = await self._store.stream(want.stream_id)
        ledger = want.ledger if ahead else entry.last_modified
        # The change itself happened when the stream last changed; for one that is new here the time is not known.
        closed_at = (self._progress.closed_at or int(time.time())) if record is None else record.updated_at // 1000
        event = correction(
            ledger=ledger,
            closed_at=closed_at,
            contract_id=want.contract_id,
            stream_id=want.chain_stream_id,
            entry=entry.entry,
            immutable_only=ahead,
        )
        state = None if record is None else record.state
        corrected = fold(state, event).state
        return None if corrected is None or (state is not None and _same(state, corrected)) else event


def _same(one: StreamState, other: StreamState) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in one.__struct_fields__ if name != "kind_known")
