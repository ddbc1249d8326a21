"""Webhooks arrive although the process that sends them is killed again and again, at a consumer that is no help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import trio
from processes import Served, environment, serve
from proof import LONG, chance
from test_database_away import Frozen, Stopped, own_server
from truth import Books
from waiting import eventually
from webhook_consumer import SECRET, Answer, Consumer, consuming, moody

from fluxora.config import StorageConfig
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.retries import MAX_ATTEMPTS
from fluxora.protocol.signing import Secret, delivery_id
from fluxora.storage.store import Create, open_store
from fluxora.storage.webhook_records import NewEndpoint

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 31
KILLS = 300 if LONG else 4
DELIVERIES = 20_000 if LONG else 600
GROUP = 250
AWAY_S = 30.0 if LONG else 2.0  # beyond the life of a worker, in the long form
WITHIN_S = 1_800.0 if LONG else 120.0
SENDER, RECIPIENT = (encode(AddressKind.ACCOUNT, bytes([number] * 32)) for number in (1, 2))


async def record(url: str, consumer: Consumer, number: int, *, max_in_flight: int = 32) -> str:
    """An endpoint, and events for it; the endpoint's id."""
    new = NewStream(sender=SENDER, recipient=RECIPIENT, deposit_amount=10**9, rate_per_second=1)
    async with open_store(StorageConfig(database_url=url), decimals={}) as store:
        await store.migrate()
        endpoint = await store.webhooks.create(
            NewEndpoint(url=consumer.url, max_in_flight=max_in_flight), Secret.parse(SECRET), "test"
        )
        for first in range(0, number, GROUP):
            names = range(first, min(first + GROUP, number))
            await store.register([Create(f"stream-{name}", f"event-{name}", new, None) for name in names])
    return endpoint.id


