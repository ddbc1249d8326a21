"""The read cache behind REST: warm reads ask nothing of the database, and no read is older than the last write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from story import ALICE, BOB, GENESIS_S, batch, created, event, stream

from fluxora.actors.feed import Feed
from fluxora.actors.registrar import Registrar
from fluxora.actors.stream_cache import StreamCache
from fluxora.config import StorageConfig
from fluxora.storage.store import Store, open_store

URL = "/api/streams"
ONE = f"{URL}/{stream(0)}"
NEW = {"sender": ALICE, "recipient": BOB, "depositAmount": "1000", "ratePerSecond": "0.5", "startTime": GENESIS_S}
PATIENCE_S = 10


class Counted:
    """The store, whose questions are counted by name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def counted(*args: Any) -> Any:
            self.asked.append(name)
            return await method(*args)

        return counted


class Clock:
    now = GENESIS_S + 250.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def counted(store: Store) -> Counted:
    return Counted(store)


@pytest.fixture
def cache(counted: Counted) -> StreamCache:
    """In the place of the common one, so that `record` and `writes` tell this one."""
    return StreamCache(counted, trusted=lambda: True)


@pytest.fixture
async def server(start, counted, cache, writes, record):
    await record(batch(*(created(n, ledger=10 + n) for n in range(5))))
    return await start(store=counted, cache=cache, writes=writes, clock=Clock())


async def test_a_warm_read_asks_nothing_of_the_database(server, counted):
    urls = [ONE, f"{ONE}?asOf=5", URL, f"{URL}?limit=2&order=desc", f"{URL}?status=active&sender={ALICE}"]
    cold = [await server.get(url) for url in urls]
    asked = len(counted.asked)
    assert asked > 0
    for url, first in zip(urls, cold, strict=True):
        for method in ("GET", "HEAD"):
            again = await server.request(method, url)
            assert again.status_code == 200
            assert again.content == (first.content if method == "GET" else b"")
            assert again.headers["content-length"] == first.headers["content-length"]
    server.backend.clock.now += 1
    later = await server.get(ONE)
    assert later.json()["streamedAmount"] == "251.0000000", "what is warm is the state, not its worth"
    assert later.headers["etag"] != cold[0].headers["etag"]
    assert (await server.get(ONE, headers={"if-none-match": later.headers["etag"]})).status_code == 304
    assert len(counted.asked) == asked


async def test_a_page_warms_its_streams(server, counted):
    await server.get(URL)
    asked = len(counted.asked)
    for number in range(5):
        assert (await server.get(f"{URL}/{stream(number)}")).status_code == 200
    assert len(counted.asked) == asked


async def test_what_does_not_exist_is_asked_for_each_time(server, counted):
    for _ in range(2):
        asked = len(counted.asked)
        assert (await server.get(f"{URL}/stream-none")).status_code == 404
        assert len(counted.asked) == asked + 1


async def test_no_read_is_older_than_the_last_write_here(server):
    """Each write is followed by reads that were warm before it: alone, in pages with it, and in pages without it."""
    url = (await server.request("POST", URL, json=NEW)).headers["location"]
    filters = ["", "?status=active", "?status=paused", "?status=cancelled", "?order=desc&limit=1"]
    etags = set()
    for status in ("active", "paused", "active", "paused", "cancelled"):
        if status != "active" or etags:
            changed = await server.request("PATCH", url, json={"status": status})
            assert changed.status_code == 200
        for _ in range(2):
            shown = await server.get(url)
            assert shown.json()["status"] == status
            for query in filters:
                page = (await server.get(URL + query)).json()
                listed = {one["id"]: one["status"] for one in page["streams"]}
                wanted = query.partition("status=")[2] or status
                assert listed.get(shown.json()["id"]) == (status if wanted == status else None)
                assert int(page["position"]) >= int(shown.json()["position"])
        etags.add(shown.headers["etag"])
    assert len(etags) == 5


