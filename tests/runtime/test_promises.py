"""Nothing is lost, doubled or reordered, on any transport, whatever happens to server, clients and chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import trio
from followers import AGAIN_S, BUSY, CUT, FINISHED, SLOW, Follower, Listener, Place, talking
from growth import grow
from processes import Served, following, serve
from promises import ALL, WATCH_TRANSACTIONS, Log, Selector
from proof import LONG, chance
from truth import Books, caught_up, judge
from waiting import eventually

from fluxora.localnet import BulkHistory, Network, Script, account, bulk, contract_address, open_localnet
from fluxora.protocol.messages import stream_id

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 71
ROUNDS = 20 if LONG else 3  # each ends with a kill, or with a stop in order
EVENTS_PER_ROUND = 10_000 if LONG else 900  # of a history that comes at once, besides what the chain grows by
PER_LEDGER = 80
PAGE_LIMIT = 200
WRITERS = 2
STALLED_FOR = 6_000 if LONG else 1_000  # events that a slow reader lets pass by
CALM_S = 300 if LONG else 60
SENDER, RECIPIENT = (account(SEED, name) for name in ("writer", "reader"))


class Writer:
    """Registers streams and changes them, and tries again what had no answer. `acknowledged`: stream and action."""

    def __init__(self, place: Place, number: int, rng: Random) -> None:
        self.acknowledged: list[tuple[str, str]] = []
        self._place = place
        self._number = number
        self._rng = rng
        self._made = 0

    async def write(self) -> None:
        """Until nothing is to be written any more."""
        while not self._place.finished.is_set():
            url = await self._place.url()
            try:
                async with talking(url) as client:
                    while not self._place.finished.is_set():
                        await self._live(client)
            except httpx.TransportError:
                if self._place.is_still(url):
                    raise

    async def _live(self, client: httpx.AsyncClient) -> None:
        """The life of one stream."""
        answer = await register(client, f"w{self._number}:{self._made}")
        self._made += 1
        made = answer.json()["id"]
        self.acknowledged.append((made, "created"))
        for _ in range(self._rng.randrange(3)):
            for status, action in (("paused", "paused"), ("active", "resumed")):
                answer = await client.patch(f"/api/streams/{made}", json={"status": status})
                if not self._done(answer, made, action):
                    return
        if self._rng.random() < 0.5:
            self._done(await client.delete(f"/api/streams/{made}"), made, "cancelled")

    def _done(self, answer: httpx.Response, made: str, action: str) -> bool:
        """False where nobody knows whether it was done."""
        if answer.status_code == BUSY:
            return False
        assert answer.status_code == 200, answer.text
        self.acknowledged.append((made, action))
        return True


async def register(client: httpx.AsyncClient, key: str) -> httpx.Response:
    """A stream; the same one for the same key."""
    body = {
        "sender": SENDER,
        "recipient": RECIPIENT,
        "depositAmount": "1000",
        "ratePerSecond": "0.0000001",
        "startTime": 1_700_000_000,
    }
    while True:
        answer = await client.post("/api/streams", json=body, headers={"idempotency-key": key})
        if answer.status_code != BUSY:
            break
        await trio.sleep(AGAIN_S)
    assert answer.status_code == 201, answer.text
    return answer


class World:
    """Everyone who follows, and everyone who writes."""

    def __init__(self, place: Place, books: Books, contracts: list[str], rng: Random) -> None:
        self.writers = [Writer(place, number, Random(rng.random())) for number in range(WRITERS)]
        self.listeners = [Listener(place, Random(rng.random()), stays=_for_a_while) for _ in range(2)]
        self.learned: list[int] = []
        self.place = place
        self._books = books
        scripted, *bulky = contracts
        followed = [
            *[ALL] * 3,
            *(Selector("streamId", stream_id(scripted, number, 1)) for number in (0, 3, 30)),
            *(Selector("streamId", stream_id(one, 0, 1)) for one in bulky[:2]),
            *(Selector("sender", one) for one in (SENDER, account(SEED, "person-1"), account(SEED, "bulk-1"))),
            *(Selector("recipient", one) for one in (RECIPIENT, account(SEED, "person-2"), account(SEED, "bulk-3"))),
        ]
        self.followers = [self._follower(one, rng) for one in followed]
        self.followers += [self._follower(ALL, rng, stall=self._stall) for _ in range(2)]
        self.followers += [self._follower(one, rng, roams=True) for one in (ALL, followed[-1])]

    def _follower(self, selector: Selector, rng: Random, **options: Any) -> Follower:
        if selector.name != "streamId" or "stall" in options:  # REST has no such list; and nobody waits for a page
            options["transports"] = ("websocket", "sse")
        stays = _for_long if "stall" in options else _for_a_while
        return Follower(self.place, selector, Random(rng.random()), stays=stays, learned=self.learned, **options)

    async def _stall(self) -> None:
        """Until the log has gone on by much, or does so no more."""
        after = await self._books.position() + STALLED_FOR

        async def passed() -> bool:
            return self.place.finished.is_set() or await self._books.position() >= after

        await eventually(passed, "the log goes on", within_s=CALM_S)

    @property
    def cut(self) -> int:
        """How many connections the server ended in the middle of its life."""
        of_followers = sum(session.end == CUT for follower in self.followers for session in follower.sessions)
        return of_followers + sum(listener.ends[CUT] for listener in self.listeners)

    def start(self, nursery: trio.Nursery) -> None:
        for follower in self.followers:
            nursery.start_soon(follower.follow)
        for number, listener in enumerate(self.listeners):
            nursery.start_soon(listener.listen, lambda client, key=f"end:{number}": _last(client, key))
        for writer in self.writers:
            nursery.start_soon(writer.write)


def _for_a_while(rng: Random) -> int:
    return int(rng.choice((1, 10, 100, 1_000, 10_000)) * rng.random()) + 1


def _for_long(rng: Random) -> int:
    return rng.randint(5_000, 50_000)


async def _last(client: httpx.AsyncClient, key: str) -> str:
    return str((await register(client, key)).json()["id"])


# What is left in the middle of an answer is not read to its end, which httpx tells of.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning")
async def test_every_promise_is_kept_whatever_happens(postgres_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    rng = chance(SEED)
    books = await books_of(postgres_url)
    for statement in WATCH_TRANSACTIONS:
        await books.rows(statement)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=1), retention=None) as net:
        contracts = [net.contract.contract_id, *(contract_address(SEED, 100 + number) for number in range(ROUNDS))]
        environ = following(net, url=postgres_url, page_limit=PAGE_LIMIT) | {"FLUXORA_CONTRACTS": ",".join(contracts)}
        trouble = Trouble(net, books, environ, tmp_path, rng)
        async with trio.open_nursery() as tasks:
            world = World(Place(tasks), books, contracts, rng)
            async with trio.open_nursery() as nursery:
                world.start(nursery)
                async with trio.open_nursery() as growing:
                    growing.start_soon(grow, net, rng)
                    for number, contract_id in enumerate(contracts[1:]):
                        await trouble.strikes(number, contract_id, world.place)
                    growing.cancel_scope.cancel()
                quiet = await trouble.ends(world.place, nursery)
            tasks.cancel_scope.cancel()
        found = await judge(books, net, *trouble.histories, corrected=False)
    await judge_all(world, await Log.read(books), found, books)
    assert all(follower.sessions[-1].end == FINISHED for follower in world.followers)
    assert min(follower.sessions[-1].reached or 0 for follower in world.followers) >= quiet
    assert world.cut <= trouble.cut, "who was cut off was too slow, as the server says"
    print(f"{world.cut} were cut off as too slow")
    assert world.cut > 0 or not LONG


class Trouble:
    """The life of the server, run by run, and of the chain that it follows."""

    def __init__(self, net: Network, books: Books, environ: Mapping[str, str], folder: Path, rng: Random) -> None:
        self.histories: list[BulkHistory] = []
        self._net = net
        self._books = books
        self._environ = environ
        self._folder = folder
        self._rng = rng
        self._runs: list[Served] = []

    async def strikes(self, number: int, contract_id: str, place: Place) -> None:
        """A run into which much comes at once, and perhaps a fork; it ends in the middle of that."""
        async with self._run(f"serve-{number}.log", place) as served:
            self.histories.append(
                bulk(self._net.chain, EVENTS_PER_ROUND, contract_id=contract_id, events_per_ledger=PER_LEDGER)
            )
            await log_grows(self._books, served, self._rng.randint(1, EVENTS_PER_ROUND))
            print(f"round {number}: the log is at {await self._books.position()}", flush=True)
            if number % 2:
                await take_back(self._net, self._books, served, self._rng)
            place.is_gone()
            if number % 3 == 1:
                assert await served.stop() == 0, served.text[-3000:]
            else:
                await served.kill()

    async def ends(self, place: Place, nursery: trio.Nursery) -> int:
        """A last run, until everything is recorded and all of `nursery` were told so; what the log's head was then."""
        await self._net.close_ledgers(3)
        async with self._run("last.log", place) as served:
            await caught_up(self._books, self._net, within_s=CALM_S)
            quiet = await self._books.position()
            place.finished.set()
            await eventually(lambda: not nursery.child_tasks, "all were told everything", within_s=CALM_S)
            place.is_gone()
            assert await served.stop() == 0
        return quiet

    @asynccontextmanager
    async def _run(self, log: str, place: Place) -> AsyncIterator[Served]:
        async with serve(self._environ, self._folder / log) as served:
            self._runs.append(served)
            place.is_at(await served.ready())
            yield served

    @property
    def cut(self) -> int:
        """How many connections the servers say that they have cut off."""
        ended = [
            line
            for served in self._runs
            for line in (*served.lines("websocket.disconnected"), *served.lines("event_stream.disconnected"))
        ]
        return sum(line["code"] == SLOW for line in ended)


