"""kill -9 at any moment: nothing is lost, nothing doubled, and the tables equal the ledger's and those of a clean replay."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import asyncpg
import trio
from processes import Served, following, postgres_processes, serve, signal_postgres
from proof import LONG, chance
from truth import Books, assert_same, caught_up, judge, nothing_wanted, open_books
from waiting import eventually

from fluxora.localnet import Network, Script, bulk, contract_address, open_localnet
from fluxora.storage.embedded import EmbeddedServer

KILLS = 100 if LONG else 6
EVENTS_PER_KILL = 700  # of the backlog
PAGE_LIMIT = 25  # small pages, so that there are many commits, most of them in the middle of a ledger
SEED = 11
OpenBooks = Callable[[str], Awaitable[Books]]


async def test_killed_at_random_moments(bare_url: str, other_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    """The first kills hit the start, the migration and the first commits, then a backlog, then life at the tip, forks included."""
    rng = chance(SEED)
    books, clean = await books_of(bare_url), await books_of(other_url)
    backlog_kills = KILLS // 2
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=1), retention=None) as net:
        extra = contract_address(SEED, 99)
        history = bulk(net.chain, EVENTS_PER_KILL * backlog_kills, contract_id=extra, events_per_ledger=40)
        net.contracts.append(BulkContract(net, history))
        await net.close_ledgers(20)
        environ = following(net, url=bare_url, page_limit=PAGE_LIMIT)
        moments = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grow, net, rng)
            for number in range(KILLS):
                async with serve(environ, tmp_path / f"serve-{number}.log") as served:
                    moments.append(await kill(number, served, books, rng))
            nursery.cancel_scope.cancel()
        await net.close_ledgers(3)
        print("killed at log positions", moments)
        await settle(environ, books, net, tmp_path / "last.log")
        found = await judge(books, net)
        await settle(following(net, url=other_url), clean, net, tmp_path / "clean.log")
        assert (await judge(clean, net))["undone"] == 0
        await assert_same(books, clean)
    print(f"{KILLS} kills, {found}")
    assert found["events"] >= history.events
    assert len(set(moments)) > KILLS // 2, "the kills hit no progress"
