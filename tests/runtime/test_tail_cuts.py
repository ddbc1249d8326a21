"""A client of the log over connections that are cut anywhere: what it has had at the end is the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from urllib.parse import urlsplit

import pytest
import trio
from cutting import Relay, relay
from in_process import config
from proof import LONG, chance
from truth import Books, caught_up
from waiting import eventually

import fluxora
from fluxora.client import connection, following
from fluxora.client.connection import follow
from fluxora.client.following import Following, Update
from fluxora.localnet import Network, Script, account, open_localnet
from fluxora.protocol.sockets import ALL, Selector

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 47
CUTS = 2_000 if LONG else 60
WITHIN_S = 3_600.0 if LONG else 120.0


class Had:
    """One client and what it has had."""

    def __init__(self, selectors: Sequence[Selector], after: int | None) -> None:
        self.updates: list[Update] = []
        self.said: list[str] = []
        self.following = Following(selectors, after)

    @property
    def positions(self) -> list[int]:
        return [update.position for update in self.updates]

    def through(self, head: int) -> list[int]:
        """Positions up to `head`, in their order."""
        return sorted(position for position in self.positions if position <= head)

    async def follow(self, url: str) -> None:
        tell, told = trio.open_memory_channel[Update](4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(follow, url, self.following, headers=(), tell=tell, say=self.said.append))
            async for update in told:
                self.updates.append(update)


async def test_over_connections_that_are_cut_anywhere_the_log_is_had_once(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, books_of: OpenBooks
) -> None:
    monkeypatch.setattr(following, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(following, "MOST_DELAY_S", 0.1)
    monkeypatch.setattr(connection, "CONNECT_S", 1.0)  # what a cut in the handshake costs
    rng, books = chance(SEED), await books_of(postgres_url)
    cutting = True

    def budget() -> int | None:
        if not cutting:
            return None
        return rng.choice([rng.randint(1, 1_200), rng.randint(1_200, 9_000), rng.randint(9_000, 40_000)])

    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3)) as net:
        await net.close_ledgers(30)
        async with fluxora.open_runtime(config(net, postgres_url)) as rt:
            await caught_up(books, net)
            rows = await books.rows("SELECT stream_id FROM events GROUP BY 1 ORDER BY count(*) DESC LIMIT 3")
            streams = [Selector("stream", row[0]) for row in rows]
            people = [Selector(kind, account(SEED, name)) for kind in ("sender", "recipient") for name in "ab"]
            clients = [Had([ALL], 0), Had([*streams, ALL, *people], 0), Had(streams, 0)]
            late = Had([ALL, *streams], None)
            clients.append(late)
            async with relay(int(urlsplit(rt.url).port or 0), budget) as through, trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.follow, through.url)
                growing = trio.CancelScope()
                nursery.start_soon(under, growing, partial(grow_beside, net, rng, through))
                await eventually(lambda: through.cuts >= CUTS, "enough connections were cut", within_s=WITHIN_S)
                growing.cancel()
                cutting = False
                await caught_up(books, net)
                every = await books.rows("SELECT position, event_id FROM events ORDER BY 1")
                chosen = ", ".join(f"'{one.value}'" for one in streams)
                some = await books.rows(f"SELECT position FROM events WHERE stream_id IN ({chosen})")
                wanted = [len(every), len(every), len(some)]
                await eventually(
                    lambda: (
                        all(len(c.updates) >= n for c, n in zip(clients, wanted, strict=False))
                        and every[-1][0] in late.positions
                    ),
                    "all of it was told",
                    within_s=WITHIN_S,
                )
                nursery.cancel_scope.cancel()
    head = every[-1][0]  # a correction may have come since
    assert [(one.position, one.event_id) for one in clients[0].updates if one.position <= head] == [*map(tuple, every)]
    assert clients[1].through(head) == [row[0] for row in every]
    assert clients[2].through(head) == sorted(row[0] for row in some)
    assert late.through(head) == list(range(min(late.positions), head + 1))
    assert any("connecting again" in said for said in clients[0].said)


async def grow_beside(net: Network, rng: Random, through: Relay) -> None:
    """A ledger for every few cuts: a client is mostly near the end of the log, where the hard cases are.

    Where everybody has all of it nothing is sent that could be cut, so it does not wait for that for long.
    """
    while True:
        await net.close_ledger()
        if rng.random() < 0.05:
            await net.fork(rng.randint(1, 6))
        cuts = through.cuts + 5
        with trio.move_on_after(0.5):
            while through.cuts < cuts:
                await trio.sleep(0.01)


async def under(scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await work()