async def judge_all(world: World, log: Log, found: dict[str, int], books: Books) -> None:
    """The log is one, everyone was told what concerns them, and what was acknowledged is there."""
    report(world, log, found)
    assert log.faults == []
    assert log.undone == found["undone"] > 0
    broken = [one for follower in [*world.followers, *world.listeners] for one in follower.judge(log)]
    assert not broken, f"{len(broken)} broken promises:\n" + "\n".join(map(str, broken[:20]))
    rows = await books.rows("SELECT stream_id, action FROM events WHERE raw IS NULL AND event <> 'stream.reverted'")
    written = Counter((row["stream_id"], row["action"]) for row in rows)
    assert not Counter(one for writer in world.writers for one in writer.acknowledged) - written


async def log_grows(books: Books, served: Served, count: int) -> None:
    """Wait until the log has grown by `count`."""
    after = await books.position() + count

    async def there() -> bool:
        assert served.code is None, served.text[-3000:]
        return await books.position() >= after

    await eventually(there, f"the log grows to {after}", within_s=CALM_S)


async def take_back(net: Network, books: Books, served: Served, rng: Random) -> None:
    """A fork that reaches far into the last history, once all of it is recorded."""

    async def at_the_tip() -> bool:
        return bool(await books.value("SELECT complete_through FROM ingest_cursor") == net.chain.latest.sequence)

    await eventually(at_the_tip, "it is at the tip", within_s=CALM_S)
    await net.fork(rng.randint(1, 20))
    await log_grows(books, served, rng.randint(1, 60))


def report(world: World, log: Log, found: dict[str, int]) -> None:
    """The figures of the run."""
    sessions = [session for follower in world.followers for session in follower.sessions]
    told = Counter[str]()
    for session in sessions:
        told[session.transport] += len(session.told)
    told["broadcast"] = sum(len(prints) for listener in world.listeners for _, prints in listener.heard)
    print(f"log: {log.head} positions, {found}; {sum(map(len, (w.acknowledged for w in world.writers)))} writes")
    print(f"{len(sessions)} sessions ended: {dict(Counter((s.transport, s.end) for s in sessions))}")
    print(f"told: {dict(told)}; {sum(len(s.looks) for s in sessions)} looks at REST")