def serving(url: str) -> dict[str, str]:
    return environment(PORT="0", DATABASE_URL=url, FLUXORA_WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8")


async def hurry(books: Books) -> None:
    """What waits for its next try is due now: the schedule takes days."""
    await books.rows("UPDATE webhook_deliveries SET due_ms = 0 WHERE status = 'pending' AND due_ms > 0")
    await books.rows("SELECT pg_notify('fluxora_log', '')")


async def claimed(books: Books) -> set[int]:
    """The positions of what was on its way. Whoever sent it is taken for dead from now on."""
    await books.rows("UPDATE webhook_workers SET alive_until_ms = 0")
    return {row["position"] for row in await books.rows("SELECT position FROM webhook_claims")}


async def test_every_event_arrives_under_one_id_though_the_sender_is_killed(
    postgres_url: str, books_of: OpenBooks, tmp_path: Path
) -> None:
    rng = chance(SEED)
    books = await books_of(postgres_url)
    on_their_way: Counter[int] = Counter()  # by position, at how many kills
    async with consuming(moody(rng)) as consumer:
        endpoint_id = await record(postgres_url, consumer, DELIVERIES)
        for number in range(KILLS):
            async with serve(serving(postgres_url), tmp_path / f"serve-{number}.log") as served:
                await some_arrive(served, consumer, rng, (DELIVERIES - arrived(consumer)) // (KILLS + 1 - number))
                await served.kill()
            on_their_way.update(await claimed(books))
            await hurry(books)
        consumer.respond = moody(rng, stalls=LONG)  # each of which takes an attempt's 15 seconds
        async with serve(serving(postgres_url), tmp_path / "last.log") as served:
            await all_arrive(served, books)
            assert await served.stop() == 0
    events = {row["position"]: row["event_id"] for row in await books.rows("SELECT position, event_id FROM events")}
    assert len(events) == DELIVERIES
    acknowledged = Counter(request.position for request in consumer.acknowledged)
    assert set(acknowledged) == set(events), "every event was taken"
    bodies: dict[str, bytes] = {}
    for request in consumer.requests:
        made = delivery_id(endpoint_id, request.position, events[request.position])
        assert request.id == request.headers["x-fluxora-delivery-id"] == made
        assert bodies.setdefault(request.id, request.body) == request.body, "the same id is the same body"
    again = Counter({position: times - 1 for position, times in acknowledged.items() if times > 1})
    assert again <= on_their_way, "only what was on its way at a kill was sent again after it was taken"
    rows = await books.rows("SELECT status, attempts FROM webhook_deliveries")
    assert {row["status"] for row in rows} == {"delivered"}
    assert max(row["attempts"] for row in rows) <= MAX_ATTEMPTS
    assert await books.value("SELECT count(*) FROM webhook_claims") == 0
    print(
        f"{KILLS} kills, {DELIVERIES} deliveries, {len(consumer.requests)} requests, "
        f"{on_their_way.total()} on their way at the kills, {again.total()} taken twice"
    )
    assert on_their_way.total() > 0, "the kills must find deliveries on their way"


async def some_arrive(served: Served, consumer: Consumer, rng: Random, most: int) -> None:
    """Until more were taken; then a moment that only chance knows."""
    before = arrived(consumer)
    more = rng.randint(1, max(1, most))
    await served.ready()
    await eventually(lambda: arrived(consumer) >= before + more, "deliveries arrive", within_s=WITHIN_S)
    await trio.sleep(rng.uniform(0, 0.02))


async def all_arrive(served: Served, books: Books) -> None:
    """Until nothing waits; each failure is tried again at once."""
    await served.ready()

    async def done() -> bool:
        await hurry(books)
        await trio.sleep(0.1)
        pending = await books.value("SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'")
        return bool(pending == 0)

    await eventually(done, "all deliveries arrive", within_s=WITHIN_S)


def arrived(consumer: Consumer) -> int:
    return len({request.id for request in consumer.acknowledged})


async def test_a_stop_in_between_sends_nothing_twice(postgres_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    books = await books_of(postgres_url)
    number = 400
    async with consuming(Answer(200, after_s=0.01)) as consumer:
        await record(postgres_url, consumer, number)
        for round_ in range(3):
            async with serve(serving(postgres_url), tmp_path / f"serve-{round_}.log") as served:
                await eventually(lambda round_=round_: arrived(consumer) >= 100 * (round_ + 1), "deliveries arrive")
                assert await served.stop() == 0
        async with serve(serving(postgres_url), tmp_path / "last.log") as served:
            await all_arrive(served, books)
            assert await served.stop() == 0
    assert len(consumer.acknowledged) == len(consumer.requests) == len(set(consumer.ids)) == number


@pytest.mark.parametrize("outage", [Stopped, Frozen])
async def test_an_outage_of_the_database_sends_nothing_twice(
    outage: type[Stopped | Frozen], short_dir: Path, books_of: OpenBooks, tmp_path: Path
) -> None:
    """What was taken while nobody could be told is settled afterwards, by the process that knows of it."""
    number = 400
    with own_server(short_dir) as server:
        books = await books_of(server.url)
        away = outage(server)
        async with consuming(Answer(200, after_s=0.02)) as consumer:
            await record(server.url, consumer, number)
            async with serve(serving(server.url), tmp_path / "serve.log") as served:
                await eventually(lambda: arrived(consumer) >= 100, "deliveries arrive")
                await trio.to_thread.run_sync(away.leave)
                try:
                    await eventually(lambda: consumer.open_requests == 0, "what was on its way has arrived")
                    await trio.sleep(AWAY_S)
                finally:
                    await trio.to_thread.run_sync(away.come_back)
                await all_arrive(served, books)
                assert await served.stop() == 0
    assert len(consumer.acknowledged) == len(set(consumer.ids)) == number


async def test_replicas_share_the_work_and_one_that_is_killed_is_replaced_by_the_other(
    postgres_url: str, books_of: OpenBooks, tmp_path: Path
) -> None:
    books = await books_of(postgres_url)
    number = 600
    async with consuming(Answer(200, after_s=0.02)) as consumer:
        await record(postgres_url, consumer, number, max_in_flight=64)
        async with (
            serve(serving(postgres_url), tmp_path / "one.log") as one,
            serve(serving(postgres_url), tmp_path / "two.log") as two,
        ):
            await one.ready()
            await two.ready()
            await eventually(lambda: senders(books), "both send")
            await one.kill()
            on_their_way = await claimed(books)
            await all_arrive(two, books)
            assert await two.stop() == 0
    taken = Counter(request.position for request in consumer.acknowledged)
    assert len(taken) == number
    assert {position for position, times in taken.items() if times > 1} <= on_their_way


async def senders(books: Books) -> bool:
    """True while two have something on their way."""
    return bool(await books.value("SELECT count(DISTINCT worker) FROM webhook_claims") == 2)
