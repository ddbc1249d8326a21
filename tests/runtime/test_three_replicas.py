"""Three replicas under load: leaders are killed, PostgreSQL is restarted, one hangs, and every promise is kept."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import httpx
import pytest
import trio
from fleet import Fleet, Replicas
from followers import AGAIN_S, BUSY, SLOW, talking
from growth import grow
from processes import Served, environment, following, serve
from promises import WATCH_TRANSACTIONS, Log
from proof import LONG, chance
from test_database_away import own_server
from test_promises import World, judge_all
from test_replicas import stands_by
from test_webhooks_survive import hurry
from truth import Books, caught_up, judge
from waiting import eventually
from webhook_consumer import SECRET
from writers import WATCH_WRITERS, judge_writers, newest_writer

from fluxora.config import StorageConfig
from fluxora.errors import LeaseLost
from fluxora.localnet import Network, Script, account, open_localnet
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.signing import Secret, delivery_id
from fluxora.storage.embedded import EmbeddedServer
from fluxora.storage.store import open_store
from fluxora.storage.webhook_records import NewEndpoint

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 97
REPLICAS = 3
KILLS = 10 if LONG else 2
RESTARTS = 2 if LONG else 1
HANGS = 4 if LONG else 1
ROLLS = 3 if LONG else 1
MORE = 400 if LONG else 60  # positions at most that pass between two strikes
PAGE_LIMIT = 50
RACE_EVERY_S = 0.05
IN_FLIGHT = 409  # the same key came to the same replica twice, and the first request has no answer yet
ASKERS = 6
WITHIN_S = 60.0
PROMISED_S = 5.0  # for a holder that dies or hangs, on a machine that has time for it: printed, for a test has none
ALL_WITHIN_S = 600.0 if LONG else 120.0
SENDER, RECIPIENT = (account(SEED, name) for name in ("racer", "finish"))

pytestmark = [  # what is left in the middle of an answer is not read to its end, which httpx tells of
    pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning"),
]


class Racer:
    """Sends each registration to every replica at once, as often as it takes until each has answered."""

    def __init__(self, fleet: Fleet) -> None:
        self.answers: defaultdict[str, list[httpx.Response]] = defaultdict(list)
        self._fleet = fleet
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def race(self) -> None:
        """Until nothing is to be written any more."""
        async with AsyncExitStack() as stack:
            while not self._fleet.finished.is_set():
                key = f"race:{len(self.answers)}"
                async with trio.open_nursery() as nursery:
                    for url in self._fleet.urls or [await self._fleet.url()]:
                        nursery.start_soon(self._send, stack, url, key)
                await trio.sleep(RACE_EVERY_S)

    async def _send(self, stack: AsyncExitStack, url: str, key: str) -> None:
        fields = {"sender": SENDER, "recipient": RECIPIENT, "depositAmount": str(1 + int(key.partition(":")[2]))}
        while True:
            if url not in self._clients:
                self._clients[url] = await stack.enter_async_context(talking(url))
            try:
                answer = await register(self._clients[url], fields, key)
            except httpx.TransportError:
                if self._fleet.is_still(url):
                    raise
                url = await self._fleet.url()
                continue
            if answer.status_code not in (BUSY, IN_FLIGHT):
                self.answers[key].append(answer)
                return
            await trio.sleep(AGAIN_S)

    async def judge(self, books: Books) -> str:
        """Each key made one stream, and every answer tells of it in the same words."""
        made = set()
        for key, answers in self.answers.items():
            assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
            assert len({answer.content for answer in answers}) == 1, key
            assert sum("idempotency-replayed" not in answer.headers for answer in answers) <= 1, key
            made.add(answers[0].json()["id"])
        assert len(made) == len(self.answers)
        rows = await books.rows("SELECT id FROM streams WHERE sender = $1", SENDER)
        assert sorted(row["id"] for row in rows) == sorted(made)
        return f"{len(made)} keys, {sum(map(len, self.answers.values()))} answers"


class Asker:
    """Asks one thing after the other on a connection that it keeps, and on that of another replica where one went."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.answered = Counter[int]()
        self.refused = 0  # where nobody listened any more
        self.unanswered: dict[str, str] = {}  # request ids, and what came instead
        self._fleet = fleet
        self._number = number

    async def ask(self) -> None:
        """Until nothing is written any more."""
        while not self._fleet.finished.is_set():
            url = await self._fleet.url()
            async with talking(url) as client:
                while not self._fleet.finished.is_set() and await self._one(client):
                    pass
            assert self._fleet.finished.is_set() or not self._fleet.is_still(url), "in the middle of a server's life"

    async def _one(self, client: httpx.AsyncClient) -> bool:
        nth = self.answered.total() + self.refused + len(self.unanswered)
        name = f"ask-{self._number}-{nth}"
        try:
            if nth % 3:
                answer = await client.get("/api/events", params={"limit": 1}, headers={"x-request-id": name})
            else:
                answer = await register(client, {"sender": RECIPIENT, "recipient": SENDER}, name)
        except httpx.ConnectError:
            self.refused += 1
            return False
        except httpx.TransportError as error:
            self.unanswered[name] = f"{type(error).__name__}: {error}"
            return False
        self.answered[answer.status_code] += 1
        assert answer.headers["x-request-id"] == name
        return True


