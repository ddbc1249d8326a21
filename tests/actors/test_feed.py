"""The feed: whatever happens in whatever order, a follower gets every position once, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import count
from math import inf

import pytest
import trio
import trio.testing
from chain_events import event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxora.actors.feed import Feed
from fluxora.config import StorageConfig
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.messages import LogEvent
from fluxora.storage.store import Appended, EventQuery, Store, open_store

PATIENCE_S = 20
NEVER_S = 3_600.0
_ledgers = count(1)


async def append(store: Store, lease: int, events: int) -> Appended:
    ledger = next(_ledgers)
    return await store.append([LedgerBatch(events=tuple(event(ledger, n) for n in range(events)))], lease=lease)


async def collect(feed: Feed, after: int, until: Callable[[], float], into: list[int]) -> None:
    """Follow from `after` until the position `until()` has come."""
    with trio.fail_after(PATIENCE_S):
        async with aclosing(feed.follow(after)) as batches:
            while (into[-1] if into else after) < until():
                into += [one.position for one in await anext(batches)]


@asynccontextmanager
async def running(feed: Feed) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(feed.run)
        yield
        nursery.cancel_scope.cancel()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["recorded here", "recorded elsewhere"]), st.integers(0, 7)),
        st.tuples(st.sampled_from(["ring", "yield", "follow"]), st.integers(0, 30)),
    ),
    max_size=10,
)


@given(
    steps=STEPS,
    start_at=st.integers(0, 10),
    bounds=st.tuples(st.integers(1, 12), st.one_of(st.integers(0, 5_000), st.just(1 << 20))),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_follower_gets_every_position_once_in_order(
    steps: list[tuple[str, int]],
    start_at: int,
    bounds: tuple[int, int],
    storage_config: StorageConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Appends of this process and of others, in turns, with a memory and pages that are too small for them."""
    monkeypatch.setattr("fluxora.actors.feed._PAGE", 3)
    async with open_store(storage_config, decimals={}) as store:
        held = await store.try_lease()
        assert held is not None
        feed = Feed(store, keep=bounds[0], keep_bytes=bounds[1], poll_interval_s=0.01)
        followers = await act(feed, store, held.number, [("follow", 0), *steps, ("follow", 3)], start_at)
        head = await store.position()
        await held.aclose()
    assert feed.head == head
    for after, positions in followers:
        assert positions == list(range(after + 1, head + 1))


@given(sizes=st.lists(st.integers(2, 50), max_size=30), keep=st.integers(1, 12), keep_bytes=st.integers(0, 200))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_it_keeps_as_many_of_the_newest_as_its_bounds_allow(
    sizes: list[int], keep: int, keep_bytes: int, storage_config: StorageConfig
) -> None:
    """What is kept is a suffix of the log, and the event before it would not fit."""
    async with open_store(storage_config, decimals={}) as store:
        feed = Feed(store, keep=keep, keep_bytes=keep_bytes, poll_interval_s=NEVER_S)
        async with running(feed):
            with trio.fail_after(PATIENCE_S):
                while not feed.in_touch():
                    await trio.testing.wait_all_tasks_blocked(0.01)
            for position, size in enumerate(sizes, 1):
                feed.publish(Appended(position, 1, [of_size(position, size)], [], {}))
    fitting = 0
    while fitting < min(keep, len(sizes)) and sum(sizes[len(sizes) - fitting - 1 :]) <= keep_bytes:
        fitting += 1
    assert (feed.head, feed.kept) == (len(sizes), fitting)


def of_size(position: int, size: int) -> LogEvent:
    return LogEvent(
        position, f"e{position}", "stream.updated", "x", None, None, None, None, 0, b"[" + b" " * (size - 2) + b"]"
    )


async def act(
    feed: Feed, store: Store, lease: int, steps: list[tuple[str, int]], start_at: int
) -> list[tuple[int, list[int]]]:
    """Take the steps, the actor starting before step `start_at`; what each follower was given, and after what."""
    followers: list[tuple[int, list[int]]] = []
    head = await store.position()
    goal = inf
    async with trio.open_nursery() as actor:
        async with trio.open_nursery() as following:
            for number, (what, amount) in enumerate(steps):
                if number == min(start_at, len(steps) - 1):
                    await actor.start(feed.run)
                if what.startswith("recorded"):
                    appended = await append(store, lease, amount)
                    head = appended.position
                    if what == "recorded here":
                        feed.publish(appended)
                elif what == "ring":
                    feed.ring()
                elif what == "yield":
                    await trio.testing.wait_all_tasks_blocked(0)
                else:
                    followers.append((max(0, head - amount), []))
                    following.start_soon(collect, feed, followers[-1][0], lambda: goal, followers[-1][1])
            goal = head + 1
            await append(store, lease, 1)  # by another process, and nobody rings
        actor.cancel_scope.cancel()
    return followers


