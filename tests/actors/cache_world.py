"""A read cache over the real store, whose questions go on when the test says so; and the history of every commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from itertools import count
from typing import Any, NamedTuple, cast

import trio
import trio.testing
from chain_events import CONTRACT, GENESIS_S

from fluxora.actors.stream_cache import StreamCache
from fluxora.protocol import contract
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.messages import STATUS_NAMES, StreamRecord
from fluxora.protocol.streams import StreamStatus
from fluxora.storage.store import Appended, Change, Create, Store, StreamQuery

_unique = count(1)
PATIENCE_S = 30


class Call:
    """A question to the store: it is asked once `go` is set, and answered once `deliver` is."""

    def __init__(self) -> None:
        self.go, self.asked, self.deliver = trio.Event(), trio.Event(), trio.Event()


class Held:
    """The store, each of whose questions waits to be let go. `calls` are those under way, `names` all there were."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[Call] = []
        self.names: list[str] = []
        self.free = False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def held(*args: Any) -> Any:
            method = getattr(self._store, name)
            self.names.append(name)
            if self.free:
                return await method(*args)
            call = Call()
            self.calls.append(call)
            try:
                await call.go.wait()
                try:
                    return await method(*args)
                finally:
                    call.asked.set()
                    await call.deliver.wait()
            finally:
                call.asked.set()
                self.calls.remove(call)

        return held

    async def step(self, number: int) -> None:
        """Let one of the questions go one step on: to the database, or from it to whoever asked."""
        if self.calls:
            call = self.calls[number % len(self.calls)]
            if call.go.is_set():
                call.deliver.set()
            else:
                call.go.set()
                await call.asked.wait()
        await trio.testing.wait_all_tasks_blocked()


class Read(NamedTuple):
    """A read that has ended: what was asked, the position that it must at least show, and what it found."""

    wanted: str | StreamQuery
    floor: int
    found: Any


