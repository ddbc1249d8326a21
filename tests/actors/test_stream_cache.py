"""The read cache against the real store: whatever is read, committed and cancelled in whatever order, nothing is stale.

Every question to the database is held twice, before it is asked and before its answer arrives, and let go in an order
that hypothesis chooses: so each read may race with each commit in each way there is. The oracle is the history of
commits itself: what each stream was at each position of the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from itertools import count
from typing import Any, NamedTuple, cast

import pytest
import trio
import trio.testing
from chain_events import CONTRACT, GENESIS_S
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxora.actors.stream_cache import StreamCache
from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.protocol import contract
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.messages import STATUS_NAMES, StreamRecord
from fluxora.protocol.streams import StreamStatus
from fluxora.storage.store import Appended, Change, Create, Store, StreamQuery, open_store

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

    def hear(self) -> None:
        """The feed has read what the other replica has committed."""
        for appended in self.unheard:
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


HERE = ["change", "change", "create", "chain creates", "chain rolls back"]
ELSEWHERE = ["change elsewhere", "create elsewhere", "chain rolls back elsewhere"]
OTHERS = ["read", "read", "page", "page", "page", "step", "step", "step", "step", "step", "hear", "cancel", "trust"]
STEPS = st.lists(st.tuples(st.sampled_from([*OTHERS, *HERE, *ELSEWHERE]), st.integers(0, 7)), max_size=40)


@given(steps=STEPS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_read_shows_less_than_was_known_when_it_began(
    steps: list[tuple[str, int]], storage_config: StorageConfig
) -> None:
    async with open_store(storage_config, decimals={}) as store:
        held = await store.try_lease()
        assert held is not None
        async with trio.open_nursery() as nursery:
            world = await made(store, held.number, nursery)
            for what, number in steps:
                await act(world, what, number)
            world.hear()
            world.trusted = True
            await world.finish()
            for wanted in (*world.ids, *world.queries):  # what is kept is the truth, or is not kept
                world.read(wanted)
            await world.finish()
        await held.aclose()
    world.judge()


async def made(store: Store, lease: int, nursery: trio.Nursery) -> World:
    """Two registered streams and one of the chain, of whose commits the cache was told."""
    world = World(store, lease, nursery)
    await world.create(here=True)
    await world.create(here=True)
    await world.chain_creates(here=True)
    return world


async def act(world: World, what: str, number: int) -> None:
    here = not what.endswith(" elsewhere")
    what = what.removesuffix(" elsewhere")
    if what == "read":
        world.read(world.ids[number % len(world.ids)])
    elif what == "page":
        world.read(world.queries[number % len(world.queries)])
    elif what == "step":
        await world.held.step(number)
    elif what == "change":
        await world.change(number, here=here)
    elif what == "create":
        await world.create(here=here)
    elif what == "chain creates":
        await world.chain_creates(here=here)
    elif what == "chain rolls back":
        await world.chain_rolls_back(here=here)
    elif what == "hear":
        world.hear()
    elif what == "trust":
        world.trusted = not world.trusted
    elif world.readers:
        world.readers[number % len(world.readers)].cancel()
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def world(store: Store, lease: int, nursery: trio.Nursery) -> World:
    return await made(store, lease, nursery)


async def test_who_asks_for_the_page_that_is_being_read_waits_for_it(world: World) -> None:
    for _ in range(20):
        world.read(world.queries[0])
    await trio.testing.wait_all_tasks_blocked()
    assert len(world.held.calls) == 1
    await world.finish()
    assert world.held.names.count("listings") == 1
    assert len({id(read.found) for read in world.reads}) == 1
    assert world.cache.status.misses == 1
    assert world.cache.status.hits == 19
    world.judge()


async def test_a_reader_that_leaves_takes_nobody_with_it(world: World) -> None:
    for wanted in (world.ids[0], world.queries[0]):
        for _ in range(3):
            world.read(wanted)
        await trio.testing.wait_all_tasks_blocked()
        world.readers[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        await world.finish()
    assert len(world.reads) == 4
    world.judge()


async def test_what_is_known_asks_nothing_of_the_database(world: World) -> None:
    world.held.free = True
    for stream_id in world.ids:
        await world.cache.stream(stream_id)
    for query in world.queries:
        await world.cache.page(query)
    asked = len(world.held.names)
    for stream_id in world.ids:
        assert world.cache.at_once(stream_id) is await world.cache.stream(stream_id)
    for query in world.queries:
        assert world.cache.page_at_once(query) is await world.cache.page(query)
    assert len(world.held.names) == asked
    await world.change(0, here=True)
    shown = world.cache.at_once(world.ids[0])
    assert shown is not None
    assert shown.record == world.latest[world.ids[0]], "what was committed here is known without a question"
    assert all(world.cache.page_at_once(query) is None for query in world.queries)
    assert len(world.held.names) == asked


async def test_untrusted_memory_answers_nothing(world: World) -> None:
    world.held.free = True
    await world.cache.page(world.queries[0])
    world.trusted = False
    await world.change(0, here=False)
    assert world.cache.at_once(world.ids[0]) is None
    assert world.cache.page_at_once(world.queries[0]) is None
    shown = await world.cache.stream(world.ids[0])
    assert shown is not None
    assert shown.record == world.latest[world.ids[0]]
    page = await world.cache.page(world.queries[0])
    assert page.position == world.states[-1][0]


async def test_a_stream_that_was_taken_away_is_gone(world: World) -> None:
    world.held.free = True
    (of_chain,) = (one for one in world.ids if world.latest[one].origin == "chain")
    assert await world.cache.stream(of_chain) is not None
    await world.chain_rolls_back(here=True)
    assert of_chain not in world.latest
    assert world.cache.at_once(of_chain) is None
    assert await world.cache.stream(of_chain) is None
    assert of_chain not in {shown.record.id for shown in (await world.cache.page(world.queries[0])).streams}


async def test_a_new_epoch_leaves_nothing_in_memory(world: World) -> None:
    world.held.free = True
    await world.cache.page(world.queries[0])
    world.cache.forget_everything()
    assert world.cache.status.streams == world.cache.status.pages == 0
    assert all(world.cache.at_once(one) is None for one in world.ids)


async def test_a_failure_of_the_database_reaches_every_reader_and_is_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Any:
        raise StorageUnavailable("connection refused")

    world.held.free = True
    with monkeypatch.context() as patch:
        for name in ("listings", "streams_of", "page", "stream"):
            patch.setattr(world.store, name, fail)
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await world.cache.stream(world.ids[0])
            with pytest.raises(StorageUnavailable):
                await world.cache.page(world.queries[0])
    assert await world.cache.stream(world.ids[0]) is not None
    assert len((await world.cache.page(world.queries[0])).streams) == 3


async def test_memory_is_bounded(world: World) -> None:
    world.held.free = True
    cache = StreamCache(cast("Store", world.held), trusted=lambda: True, streams=2, pages=2)
    for query in world.queries:
        await cache.page(query)
    assert (cache.status.streams, cache.status.pages) == (2, 2)
