"""The read cache against the real store: whatever is read, committed and cancelled in whatever order, nothing is stale.

Every question to the database is held twice, before it is asked and before its answer arrives, and let go in an order
that hypothesis chooses: so each read may race with each commit in each way there is. The oracle is the history of
commits itself: what each stream was at each position of the log.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing
from cache_world import World, made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxora.actors.stream_cache import StreamCache
from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.store import Store, open_store

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
        world.hear(of_here=number % 2 == 0)
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


async def test_a_page_that_was_read_before_a_commit_is_not_for_who_asks_after_it(world: World) -> None:
    world.read(world.queries[0])
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):  # which streams the page has, and what they are: the answers are on their way
        await world.held.step(0)
    await world.change(0, here=True)
    world.read(world.queries[0])
    await trio.testing.wait_all_tasks_blocked()
    await world.finish()
    assert len(world.reads) == 2
    world.judge()


async def test_a_commit_of_here_that_is_told_late_does_not_replace_a_newer_version(world: World) -> None:
    world.held.free = True
    await world.change(0, here=False)
    first = world.unheard.pop()
    await world.change(0, here=False)
    shown = await world.cache.stream(world.ids[0])
    assert shown is not None
    assert shown.record == world.latest[world.ids[0]]
    world.cache.take_over(first.streams)
    assert world.cache.at_once(world.ids[0]) is shown


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