class World:
    """The store, a cache of it, and the history of what was committed."""

    def __init__(self, store: Store, lease: int, nursery: trio.Nursery) -> None:
        self.store = store
        self.held = Held(store)
        self.trusted = True
        self.cache = StreamCache(cast("Store", self.held), trusted=lambda: self.trusted)
        self.sender = encode(AddressKind.ACCOUNT, sha256(f"{next(_unique)}".encode()).digest())
        self.queries = [
            StreamQuery(sender=self.sender, limit=3),
            StreamQuery(sender=self.sender, limit=3, descending=True),
            StreamQuery(sender=self.sender, limit=2, status="active"),
            StreamQuery(sender=self.sender, limit=100, status="paused"),
        ]
        self.ids: list[str] = []
        self.states: list[tuple[int, dict[str, StreamRecord]]] = [(0, {})]  # after each commit, by position
        self.heard = 0  # commits up to here were published to the cache
        self.unheard: list[Appended] = []
        self.reads: list[Read] = []
        self.readers: list[trio.CancelScope] = []
        self._nursery = nursery
        self._lease = lease

    # -- commits -------------------------------------------------------------------------------------------------

    async def create(self, *, here: bool) -> None:
        number = next(_unique)
        new = NewStream(
            sender=self.sender,
            recipient=encode(AddressKind.ACCOUNT, bytes([7] * 32)),
            deposit_amount=10**10,
            rate_per_second=10**5,
        )
        await self._register(Create(f"stream-{number:032x}", f"e{number}", new, None), here=here)

    async def change(self, number: int, *, here: bool) -> None:
        own = [one for one in self.ids if self.latest.get(one) is not None and self.latest[one].origin == "api"]
        if own:
            record = self.latest[own[number % len(own)]]
            to = StreamStatus.PAUSED if record.state.status is StreamStatus.ACTIVE else StreamStatus.ACTIVE
            await self._register(Change(record.id, f"e{next(_unique)}", to), here=here)

    async def chain_creates(self, *, here: bool) -> None:
        ledger = next(_unique)
        self._committed(await self._append(LedgerBatch(events=(created(ledger, self.sender),))), here=here)

    async def chain_rolls_back(self, *, here: bool) -> None:
        """The newest stream of the chain is taken away."""
        of_chain = [record for record in self.latest.values() if record.origin == "chain"]
        if of_chain:
            ledger = max(record.ledger or 0 for record in of_chain)
            self._committed(await self._append(LedgerBatch(rollback_to=ledger - 1)), here=here)

    async def _append(self, batch: LedgerBatch) -> Appended:
        return await self.store.append([batch], lease=self._lease)

    async def _register(self, command: Create | Change, *, here: bool) -> None:
        self._committed((await self.store.register([command])).appended, here=here)

    def _committed(self, appended: Appended, *, here: bool) -> None:
        """Take it into the history, and let the cache hear of it now (`here`) or later."""
        state = dict(self.latest)
        for stream_id, record in appended.streams.items():
            if stream_id not in self.ids:
                self.ids.append(stream_id)
            if record is None:
                state.pop(stream_id, None)
            else:
                state[stream_id] = record
        self.states.append((appended.position, state))
        if here:
            self.cache.take_over(appended.streams)
            if not self.unheard:
                self.heard = appended.position
        else:
            self.unheard.append(appended)

    def hear(self, *, of_here: bool = False) -> None:
        """The cache is told what was committed, by another replica or, some time after its commit, `of_here`."""
        for appended in self.unheard:
            if of_here:
                self.cache.take_over(appended.streams)
            else:
                self.cache.forget(appended.streams)
        self.unheard.clear()
        self.heard = self.states[-1][0]

    @property
    def latest(self) -> dict[str, StreamRecord]:
        return self.states[-1][1]

    def at(self, position: int) -> dict[str, StreamRecord]:
        """Every stream as it was when the log ended at `position`."""
        return max((one for one in self.states if one[0] <= position), key=lambda one: one[0])[1]

    # -- reads ---------------------------------------------------------------------------------------------------

    def read(self, wanted: str | StreamQuery) -> None:
        """Start to read; what a reader is told must not be older than what was known here as it began."""
        scope = trio.CancelScope()
        self.readers.append(scope)
        floor = self.heard if self.trusted else self.states[-1][0]
        self._nursery.start_soon(self._read, wanted, floor, scope)

    async def _read(self, wanted: str | StreamQuery, floor: int, scope: trio.CancelScope) -> None:
        with scope:
            if isinstance(wanted, str):
                found: Any = self.cache.at_once(wanted) or await self.cache.stream(wanted)
            else:
                found = self.cache.page_at_once(wanted) or await self.cache.page(wanted)
            self.reads.append(Read(wanted, floor, found))
        self.readers.remove(scope)

    async def finish(self) -> None:
        """Let everything go on to its end."""
        with trio.fail_after(PATIENCE_S):
            while self.readers:
                await self.held.step(0)

    def judge(self) -> None:
        for read in self.reads:
            if isinstance(read.wanted, str):
                self._judge_stream(read)
            else:
                self._judge_page(read, read.wanted)

    def _judge_stream(self, read: Read) -> None:
        """It is what the stream was at some position from the floor on."""
        since = [read.floor, *(position for position, _ in self.states if position > read.floor)]
        versions = [self.at(position).get(cast("str", read.wanted)) for position in since]
        assert (read.found.record if read.found is not None else None) in versions

    def _judge_page(self, read: Read, query: StreamQuery) -> None:
        """It is what the list was at the position that it shows, whole, and that is not below the floor."""
        page = read.found
        assert page.position >= read.floor
        listed = sorted(self.at(page.position).values(), key=lambda record: record.created_position)
        listed = listed[::-1] if query.descending else listed
        listed = [one for one in listed if query.status in {None, STATUS_NAMES[one.state.status]}]
        assert [shown.record for shown in page.streams] == listed[: query.limit]
        assert page.has_more == (len(listed) > query.limit)


def created(ledger: int, sender: str) -> contract.ContractEvent:
    return contract.decode_named(
        id=f"{(ledger << 32) | (1 << 12):019d}-{0:010d}",
        ledger=ledger,
        closed_at=GENESIS_S + ledger,
        contract_id=CONTRACT,
        tx_hash=sha256(f"{ledger}".encode()).hexdigest(),
        topic="created",
        payload={
            "stream_id": ledger,
            "sender": sender,
            "recipient": encode(AddressKind.ACCOUNT, bytes([7] * 32)),
            "deposit_amount": "10000000000",
            "rate_per_second": "10000000",
            "start_time": GENESIS_S,
            "cliff_time": GENESIS_S,
            "end_time": GENESIS_S + 1000,
            "withdraw_dust_threshold": "0",
            "memo": None,
            "metadata": None,
        },
    )


async def made(store: Store, lease: int, nursery: trio.Nursery) -> World:
    """Two registered streams and one of the chain, of whose commits the cache was told."""
    world = World(store, lease, nursery)
    await world.create(here=True)
    await world.create(here=True)
    await world.chain_creates(here=True)
    return world
