"""The exchange over a real database, with buckets that only count: who learns of what, and what an outage costs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing

from fluxora.actors.limit_exchange import LimitExchange
from fluxora.config import LimitConfig, StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.http.access import Principal
from fluxora.http.limits import Limiter
from fluxora.storage.shared_limits import COUNTS_S, Heard, Round, Tally
from fluxora.storage.store import Store, open_store

PATIENCE_S = 20
QUOTA = 60
WHO = b"w" * 16


class Buckets:
    """What the exchange is given and what it brings."""

    def __init__(self) -> None:
        self.ring: Callable[[], None] = lambda: None
        self.spent: list[Tally] = []
        self.learned: list[tuple[Tally, float]] = []
        self.sharing: list[bool] = []
        self.changed = trio.Event()

    def begin_sharing(self) -> Iterator[None]:
        yield
        self.sharing.append(True)
        self._tell()

    def end_sharing(self) -> None:
        self.sharing.append(False)
        self._tell()

    def take_spent(self, most: int) -> list[Tally]:
        taken, self.spent = self.spent[:most], self.spent[most:]
        return taken

    def spend(self, spent: Sequence[Tally], age_s: float) -> None:
        self.learned += [(tally, age_s) for tally in spent]
        self._tell()

    def pay(self, tokens: int) -> None:
        self.spent.append(Tally(WHO, 0, tokens))
        self.ring()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, there: Callable[[], bool]) -> None:
        while not there():
            await self.changed.wait()

    def tokens(self) -> list[int]:
        return [tally.tokens for tally, _ in self.learned]


@asynccontextmanager
async def taking_part(store: Store) -> AsyncIterator[Buckets]:
    buckets = Buckets()
    exchange = LimitExchange(store, buckets)
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        yield buckets
        exchange.drain()


async def test_each_learns_what_is_spent_at_the_others_and_who_comes_late_as_well(store: Store) -> None:
    with trio.fail_after(PATIENCE_S):
        async with taking_part(store) as one, taking_part(store) as two:
            for each in (one, two):
                await each.until(lambda each=each: each.sharing == [True])
            one.pay(3)
            two.pay(5)
            await one.until(lambda: one.tokens() == [5])
            await two.until(lambda: two.tokens() == [3])
            async with taking_part(store) as three:
                await three.until(lambda: sorted(three.tokens()) == [3, 5])


async def test_one_that_is_alone_publishes_nothing_and_one_that_goes_tells_the_rest(store: Store) -> None:
    with trio.fail_after(PATIENCE_S):
        async with taking_part(store) as one:
            async with taking_part(store) as two:
                await one.until(lambda: one.sharing == [True])
                await two.until(lambda: two.sharing == [True])
                two.spent.append(Tally(WHO, 0, 7))  # which nothing rings for
            await one.until(lambda: one.tokens() == [7])


class Replica:
    """One process: real buckets, whose clock stands still, and an exchange whose rounds the test makes."""

    def __init__(self, store: Store) -> None:
        self._limiter = Limiter(LimitConfig(anonymous_read=QUOTA), salt=bytes(32), clock=lambda: 1000.0)
        self._exchange = LimitExchange(store, self._limiter)
        self.name = self._exchange._process

    async def round(self) -> None:
        await self._exchange.round()

    def take(self, most: int) -> int:
        """How many of so many requests are granted."""
        grants = [self._limiter.take(Principal.anonymous(), "192.0.2.1", "read") for _ in range(most)]
        return sum(grant is not None and grant.allowed for grant in grants)


async def test_who_begins_to_tell_does_not_tell_others_of_what_they_have_spent(store: Store) -> None:
    one, two = Replica(store), Replica(store)
    with trio.fail_after(PATIENCE_S):
        await one.round()  # it is alone, and the other comes
        await two.round()
        assert two.take(QUOTA // 2) == QUOTA // 2
        for each in (two, one, one, two):
            await each.round()
        assert two.take(QUOTA) == QUOTA // 2
        assert one.take(QUOTA) < QUOTA


async def test_what_others_have_spent_is_not_told_to_them_where_the_tables_were_emptied(
    store: Store, postgres_run: Any
) -> None:
    """As they are by a crash of the server. Nobody seems to be there then, until they show themselves again."""
    one, two = Replica(store), Replica(store)
    with trio.fail_after(PATIENCE_S):
        for each in (one, two, one):
            await each.round()
        assert two.take(QUOTA // 2) == QUOTA // 2
        for each in (two, one):
            await each.round()
        await trio.to_thread.run_sync(postgres_run.sql, "TRUNCATE limit_processes, limit_rounds", _name(store))
        for each in (one, two):
            await each.round()
        for each in (one, two):
            await store.show_for_limits(each.name)
        for each in (one, two, one, two):
            await each.round()
        assert two.take(QUOTA) == QUOTA // 2
        assert one.take(QUOTA) < QUOTA


class Away:
    """A store that does not answer until it is told to, and then counts rounds once each, as PostgreSQL does."""

    def __init__(self) -> None:
        self.there = False
        self.written: dict[int, Round] = {}
        self.asked = 0

    async def show_for_limits(self, _process: str) -> None:
        await self._answer()

    async def exchange_limits(self, _process: str, rounds: Sequence[Round], _known: dict[str, int]) -> Heard:
        self.written.update((each.number, each) for each in rounds if self.there)
        await self._answer()
        return Heard(others=True, rounds=[], known={})

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if not self.there:
            raise StorageUnavailable("away")


async def test_after_an_outage_the_last_minute_is_told_with_its_ages(autojump_clock: trio.testing.MockClock) -> None:
    store, buckets = Away(), Buckets()
    exchange = LimitExchange(store, buckets)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        for second in range(200):
            buckets.spent.append(Tally(WHO, 0, second))
            await trio.sleep(1)
        store.there = True
        await trio.sleep(2)
        exchange.drain()
    told = [(each.spent[0].tokens, each.age_s) for _, each in sorted(store.written.items())]
    assert COUNTS_S / 3 <= len(told) <= COUNTS_S + 2
    assert told[-1][0] == 199
    for (tokens, age_s), (later, later_age_s) in pairwise(told):
        assert tokens < later
        assert age_s >= later_age_s
    assert max(age_s for _, age_s in told) <= COUNTS_S
    assert store.asked < 250, "and it did not press"


async def test_it_can_be_run_again_after_a_crash_and_tells_what_it_had(autojump_clock: trio.testing.MockClock) -> None:
    class Crashing(Away):
        async def show_for_limits(self, _process: str) -> None:
            self.there = True
            if self.asked == 0:
                self.asked += 1
                raise KeyError("a defect")

    store, buckets = Crashing(), Buckets()
    exchange = LimitExchange(store, buckets)  # type: ignore[arg-type]
    buckets.spent.append(Tally(WHO, 0, 7))
    with pytest.raises(KeyError):
        await exchange.run()
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        await trio.sleep(2)
        exchange.drain()
    assert [each.spent for each in store.written.values()] == [[Tally(WHO, 0, 7)]]


async def test_a_ring_brings_the_next_round_forward_but_not_without_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, buckets = Away(), Buckets()
    store.there = True
    exchange = LimitExchange(store, buckets)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        await trio.sleep(0.3)
        quiet = store.asked
        await trio.sleep(10)
        assert 9 <= store.asked - quiet <= 12
        busy = store.asked
        for _ in range(1_000):
            buckets.pay(1)
            await trio.sleep(0.01)
        assert 45 <= store.asked - busy <= 55
        exchange.drain()


def _name(store: Store) -> str:
    """The name of its database."""
    return urlsplit(store.url).path[1:]


@pytest.fixture
async def store(storage_config: StorageConfig) -> AsyncIterator[Store]:
    async with open_store(storage_config, decimals={}) as opened:
        yield opened
