"""kill -9 at any moment: nothing lost, nothing doubled, and the tables equal the ledger's books and a clean replay."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import trio
from growth import grow
from processes import Served, following, postgres_processes, serve, signal_postgres
from proof import LONG, chance
from truth import Books, assert_same, caught_up, judge, nothing_wanted
from waiting import eventually

from fluxora.localnet import Network, Script, bulk, contract_address, open_localnet
from fluxora.storage.embedded import EmbeddedServer

KILLS = 100 if LONG else 6
EVENTS_PER_KILL = 1_500  # of the backlog
PAGE_LIMIT = 10  # small pages: many commits, most of them in the middle of a ledger
SEED = 11
OpenBooks = Callable[[str], Awaitable[Books]]


async def test_killed_at_random_moments(bare_url: str, other_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    """The first kills hit the start, the migration and the first commits; then a backlog; then the tip, with forks."""
    rng = chance(SEED)
    books, clean = await books_of(bare_url), await books_of(other_url)
    backlog = EVENTS_PER_KILL * (KILLS // 2)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=1), retention=None) as net:
        history = bulk(net.chain, backlog, contract_id=contract_address(SEED, 99), events_per_ledger=40)
        await net.close_ledgers(20)
        environ = following(net, history, url=bare_url, page_limit=PAGE_LIMIT)
        moments: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grow, net, rng)
            for number in range(KILLS):
                async with serve(environ, tmp_path / f"serve-{number}.log") as served:
                    if number == 0:
                        await trio.sleep(rng.uniform(0.1, 1))  # imports, migrations, the lease
                        moments.append(await kill(served, books))
                    elif number < KILLS // 2:
                        await log_grows(books, 1 if number <= 2 else rng.randint(1, EVENTS_PER_KILL))
                        moments.append(await kill(served, books, rng.uniform(0, 0.02) if number > 2 else 0))
                    else:
                        await log_grows(books, rng.randint(1, 30), at_least=backlog)
                        await eventually(partial(at_the_tip, books, net), "it is at the tip")
                        if number == KILLS - 1 or rng.random() < 0.7:
                            await net.fork(rng.randint(1, 6))
                        moments.append(await kill(served, books, rng.uniform(0, 0.1)))
            nursery.cancel_scope.cancel()
        await net.close_ledgers(3)
        await settle(environ, books, net, tmp_path / "last.log")
        found = await judge(books, net, history)
        await settle(following(net, history, url=other_url), clean, net, tmp_path / "clean.log")
        assert (await judge(clean, net, history))["undone"] == 0
        await assert_same(books, clean)
    print(f"{KILLS} kills at log positions {moments}; {found}")
    assert found["events"] > backlog
    assert found["undone"] > 0
    assert len(set(moments)) >= KILLS - 2, "the kills must find it at work"


async def log_grows(books: Books, count: int, *, at_least: int = 0) -> None:
    """Wait until the log has grown by `count` and to `at_least`."""
    after = max(await books.position() + count, at_least)

    async def there() -> bool:
        return await books.position() >= after

    await eventually(there, f"the log grows to {after}", within_s=60)


async def at_the_tip(books: Books, net: Network) -> bool:
    return bool(await books.value("SELECT complete_through FROM ingest_cursor") == net.chain.latest.sequence)


async def kill(served: Served, books: Books, delay_s: float = 0.0) -> int:
    """Kill it `delay_s` from now, a moment that only chance knows; the log's position then."""
    await trio.sleep(delay_s)
    assert served.code is None, served.text[-3000:]
    await served.kill()
    return await books.position()


async def settle(environ: Mapping[str, str], books: Books, net: Network, log: Path) -> None:
    """Let it catch up, stop it in order, and let a last one read the ledger entries that are still wanted."""
    async with serve(environ, log) as served:
        await served.ready()
        await caught_up(books, net)
        assert await served.stop() == 0, served.text[-3000:]
    await books.rows("UPDATE entry_wants SET not_before = 0")  # not in half a minute, where it was too early before
    wanted = await books.value("SELECT count(*) FROM entry_wants")
    async with serve(environ, log) as served:
        await nothing_wanted(books, within_s=30 + wanted / 200 * 6)  # 200 entries every five seconds
        assert served.code is None
        assert not served.lines("supervisor.actor_crashed")
        assert await served.stop() == 0


@pytest.mark.parametrize("victims", ["fluxora", "fluxora and PostgreSQL"])
async def test_killed_with_embedded_postgresql(
    victims: str, short_dir: Path, books_of: OpenBooks, tmp_path: Path
) -> None:
    """PostgreSQL outlives a killed Fluxora and is found again; killed itself, as by a power cut, it recovers."""
    rng = chance(SEED)
    server = EmbeddedServer(short_dir)
    books = await books_of(server.url)
    async with open_localnet(seed=SEED, script=Script(SEED), retention=None) as net:
        history = bulk(net.chain, 4_000, contract_id=contract_address(SEED, 99), events_per_ledger=40)
        environ = following(net, history, page_limit=PAGE_LIMIT, FLUXORA_DATA_DIR=str(short_dir))
        try:
            for number in range(10 if LONG else 2):
                async with serve(environ, tmp_path / f"serve-{number}.log") as served:
                    before = await books.position()
                    await served.ready()
                    postmaster = postgres_processes(server)[0]
                    await log_grows(books, rng.randint(1, 300))
                    assert await kill(served, books, rng.uniform(0, 0.02)) > max(before, 0)
                if victims == "fluxora":
                    assert postgres_processes(server)[0] == postmaster
                else:
                    signal_postgres(server, signal.SIGKILL)
                    await eventually(partial(is_gone, postmaster), "PostgreSQL is gone")
                await net.close_ledgers(5)
            async with serve(environ, tmp_path / "last.log") as served:
                await served.ready()
                assert (postgres_processes(server)[0] == postmaster) == (victims == "fluxora")
                await caught_up(books, net)
                print(await judge(books, net, history, corrected=False))
                assert await served.stop() == 0
            assert postgres_processes(server) == []
        finally:
            signal_postgres(server, signal.SIGKILL)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