async def register(client: httpx.AsyncClient, fields: dict[str, str], key: str) -> httpx.Response:
    """A registration under a key that is the request's id as well."""
    body = {"depositAmount": "1", "ratePerSecond": "0.0000001", **fields}
    return await client.post("/api/streams", json=body, headers={"idempotency-key": key, "x-request-id": key})


class Taken:
    """What a consumer in a process of its own has taken."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def _lines(self) -> list[dict[str, Any]]:
        assert self._served.code is None, self._served.text[-3000:]
        whole = self._served.text.rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    async def url(self) -> str:
        lines = await eventually(self._lines, "the consumer listens")
        return str(lines[0]["url"])

    def judge(self, endpoint_id: str, log: Log) -> str:
        """Everything was taken at least once, each event under one id and as one body."""
        taken = self._lines()[1:]
        times = Counter(line["position"] for line in taken)
        assert set(times) == set(range(1, log.head + 1))
        bodies: dict[str, str] = {}
        for line in taken:
            assert line["id"] == delivery_id(endpoint_id, line["position"], log.event_ids[line["position"] - 1])
            assert bodies.setdefault(line["id"], line["body"]) == line["body"]
        return f"{len(times)} taken, {len(taken) - len(times)} of them again"


class Scene:
    """All of it: the server's database, the chain, three replicas, whoever talks to them, and what was measured."""

    def __init__(self, server: EmbeddedServer, books: Books, net: Network, replicas: Replicas, rng: Random) -> None:
        self.killed: list[float] = []  # seconds from the kill until another has recorded something of the chain
        self.restarted: list[float] = []  # from when PostgreSQL is back
        self.hung: list[float] = []
        self.stopped: list[float] = []
        self.replicas = replicas
        self._server = server
        self._books = books
        self._net = net
        self._rng = rng

    async def under_way(self) -> int:
        """Wait until the newest holder of the lease records; the lease."""
        more = await self._books.position() + self._rng.randint(1, MORE)

        async def there() -> int:
            newest = int(await self._books.value("SELECT lease FROM log_head"))
            records = await newest_writer(self._books) == newest and await self._books.position() >= more
            return newest if records else 0

        return int(await eventually(there, f"ingest gets to {more}", within_s=WITHIN_S))

    async def goes_on(self, lease: int) -> float:
        """Wait until a newer lease than this one records; how long that took."""
        began = trio.current_time()
        await eventually(partial(self._recorded_since, lease), f"ingest goes on after {lease}", within_s=WITHIN_S)
        return trio.current_time() - began

    async def _recorded_since(self, lease: int) -> bool:
        return await newest_writer(self._books) > lease

    # -- what happens ----------------------------------------------------------------------------------------------

    async def leader_is_killed(self) -> None:
        lease = await self.under_way()
        if self._rng.random() < 0.5:
            await self._net.fork(self._rng.randint(1, 6))
        await self.replicas.kill(await self.replicas.leader())
        self.killed.append(await self.goes_on(lease))
        await self.replicas.start()

    async def postgres_restarts(self) -> None:
        """In order, and the next time as by a crash."""
        lease = await self.under_way()
        mode = "immediate" if len(self.restarted) % 2 else "fast"
        await trio.to_thread.run_sync(self._server._pg, "pg_ctl", "stop", "-D", str(self._server.data), "-m", mode)
        await trio.to_thread.run_sync(self._server._ensure_running)
        await eventually(self._answers, "PostgreSQL answers")
        self.restarted.append(await self.goes_on(lease))

    async def _answers(self) -> bool:
        return await self._books.position() >= 0

    async def leader_hangs(self) -> None:
        """Until another leads and sends what it was sending; then it wakes up, with work in its hands.

        First it hangs in the middle of a transaction, and the next time wherever it is.
        """
        lease = await self.under_way()
        leader = await self.replicas.leader()
        known = len(leader.lines("dispatcher.taken_for_dead"))
        async with self.replicas.standing_still(leader, writing=len(self.hung) % 2 == 0) as stopped:
            await self.goes_on(lease)
            self.hung.append(trio.current_time() - stopped)
            await eventually(self._two_send, "it is dead to those who send", within_s=WITHIN_S)
        await eventually(partial(stands_by, leader), "the former leader stands by")
        told = partial(leader.lines, "dispatcher.taken_for_dead")
        await eventually(lambda: len(told()) > known, "it learns that it was taken for dead")

    async def _two_send(self) -> bool:
        return bool(await self._books.value("SELECT count(*) FROM webhook_workers") == REPLICAS - 1)

    async def all_are_replaced(self) -> None:
        """One after the other, each back before the next one goes."""
        for served in list(self.replicas.running.values()):
            lease = await self.under_way()
            leads = await self.replicas.leader() is served
            await self.replicas.stop(served)
            if leads:
                self.stopped.append(await self.goes_on(lease))
            await self.replicas.start()

    def report(self) -> None:
        for what in ("killed", "restarted", "hung", "stopped"):
            if times := getattr(self, what):
                shown = " ".join(f"{time:.1f}" for time in times)
                kept = sum(time <= PROMISED_S for time in times)
                print(f"{what}: ingest went on after {shown} s; median {median(times):.1f}, max {max(times):.1f}")
                print(f"{what}: {kept} of {len(times)} within {PROMISED_S:g} s")


