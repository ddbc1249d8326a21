"""Two replicas on one database: one ingests, both serve, the other takes over, and the fence holds."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio
from growth import grow
from processes import Served, following, serve
from proof import LONG, chance
from truth import Books, caught_up, judge
from waiting import eventually

from fluxora.localnet import Network, Script, open_localnet

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 53
TURNS = 30 if LONG else 3
# What the server does by itself once a client's machine has been silent for a while: its lease goes, and a transaction
# that waits for it to go on.
CUT_LEASE = """
    SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND a.datname = current_database()
"""
CUT_SILENT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'ClientRead'
        AND xact_start < clock_timestamp() - interval '0.5 s'
"""


def is_leading(served: Served) -> bool:
    """It says so: the lease is its own."""
    return len(served.lines("lease.taken")) > len(served.lines("lease.connection_lost"))


async def stands_by(served: Served) -> bool:
    health = await served.health()
    return (health["status"], health["indexer"]["summary"]) == ("ok", "standing by: another replica ingests")


async def test_the_other_takes_over(postgres_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    """The leader is killed again and again in the middle of ingest; a new replica joins each time, to stand by."""
    rng = chance(SEED)
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED), retention=None) as net:
        environ = following(net, url=postgres_url, page_limit=25)
        leader = Served(environ, tmp_path / "0.log")
        processes = [leader]
        try:
            await leader.ready()
            await eventually(partial(is_leading, leader), "the first one leads")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(grow, net, rng)
                for turn in range(1, TURNS + 1):
                    other = Served(environ, tmp_path / f"{turn}.log")
                    processes.append(other)
                    await other.ready()
                    await eventually(partial(stands_by, other), "the second one stands by")
                    position = await books.position()
                    await eventually(partial(grown, books, position + rng.randint(1, 30)), "ingest is under way")
                    assert not other.lines("lease.taken")
                    await serves_the_log(other, books)
                    await leader.kill()
                    killed, position = trio.current_time(), await books.position()
                    await eventually(partial(grown, books, position + 10), "the other goes on", within_s=15)
                    print(f"taken over in {trio.current_time() - killed:.1f} s")
                    leader = other
                nursery.cancel_scope.cancel()
            await net.close_ledgers(2)
            await caught_up(books, net)
            print(await judge(books, net, corrected=False))
            assert await leader.stop() == 0
        finally:
            for process in processes:
                process.end_now()


async def grown(books: Books, least: int) -> bool:
    return await books.position() >= least


async def serves_the_log(served: Served, books: Books) -> None:
    """A replica that only stands by answers with what the other has recorded."""
    head = await books.position()
    page: dict[str, Any] = (await served.get("/api/events", after=head - 1, limit=1)).json()
    assert [event["position"] for event in page["events"]] == [str(head)]


async def test_a_leader_that_was_away_cannot_write(postgres_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    """It is frozen, loses its lease to the other, and wakes up with work in its hands that is the other's by now."""
    rng = chance(SEED)
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3), retention=None) as net:
        environ = following(net, url=postgres_url, page_limit=10)
        async with serve(environ, tmp_path / "a.log") as one, serve(environ, tmp_path / "b.log") as two:
            await one.ready()
            await two.ready()
            leases = await eventually(partial(leader_and_other, one, two), "one of them leads")
            for _turn in range(TURNS):
                leader, other = leases
                await ingest_some(net, books, rng)
                leader.signal(signal.SIGSTOP)
                taken = len(other.lines("lease.taken"))
                assert await books.rows(CUT_LEASE)
                await eventually(partial(took_over, other, taken, books), "the other takes the lease")
                await net.fork(rng.randint(1, 3))
                await net.close_ledgers(10)
                await caught_up(books, net)
                leader.signal(signal.SIGCONT)
                await net.close_ledgers(10)
                await caught_up(books, net)
                await eventually(partial(stands_by, leader), "the former leader stands by")
                leases = (other, leader)
            print(await judge(books, net, corrected=False))
            for served in (one, two):
                assert served.lines("supervisor.actor_crashed") == []
                assert await served.stop() == 0


async def test_a_leader_that_hangs_is_replaced(postgres_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    """Its machine is there and answers for its connections, only the program does not: no keepalive tells of that."""
    rng = chance(SEED)
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3), retention=None) as net:
        environ = following(net, url=postgres_url, page_limit=10)
        async with serve(environ, tmp_path / "a.log") as one, serve(environ, tmp_path / "b.log") as two:
            await one.ready()
            await two.ready()
            leader, other = await eventually(partial(leader_and_other, one, two), "one of them leads")
            await ingest_some(net, books, rng)
            leader.signal(signal.SIGSTOP)
            hung = trio.current_time()
            await eventually(lambda: other.lines("lease.taken"), "the other takes the lease")
            print(f"taken over {trio.current_time() - hung:.1f} s after it hung")
            await net.close_ledgers(10)
            await caught_up(books, net)
            leader.signal(signal.SIGCONT)
            await eventually(partial(stands_by, leader), "the former leader stands by")
            print(await judge(books, net, corrected=False))
            for served in (one, two):
                assert served.lines("supervisor.actor_crashed") == []
                assert await served.stop() == 0


def leader_and_other(one: Served, two: Served) -> tuple[Served, Served] | None:
    if is_leading(one):
        return one, two
    return (two, one) if is_leading(two) else None


async def took_over(other: Served, taken: int, books: Books) -> bool:
    await books.rows(CUT_SILENT)
    return len(other.lines("lease.taken")) > taken


async def ingest_some(net: Network, books: Books, rng: Random) -> None:
    """Leave the leader in the middle of something."""
    await net.close_ledgers(40)
    position = await books.position()
    await eventually(partial(grown, books, position + rng.randint(1, 60)), "ingest is under way")