async def test_what_the_chain_changes_is_read_at_once(server, record):
    etag = (await server.get(ONE)).headers["etag"]
    assert (await server.get(ONE, headers={"if-none-match": etag})).status_code == 304
    await record(batch(event("paused", {"stream_id": 0, "reason": "Emergency"}, ledger=50)))
    changed = await server.get(ONE, headers={"if-none-match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "paused")
    assert changed.headers["etag"] != etag


async def test_many_readers_and_a_writer_never_see_time_go_back(server):
    url = (await server.request("POST", URL, json=NEW)).headers["location"]
    done = trio.Event()
    reads = 0

    async def read(of: str) -> None:
        nonlocal reads
        seen = 0
        async with server.client() as client:
            while not done.is_set():
                answer = (await client.get(of)).json()
                shown = answer["streams"][-1] if "streams" in answer else answer
                assert int(shown["position"]) >= seen
                seen = int(shown["position"])
                reads += 1

    async with trio.open_nursery() as nursery:
        for of in (url, url, URL, f"{URL}?order=desc"):
            nursery.start_soon(read, of)
        async with server.client() as client:
            for number in range(60):
                status = ("paused", "active")[number % 2]
                changed = (await client.patch(url, json={"status": status})).json()
                shown = (await client.get(url)).json()
                assert (shown["status"], shown["position"]) == (status, changed["position"]), "one's own write is seen"
        done.set()
    assert reads > 0


@pytest.fixture
async def replica(start, store, storage_config: StorageConfig, nursery) -> AsyncIterator[Any]:
    """A second front with a store, a cache and a feed of its own; the feed polls each hour, so a ring has to come."""
    feeds: list[Feed] = []
    async with open_store(storage_config, decimals={}, wakeup=lambda: [feed.ring() for feed in feeds]) as own:
        counted = Counted(own)
        cache = StreamCache(counted, trusted=lambda: bool(feeds) and feeds[0].in_touch())
        feed = Feed(own, cache=cache)
        feeds.append(feed)
        registrar = Registrar(own, publish=feed.publish)
        async with trio.open_nursery() as actors:
            await actors.start(feed.run)
            await actors.start(registrar.run)
            server = await start(store=counted, cache=cache, writes=registrar)
            server.feed, server.counted = feed, counted
            yield server
            actors.cancel_scope.cancel()


async def heard(replica: Any, position: int) -> None:
    with trio.fail_after(PATIENCE_S):
        while replica.feed.head < position or not replica.feed.in_touch():
            await trio.sleep(0.002)


async def test_a_replica_reads_what_another_has_written_once_it_has_heard(server, store, replica):
    url = (await server.request("POST", URL, json=NEW)).headers["location"]
    await heard(replica, await store.position())
    for status in ("active", "paused", "active", "cancelled"):
        if status != "active" or (await server.get(url)).json()["status"] == "paused":
            assert (await server.request("PATCH", url, json={"status": status})).status_code == 200
        await heard(replica, await store.position())
        for _ in range(2):
            shown = (await replica.get(url)).json()
            assert shown["status"] == status
            listed = (await replica.get(f"{URL}?status={status}")).json()["streams"]
            assert shown["id"] in {one["id"] for one in listed}
    asked = len(replica.counted.asked)
    assert (await replica.get(url)).status_code == 200
    assert len(replica.counted.asked) == asked, "and what it has heard of it reads from memory"


async def test_writes_of_both_are_seen_by_both(server, store, replica):
    """The common server's cache hears of its own writes alone, so only the replica's own reads are looked at."""
    for number in range(10):
        writer = (server, replica)[number % 2]
        url = (await writer.request("POST", URL, json={**NEW, "depositAmount": str(number + 1)})).headers["location"]
        if writer is server:
            await heard(replica, await store.position())
        assert (await replica.get(url)).json()["depositAmount"] == f"{number + 1}.0000000"
        page = (await replica.get(f"{URL}?order=desc&limit=1")).json()
        assert page["streams"][0]["id"] == url.removeprefix(f"{URL}/")