@asynccontextmanager
async def scene(
    folder: Path, books_of: OpenBooks, logs: Path, happens: Callable[[Scene, Fleet], Awaitable[None]], rng: Random
) -> AsyncIterator[tuple[Scene, World, Books]]:
    """Everything under load while `happens` runs; judged behind it, and given out for what else there is to see."""
    with own_server(folder) as server:
        books = await books_of(server.url)
        async with AsyncExitStack() as stack:
            consumer = await stack.enter_async_context(
                serve(environment(), logs / "consumer.log", ("tests/webhook_consumer.py", str(SEED)))
            )
            taken = Taken(consumer)
            endpoint_id = await prepare(server.url, await taken.url(), books)
            net = await stack.enter_async_context(
                open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=1), retention=None)
            )
            tasks = await stack.enter_async_context(trio.open_nursery())
            fleet = Fleet(tasks, Random(rng.random()))
            environ = following(net, page_limit=PAGE_LIMIT, FLUXORA_WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8")
            replicas = Replicas(fleet, environ, server.url, books, logs, rng=Random(rng.random()))
            stack.callback(replicas.end_now)
            async with trio.open_nursery() as starting:
                for _ in range(REPLICAS):
                    starting.start_soon(replicas.start)
            shown = Scene(server, books, net, replicas, rng)
            world, racer = World(fleet, books, [net.contract.contract_id], rng), Racer(fleet)
            async with trio.open_nursery() as nursery:
                world.start(nursery)
                nursery.start_soon(racer.race)
                async with trio.open_nursery() as growing:
                    growing.start_soon(grow, net, rng)
                    await happens(shown, fleet)
                    growing.cancel_scope.cancel()
                await net.fork(3)
                await net.close_ledgers(3)
                await caught_up(books, net)
                fleet.quiet = await books.position()
                fleet.finished.set()
                await eventually(lambda: not nursery.child_tasks, "all were told everything", within_s=ALL_WITHIN_S)
            await eventually(partial(all_delivered, books), "all webhooks arrive", within_s=ALL_WITHIN_S)
            log = await Log.read(books)
            print(taken.judge(endpoint_id, log))
            found = await judge(books, net, corrected=False)
            for served in list(replicas.running.values()):
                await replicas.stop(served)
            for served in replicas.ever:
                assert served.lines("supervisor.actor_crashed") == []
                assert served.lines("http.request_failed") == []
            tasks.cancel_scope.cancel()
        shown.report()
        await judge_all(world, log, found, books)
        cut = sum(line["code"] == SLOW for served in replicas.ever for line in ended(served))
        assert world.cut <= cut, "who was cut off was too slow, as the server says"
        print(await judge_writers(books), await racer.judge(books))
        yield shown, world, books


def ended(served: Served) -> list[dict[str, Any]]:
    """What it says of connections that have ended."""
    return [*served.lines("websocket.disconnected"), *served.lines("event_stream.disconnected")]


async def prepare(url: str, consumer_url: str, books: Books) -> str:
    """Tables, one endpoint that gets everything (its id), and what notes who writes."""
    async with open_store(StorageConfig(database_url=url), decimals={}) as store:
        await store.migrate()
        new = NewEndpoint(url=consumer_url, max_in_flight=32)
        endpoint = await store.webhooks.create(new, Secret.parse(SECRET), "test")
    for statement in (*WATCH_TRANSACTIONS, *WATCH_WRITERS):
        await books.rows(statement)
    return endpoint.id


async def all_delivered(books: Books) -> bool:
    await hurry(books)
    return bool(await books.value("SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'") == 0)


async def test_all_promises_hold_though_leaders_die_postgresql_restarts_and_one_hangs(
    short_dir: Path, books_of: OpenBooks, tmp_path: Path
) -> None:
    rng = chance(SEED)

    async def happens(shown: Scene, _fleet: Fleet) -> None:
        strikes = [*[shown.leader_is_killed] * KILLS, *[shown.postgres_restarts] * RESTARTS]
        strikes += [shown.leader_hangs] * HANGS
        rng.shuffle(strikes)
        for strike in strikes:
            print(strike.__name__, flush=True)
            await strike()

    async with scene(short_dir, books_of, tmp_path, happens, rng) as (shown, _, books):
        assert len(shown.killed) == KILLS
        await old_leases_are_refused(books)


async def old_leases_are_refused(books: Books) -> None:
    """Whoever comes with one that is not the newest, which is what one does that wakes up, writes nothing."""
    newest, position = int(await books.value("SELECT lease FROM log_head")), await books.position()
    async with open_store(StorageConfig(database_url=books.url), decimals={}) as store:
        for lease in range(1, newest):
            with pytest.raises(LeaseLost):
                await store.append([LedgerBatch(complete_through=10**6)], lease=lease)
    assert await books.position() == position


async def test_replicas_are_replaced_one_after_the_other_and_no_request_goes_without_an_answer(
    short_dir: Path, books_of: OpenBooks, tmp_path: Path
) -> None:
    rng = chance(SEED)
    askers: list[Asker] = []

    async def happens(shown: Scene, fleet: Fleet) -> None:
        askers.extend(Asker(fleet, number) for number in range(ASKERS))
        async with trio.open_nursery() as nursery:
            for asker in askers:
                nursery.start_soon(asker.ask)
            for _ in range(ROLLS):
                await shown.all_are_replaced()
            nursery.cancel_scope.cancel()

    async with scene(short_dir, books_of, tmp_path, happens, rng) as (_, world, _):
        unanswered = {name: what for asker in askers for name, what in asker.unanswered.items()}
        answered = sum((asker.answered for asker in askers), Counter[int]())
        print(f"answered: {dict(answered)}; {sum(asker.refused for asker in askers)} connections refused")
        assert unanswered == {}
        assert set(answered) <= {200, 201, BUSY}
        ends = Counter(session.end for one in world.followers if not one.stalls for session in one.sessions)
        assert ends["1001"] > 0
        assert ends["1006"] == 0, "who reads is told"
