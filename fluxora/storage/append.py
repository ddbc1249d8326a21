"""The hot path: batches of the chain into the log and the streams, in one transaction on one connection.

Order of things
- The log head is locked first and until the commit; no row means that another replica holds a newer lease.
- Batches are applied in order. An event in chain order is folded onto the state at hand. One that is older than what
  its stream has seen is late: its stream is folded again from all its events at the end of the batch (refold.py).
- Rows wait in memory and are written together; before anything is read back from the tables they are flushed. What
  webhooks get of them is inserted behind them.
- States are kept between appends of one lease, for nobody else may write chain streams meanwhile. Any failure empties
  that cache, since it may have seen what was not committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile

from fluxora.errors import LeaseLost
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.contract import ContractEvent
from fluxora.protocol.fold import Folded, fold
from fluxora.protocol.messages import LogEvent, payload_for, stream_id
from fluxora.storage import statements as sql
from fluxora.storage import webhook_outbox
from fluxora.storage.pool import Connection
from fluxora.storage.records import Appended, BatchOutcome
from fluxora.storage.refold import BIRTH, Refolded, refold
from fluxora.storage.rewind import park, take_back
from fluxora.storage.slots import Slot, SlotCache
from fluxora.storage.writer import Writer

FAIR_EVERY = 64  # events folded between two chances for other work of the thread: about 3 ms


class Append:
    """One transaction's worth of state. Made anew for each call; used once."""

    def __init__(self, connection: Connection, cache: SlotCache, decimals: Mapping[str, int], lease: int) -> None:
        self._connection = connection
        self._cache = cache
        self._decimals = decimals
        self._lease = lease
        self._seen: dict[str, int] = {}  # ids recorded by this append, and their ledgers
        self._undone: list[int] = []  # positions that this append takes back
        self.slots: dict[str, Slot] = {}
        self.writer = Writer(connection)

    async def run(self, batches: Sequence[LedgerBatch]) -> Appended:
        """Apply the batches and commit.

        Raises:
            LeaseLost: the lease is not the newest one.
        """
        async with self._connection.transaction():
            try:
                appended = await self._within(batches)
            finally:
                await self.writer.abandon()
        self._cache.keep(self.slots)
        return appended

    async def _within(self, batches: Sequence[LedgerBatch]) -> Appended:
        head = await self._connection.fetchrow(sql.LOCK_HEAD, self._lease)
        if head is None:
            raise LeaseLost(f"lease {self._lease} was taken over by another replica")
        self._cache.use(self._lease, head["epoch"])
        self.writer.start(head)
        self.epoch: int = head["epoch"]
        self.complete_through: int | None = head["complete_through"]
        self.newest: str = head["newest_event_id"]
        await self._load(_before_any_rewind(batches))
        outcomes = [await self._apply(batch) for batch in batches]
        await self.writer.flush(self.slots.values())
        if head["webhooks"] and self.writer.events:
            await webhook_outbox.record(self._connection, self.writer.events, self._undone)
        await self.writer.finish(self.epoch, self.complete_through, self.newest)
        return Appended(self.writer.position, self.epoch, self.writer.events, outcomes, self.writer.streams)

    async def _apply(self, batch: LedgerBatch) -> BatchOutcome:
        outcome = BatchOutcome([], [], 0, None)
        if batch.new_epoch:
            await self._begin_epoch()
        if batch.rollback_to is not None:
            outcome.rolled_back = await self._roll_back(batch.rollback_to)
            outcome.rolled_back_to = batch.rollback_to
        if batch.events:
            await self._record(await self._without_duplicates(batch.events, outcome))
        for header in batch.headers:
            self.writer.headers[self.epoch, header.sequence] = header
        if batch.complete_through is not None:
            self.complete_through = max(batch.complete_through, self.complete_through or 0)
        return outcome

    async def _without_duplicates(self, events: Sequence[ContractEvent], outcome: BatchOutcome) -> list[ContractEvent]:
        """The events that are not recorded yet; above the newest id there can be none, and nothing is asked."""
        asked = [f"{self.epoch}-{event.id}" for event in events if event.id <= self.newest]
        known: set[str] = set()
        if asked:
            await self.writer.idle()
            known = {row["event_id"] for row in await self._connection.fetch(sql.LIVE_IDS, asked)}
        fresh = []
        for event in events:
            if event.id in self._seen or (known and f"{self.epoch}-{event.id}" in known):
                outcome.duplicates.append(event.id)
            else:
                self._seen[event.id] = event.ledger
                outcome.inserted.append(event.id)
                fresh.append(event)
        return fresh

    async def _record(self, events: Sequence[ContractEvent]) -> None:
        late: dict[str, list[ContractEvent]] = {}
        await self._load(events)
        newest = self.newest
        for count, event in enumerate(events, 1):
            if count % FAIR_EVERY == 0:
                self.writer.push()
                await asyncio.sleep(0)
            if event.stream_id is None:
                self._emit(event, None, "contract.updated", event.id)
            else:
                key = stream_id(event.contract_id, event.stream_id, self.epoch)
                slot = self.slots[key]
                if key in late or self._is_late(event, slot, newest):
                    late.setdefault(key, []).append(event)
                else:
                    self._advance(event, slot)
            self.newest = max(self.newest, event.id)
        if late:
            await self._fold_again(late)

    def _is_late(self, event: ContractEvent, slot: Slot, newest: str) -> bool:
        """True when events of the same stream with greater ids may be recorded already. `newest`: before this batch."""
        if event.id < (slot.last_event_id or newest):
            return True
        if event.action != "del_share" or "child_stream_id" not in event.data:
            return False
        child = self.slots[stream_id(event.contract_id, event.data["child_stream_id"], self.epoch)]
        return event.id < (child.last_event_id or newest)

    def _advance(self, event: ContractEvent, slot: Slot) -> None:
        """Fold one event in chain order onto the state at hand."""
        folded = fold(slot.state, event)
        slot.apply(folded.state, event, self.writer.position + 1, event.id)
        self._emit(event, slot, f"stream.{folded.kind}", event.id)
        self._want(event, slot, folded)
        child = folded.child
        if child is not None:
            slot = self.slots[stream_id(event.contract_id, child.stream_id, self.epoch)]
            slot.apply(child, event, self.writer.position + 1, event.id + BIRTH)
            self._emit(event, slot, "stream.created", event.id + BIRTH)
            self._want(event, slot, folded)

    def _emit(self, event: ContractEvent, slot: Slot | None, name: str, event_id: str) -> None:
        """The log row of `event`, with its stream as the slot has it now."""
        row = LogEvent(
            self.writer.position + 1,
            f"{self.epoch}-{event_id}",
            name,
            event.action,
            None if slot is None else slot.id,
            event.ledger,
            event.tx_hash or None,
            event.contract_id,
            event.closed_at * 1000,
            payload_for(
                None if slot is None else slot.record(), event, decimals=self._decimals.get(event.contract_id, 7)
            ),
        )
        self.writer.add(self.epoch, row, event.raw)

    def _want(self, event: ContractEvent, slot: Slot, folded: Folded) -> None:
        if folded.wants_entry:
            self.writer.wants[slot.id] = (slot.contract_id, slot.chain_id, event.ledger)

    async def _load(self, events: Sequence[ContractEvent]) -> None:
        """Bring the slots of all streams of `events` at hand: from this append, the cache or the table, else empty."""
        missing: dict[str, tuple[str, int]] = {}
        for event in events:
            if event.stream_id is not None:
                self._find(event.contract_id, event.stream_id, missing)
                child = event.data.get("child_stream_id") if event.action == "del_share" else None
                if child is not None:
                    self._find(event.contract_id, child, missing)
        await self._read(missing)

    def _find(self, contract_id: str, chain_id: int, missing: dict[str, tuple[str, int]]) -> None:
        key = stream_id(contract_id, chain_id, self.epoch)
        if key in self.slots or key in missing:
            return
        slot = self._cache.take(key)
        if slot is None:
            missing[key] = (contract_id, chain_id)
        else:
            self.slots[key] = slot

    async def _read(self, missing: Mapping[str, tuple[str, int]]) -> None:
        if not missing:
            return
        await self.writer.idle()
        rows = await self._connection.fetch(sql.LOAD_STREAMS, list(missing))
        for count, row in enumerate(rows, 1):
            if count % FAIR_EVERY == 0:
                await asyncio.sleep(0)
            self.slots[row["id"]] = Slot.read(row)
        for key, (contract_id, chain_id) in missing.items():
            if key not in self.slots:
                self.slots[key] = Slot(key, self.epoch, contract_id, chain_id, self._decimals.get(contract_id, 7))

    async def _fold_again(self, late: Mapping[str, list[ContractEvent]]) -> None:
        """Record late events behind the batch's others, each with its stream as it is after all of them."""
        await self.writer.flush(self.slots.values())
        result = await refold(self._connection, self.epoch, set(late), late)
        changed, before = await self._settle(result), self.writer.position
        for event in sorted((event for group in late.values() for event in group), key=lambda event: event.id):
            folded = result.folded[event.id]
            slot = self.slots[stream_id(event.contract_id, event.stream_id or 0, self.epoch)]
            slot.touch(self.writer.position + 1)
            self._emit(event, slot, f"stream.{folded.kind}", event.id)
            self._want(event, slot, folded)
            if folded.child is not None:
                self._announce_birth(event, stream_id(event.contract_id, folded.child.stream_id, self.epoch))
                self._want(event, slot, folded)
        for event, key in result.births:
            self._announce_birth(event, key)
        for key in changed:
            if self.slots[key].position <= before:  # a delegated stream whose parent's past has changed: it has no row
                self.slots[key].touch(self.writer.position)  # of its own, and is another version all the same

    def _announce_birth(self, event: ContractEvent, key: str) -> None:
        self.slots[key].touch(self.writer.position + 1)
        self._emit(event, self.slots[key], "stream.created", event.id + BIRTH)

    async def _settle(self, result: Refolded) -> set[str]:
        """Put refolded states in place; positions are given by the log rows that follow. Which streams differ now."""
        missing: dict[str, tuple[str, int]] = {}
        for key, one in result.streams.items():
            if key not in self.slots:
                slot = self._cache.take(key)
                if slot is None:
                    missing[key] = (one.contract_id, one.chain_id)
                else:
                    self.slots[key] = slot
        await self._read(missing)
        changed: set[str] = set()
        for count, (key, one) in enumerate(result.streams.items(), 1):
            if count % FAIR_EVERY == 0:
                await asyncio.sleep(0)
            if self.slots[key].state != one.state:
                changed.add(key)
            self.slots[key].restore(one)
        return changed

    async def _roll_back(self, ledger: int) -> int:
        """Take back every event above `ledger`; the number of them."""
        await self.writer.flush(self.slots.values())
        await self._connection.execute(sql.NO_TIMEOUT)
        self._seen = {id_: at for id_, at in self._seen.items() if at <= ledger}
        self.writer.forget_headers(self.epoch, ledger)
        if self.complete_through is not None:
            self.complete_through = min(self.complete_through, ledger)
        undone = await take_back(self._connection, self.epoch, ledger, self.writer.position + 1)
        if not undone.count:
            return 0
        self._undone += undone.positions
        result = await refold(self._connection, self.epoch, undone.streams)
        await self._settle(result)
        for key in undone.corrected:
            if (slot := self.slots[key]).state is not None:
                self.writer.wants[key] = (slot.contract_id, slot.chain_id, ledger)
        now_ms = time.time_ns() // 1_000_000
        for count, row in enumerate(undone.rows(self.slots, now_ms)):
            if count % FAIR_EVERY == 0:
                await asyncio.sleep(0)
            if row.stream_id is not None:
                self.slots[row.stream_id].touch(row.position)
            self.writer.add(self.epoch, row, None)
        for event, key in result.births:
            self._announce_birth(event, key)
        newest: str | None = await self._connection.fetchval(sql.NEWEST_LIVE, f"{self.epoch}-0", f"{self.epoch}-:")
        self.newest = (newest or "").partition("-")[2].removesuffix(BIRTH)
        return undone.count

    async def _begin_epoch(self) -> None:
        """The network began anew: its old streams keep their rows and leave every list."""
        await self.writer.flush(self.slots.values())
        await self._connection.execute(sql.NO_TIMEOUT)
        await park(self._connection)
        self.epoch += 1
        self.complete_through = None
        self.newest = ""
        self.slots.clear()
        self.writer.wants.clear()
        self._seen.clear()
        self._cache.use(self._lease, self.epoch)


def _before_any_rewind(batches: Sequence[LedgerBatch]) -> list[ContractEvent]:
    """Events whose streams can be read at once, before the connection is busy writing."""
    plain = takewhile(lambda batch: not batch.new_epoch and batch.rollback_to is None, batches)
    return [event for batch in plain for event in batch.events]