async def test_another_process_rings(storage_config: StorageConfig, store: Store, lease: int) -> None:
    """By PostgreSQL's notification alone: the poll would come in an hour."""
    rings: list[Feed] = []
    async with open_store(storage_config, decimals={}, wakeup=lambda: [feed.ring() for feed in rings]) as mine:
        feed = Feed(mine, poll_interval_s=NEVER_S)
        rings.append(feed)
        async with running(feed):
            for _ in range(5):
                appended = await append(store, lease, 3)
                got: list[int] = []
                await collect(feed, appended.position - 3, lambda at=appended.position: at, got)  # type: ignore[misc]
                assert got == [one.position for one in appended.events]


async def test_without_a_ring_the_poll_finds_it(store: Store, lease: int) -> None:
    feed = Feed(store, poll_interval_s=0.01)
    async with running(feed):
        appended = await append(store, lease, 3)
        got: list[int] = []
        await collect(feed, 0, lambda: appended.position, got)
    assert got == [1, 2, 3]


async def test_what_is_recorded_here_is_told_without_asking_the_database(store: Store, lease: int) -> None:
    feed = Feed(store, poll_interval_s=NEVER_S)
    async with running(feed):
        await trio.testing.wait_all_tasks_blocked(0)
        first = await append(store, lease, 2)
        feed.publish(first)
        got: list[int] = []
        await collect(feed, 0, lambda: 2, got)  # the feed knows its head from here on
        feed._store = None  # type: ignore[assignment]
        second = Appended(5, 1, (await append(store, lease, 3)).events, [], {})
        feed.publish(second)
        await collect(feed, 2, lambda: 5, got)
        assert got == [1, 2, 3, 4, 5]


async def test_what_others_appended_before_is_read_first(store: Store, lease: int) -> None:
    """A commit that does not follow on the head is no reason to leave out what lies between."""
    feed = Feed(store, poll_interval_s=NEVER_S)
    async with running(feed):
        got: list[int] = []
        feed.publish(await append(store, lease, 3))
        await collect(feed, 0, lambda: 3, got)
        await append(store, lease, 1)  # by another process, and nobody rings
        feed.publish(await append(store, lease, 1))
        await collect(feed, 3, lambda: 5, got)
    assert got == [1, 2, 3, 4, 5]


async def test_a_commit_that_is_told_while_it_is_read_is_told_once(
    store: Store, lease: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(store, poll_interval_s=NEVER_S)
    events = store.events
    untold: list[Appended] = []

    async def overtaken(query: EventQuery) -> list[LogEvent]:
        answer = await events(query)
        if untold:
            feed.publish(untold.pop())
        return answer

    async with running(feed):
        feed.publish(await append(store, lease, 1))
        await collect(feed, 0, lambda: 1, [])
        monkeypatch.setattr(store, "events", overtaken)
        untold.append(await append(store, lease, 2))
        feed.ring()
        got: list[int] = []
        await collect(feed, 1, lambda: 3, got)
        feed.publish(await append(store, lease, 1))
        await collect(feed, 1, lambda: 4, again := [])
    assert (got, again) == ([2, 3], [2, 3, 4])


async def test_one_ring_is_enough_for_many_pages(store: Store, lease: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxora.actors.feed._PAGE", 3)
    feed = Feed(store, poll_interval_s=NEVER_S)
    async with running(feed):
        await trio.testing.wait_all_tasks_blocked(0.01)
        feed.publish(await append(store, lease, 1))
        await collect(feed, 0, lambda: 1, [])
        await append(store, lease, 10)
        feed.ring()
        got: list[int] = []
        await collect(feed, 1, lambda: 11, got)
    assert got == list(range(2, 12))


async def test_it_can_be_run_again(store: Store, lease: int) -> None:
    """As the supervisor does after a crash."""
    feed = Feed(store, poll_interval_s=NEVER_S)
    for _ in range(3):
        async with running(feed):
            before = await store.position()
            appended = await append(store, lease, 2)
            feed.ring()
            got: list[int] = []
            await collect(feed, before, lambda at=appended.position: at, got)  # type: ignore[misc]
            assert len(got) == 2


async def test_drain_ends_it(store: Store) -> None:
    feed = Feed(store, poll_interval_s=NEVER_S)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(feed.run)
            feed.drain()
