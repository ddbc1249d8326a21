"""PostgreSQL gone in the middle of ingest: said so at once, waited out, and nothing lost or doubled afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from growth import grow
from outages import Frozen, Stopped, own_server
from processes import Served, following, serve
from proof import LONG, chance
from truth import Books, caught_up, judge
from waiting import eventually

from fluxora.localnet import Script, open_localnet

AWAY_S = 10.0 if LONG else 3.0
ANSWER_S = 2.0  # within which a read has to answer
NOTICED_S = 4.0  # a probe each second, and what it may take
SEED = 23
CUT_ALL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'fluxora %'
"""
OpenBooks = Callable[[str], Awaitable[Books]]
READS = ("/api/streams", "/api/events", "/api/streams/stream-cabc-0", "/health/ready")


@pytest.mark.parametrize("outage", [Stopped, Frozen])
async def test_waited_out(outage: type[Stopped | Frozen], short_dir: Path, books_of: OpenBooks, tmp_path: Path) -> None:
    with own_server(short_dir) as server:
        books = await books_of(server.url)
        away = outage(server)
        async with (
            open_localnet(seed=SEED, script=Script(SEED), retention=None) as net,
            serve(following(net, url=server.url, page_limit=25), tmp_path / "serve.log") as served,
        ):
            async with (
                httpx.AsyncClient(base_url=await served.ready(), timeout=10) as client,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(grow, net, chance(SEED))
                await eventually(partial(grown, books, 100), "ingest is under way")
                await trio.to_thread.run_sync(away.leave)
                try:
                    refused = await observe(client, AWAY_S)
                finally:
                    await trio.to_thread.run_sync(away.come_back)
                back, position = trio.current_time(), await books.position()
                await eventually(partial(is_well, client), "everything is well again")
                await eventually(partial(grown, books, position + 1), "ingest goes on")
                print(f"{refused} reads refused; well again {trio.current_time() - back:.1f} s after PostgreSQL")
                nursery.cancel_scope.cancel()
            await net.close_ledgers(2)
            await caught_up(books, net)
            print(await judge(books, net, corrected=False))
            assert_nothing_crashed(served, await served.health())
            assert await served.stop() == 0


async def grown(books: Books, to: int) -> bool:
    return await books.position() >= to


async def is_well(client: httpx.AsyncClient) -> bool:
    answers = [await client.get(path) for path in ("/health", "/health/ready", "/api/streams")]
    return [answer.status_code for answer in answers] == [200, 200, 200] and answers[0].json()["status"] == "ok"


async def observe(client: httpx.AsyncClient, seconds: float) -> int:
    """While PostgreSQL is away: reads are refused in time and in shape, the process is alive and says what is wrong."""
    refused = 0

    async def read(path: str) -> None:
        nonlocal refused
        while True:
            asked = trio.current_time()
            answer = await client.get(path)
            took = trio.current_time() - asked
            assert took < ANSWER_S, f"{path} took {took:.2f} s"
            assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE"), (
                f"{path}: {answer.text}"
            )
            assert answer.json().keys() == {"error", "message", "requestId"}
            assert int(answer.headers["retry-after"]) > 0
            refused += 1
            assert (await client.get("/health/live")).status_code == 200

    async def says_so() -> bool:
        health = await client.get("/health")
        assert (health.status_code == 503) == (health.json()["status"] == "unavailable")
        return health.status_code == 503 and health.json()["dependencies"]["database"]["status"] == "unavailable"

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for path in READS:
                nursery.start_soon(read, path)
            await eventually(says_so, "/health says so", within_s=NOTICED_S)
            while True:
                assert await says_so()
                await trio.sleep(0.1)
    assert refused >= len(READS)
    return refused


def assert_nothing_crashed(served: Served, health: dict[str, Any]) -> None:
    """The world failed, not the actors: the pipeline began anew, which counts for nothing, and the others went on."""
    assert served.lines("supervisor.actor_crashed") == []
    assert served.lines("http.request_failed") == []
    assert [line for line in served.text.splitlines() if '"level": "critical"' in line] == []
    restarts = {actor["name"]: actor["restarts"] for actor in health["actors"]}
    assert {name: restarts[name] for name in ("monitor", "feed", "http")} == {"monitor": 0, "feed": 0, "http": 0}


async def test_every_connection_is_cut(postgres_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    """As by a failover or an administrator: at once, at any moment, with the server up and ready for new ones."""
    rng = chance(SEED)
    books = await books_of(postgres_url)
    async with (
        open_localnet(seed=SEED, script=Script(SEED), retention=None) as net,
        serve(following(net, url=postgres_url, page_limit=25), tmp_path / "serve.log") as served,
    ):
        await served.ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grow, net, rng)
            for _ in range(50 if LONG else 5):
                position = await books.position()
                await eventually(partial(grown, books, position + rng.randint(1, 20)), "ingest goes on")
                assert await books.rows(CUT_ALL)
            nursery.cancel_scope.cancel()
        await net.close_ledgers(2)
        await caught_up(books, net)
        print(await judge(books, net, corrected=False))
        async with httpx.AsyncClient(base_url=await served.ready()) as client:
            await eventually(partial(is_well, client), "everything is well again")
        assert_nothing_crashed(served, await served.health())
        assert await served.stop() == 0
