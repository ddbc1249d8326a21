"""Lists of deliveries, sending again, replays, retention, and what is counted."""

from __future__ import annotations

from random import Random

import pytest
from hooked import HOUR_MS, LIFE_MS, check_tables, create, endpoint, opened, record, result, rows
from scripted import ACCOUNTS, batch, created, execute, header, query

from fluxora.config import StorageConfig
from fluxora.storage import webhook_deliveries, webhook_tallies
from fluxora.storage.store import Store
from fluxora.storage.webhook_records import Delivery, DeliveryQuery, Due, EndpointChanges

DAY_MS = 24 * HOUR_MS


async def work(store: Store, **outcomes: list[int]) -> list[Due]:
    """Claim all that is due and settle it: the positions named by outcome, the others delivered."""
    await store.webhooks.enlist("w", LIFE_MS)
    done: list[Due] = []
    while True:
        turn = await store.webhooks.turn("w", [], 1_000, [], [])
        if not turn.deliveries:
            return done
        done += turn.deliveries
        results = []
        for due in turn.deliveries:
            (outcome,) = [name for name, at in outcomes.items() if due.event.position in at] or ["delivered"]
            results.append(result(due, outcome, delay_ms=HOUR_MS))
        await store.webhooks.turn("w", results, 0, [], [])


async def pages(store: Store, limit: int, **query_: str | None) -> list[Delivery]:
    found: list[Delivery] = []
    while True:
        before = found[-1].id if found else None
        page = await store.webhooks.deliveries(DeliveryQuery(before=before, limit=limit, **query_))
        assert len(page) <= limit
        found += page
        assert len(found) == len({each.id for each in found})
        if len(page) < limit:
            return found


async def test_pages_are_the_whole_list_in_its_order(storage_config: StorageConfig) -> None:
    random = Random(5)
    async with opened(storage_config) as (store, _):
        made = [await endpoint(store, max_in_flight=1_000) for _ in range(3)]
        await record(store, 20)
        await work(store, dead=[2, 5, 11], retry=[3, 8])
        times = "random() * 5"  # few moments for many deliveries
        await execute(store.url, [f"UPDATE webhook_deliveries SET at_ms = at_ms - ({times})::bigint"])
        everything = await query(
            store.url,
            "SELECT d.*, e.event, e.stream_id FROM webhook_deliveries d JOIN events e USING (position)",
        )
        newest = sorted(
            everything, key=lambda row: (row["at_ms"], row["position"], row["endpoint_id"].encode()), reverse=True
        )
        for _ in range(12):
            whose = random.choice([None, *(each.id for each in made)])
            status = random.choice([None, "pending", "delivered", "dead"])
            expected = [
                (row["endpoint_id"], row["position"], row["status"], row["event"], row["stream_id"])
                for row in newest
                if (whose is None or row["endpoint_id"] == whose) and (status is None or row["status"] == status)
            ]
            found = await pages(store, random.choice([1, 2, 7, 100]), endpoint_id=whose, status=status)
            assert [(d.endpoint_id, d.position, d.status, d.event, d.stream_id) for d in found] == expected
        assert await store.webhooks.deliveries(DeliveryQuery(before="msg_default_1")) == []
        assert await store.webhooks.deliveries(DeliveryQuery(before="nonsense")) == []


async def test_a_delivery_shows_its_times_and_attempts(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store)
        await record(store, 1)
        (due,) = await work(store, retry=[1])
        found = await store.webhooks.delivery(due.id)
        assert found is not None
        pending = found.delivery
        assert (pending.status, pending.finished_ms, pending.last_error) == ("pending", None, "answered 500")
        assert pending.due_ms is not None
        assert 0 < pending.due_ms - found.attempts[0].at_ms <= HOUR_MS
        await store.webhooks.redeliver(due.id, "test")
        await work(store)
        found = await store.webhooks.delivery(due.id)
        assert found is not None
        assert (found.delivery.status, found.delivery.due_ms) == ("delivered", None)
        assert found.delivery.finished_ms == found.attempts[1].at_ms
        assert [(each.number, each.status) for each in found.attempts] == [(1, 500), (2, 200)]
        assert await store.webhooks.delivery(f"msg_{made.id}_77") is None
        assert await store.webhooks.delivery("nonsense") is None


async def test_what_comes_back_is_bounded_and_storable(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 1)
        await store.webhooks.enlist("w", LIFE_MS)
        (due,) = (await store.webhooks.turn("w", [], 9, [], [])).deliveries
        hostile = result(due, "retry", error="\0\ud800" * 999, response="a\0b\udfff" + "x" * 5_000)
        assert (await store.webhooks.turn("w", [hostile], 0, [], [])).settled == 1
        found = await store.webhooks.delivery(due.id)
        assert found is not None
        assert found.attempts[0].response == "a\ufffdb?" + "x" * 1_020
        assert found.delivery.last_error == "\ufffd?" * 250


@pytest.mark.parametrize("was", ["pending", "delivered", "dead"])
async def test_one_is_sent_again_with_all_attempts_before_it(storage_config: StorageConfig, was: str) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store, ordered=True)
        await record(store, 1, changes=1)
        outcomes = {"pending": {"retry": [1]}, "delivered": {}, "dead": {"dead": [1]}}[was]
        first = (await work(store, **outcomes))[0]
        pending = await store.webhooks.redeliver(first.id, "key:ops")
        assert pending is not None
        assert (pending.id, pending.status, pending.attempts, pending.finished_ms) == (first.id, "pending", 0, None)
        assert pending.due_ms is not None
        await check_tables(store.url)
        again = await work(store)
        assert [due.event.position for due in again] == ([1, 2] if was == "pending" else [1])
        assert (again[0].id, again[0].attempts) == (first.id, 0)
        assert await store.webhooks.redeliver("msg_default_1", "key:ops") is None
        assert await store.webhooks.redeliver("nonsense", "key:ops") is None
        assert [(each.action, each.detail) for each in await store.webhooks.admin_log(1, 9)] == [
            ("webhook.redelivered", {"was": was})
        ]


async def test_a_replay_sends_what_failed_or_was_missed_or_everything(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store, events=("stream.created",))
        await record(store, 4, changes=1)  # created: 1 to 4
        await work(store, dead=[2], retry=[3])
        await store.webhooks.update(made.id, EndpointChanges(enabled=False), "test")
        await store.register([create(), create()])  # 9 and 10 are missed
        await store.webhooks.update(made.id, EndpointChanges(enabled=True), "test")

        def due_now(found: dict) -> set[int]:
            return {at for (_, at), row in found.items() if row["status"] == "pending" and row["attempts"] == 0}

        told = await store.webhooks.replay(made.id, 0, 9, "failed", "key:ops")
        assert told is not None
        assert (told.count, told.uncertain, told.through, told.has_more) == (2, 0, 9, False)
        assert due_now(await rows(store)) == {2, 9}
        told = await store.webhooks.replay(made.id, 1, None, "all", "key:ops")
        assert told is not None
        assert (told.count, told.through, told.has_more) == (2, 10, False)  # 4, which was delivered, and 10
        found = await rows(store)
        assert due_now(found) == {2, 4, 9, 10}
        assert found[made.id, 3]["attempts"] == 1  # pending already
        assert found[made.id, 1]["status"] == "delivered"
        await check_tables(store.url)
        assert {due.event.position for due in await work(store)} == {2, 4, 9, 10}
        await check_tables(store.url)
        told = await store.webhooks.replay(made.id, 10, None, "all", "key:ops")
        assert told is not None
        assert (told.count, told.through, told.has_more) == (0, 10, False)


async def test_a_replay_says_of_how_much_nobody_knows_whether_it_arrived(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store)
        await record(store, 2)
        await store.webhooks.update(made.id, EndpointChanges(enabled=False), "test")
        await store.register([create()])  # 3 is missed
        await store.webhooks.update(made.id, EndpointChanges(enabled=True), "test")
        await store.register([create(), create()])
        await work(store, dead=[2])
        await store.webhooks.update(made.id, EndpointChanges(enabled=False), "test")
        await store.register([create()])  # so is 6
        await store.webhooks.update(made.id, EndpointChanges(enabled=True), "test")
        await execute(store.url, [f"UPDATE webhook_deliveries SET at_ms = at_ms - {31 * DAY_MS} WHERE position <> 5"])
        assert await store.webhooks.purge(30 * DAY_MS, 1) == 1
        assert await store.webhooks.purge(30 * DAY_MS, 100) == 2  # of 1, 2 and 4 nothing is left
        for only, count, uncertain in (("failed", 5, 4), ("failed", 0, 0), ("all", 1, 0)):
            told = await store.webhooks.replay(made.id, 0, None, only, "test")
            assert told is not None
            assert (told.count, told.uncertain) == (count, uncertain), "up to 4 nobody knows; 6 was never recorded"
        await check_tables(store.url)


async def test_a_replay_goes_through_the_log_in_bounded_pieces(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_deliveries, "REPLAYED_AT_ONCE", 7)
    async with opened(storage_config) as (store, _):
        await record(store, 20)
        made = await endpoint(store, ordered=True)
        after, counts = 0, []
        while True:
            told = await store.webhooks.replay(made.id, after, 18, "failed", "key:ops")
            assert told is not None
            counts.append(told.count)
            after = told.through
            if not told.has_more:
                break
        assert counts == [7, 7, 4]
        assert after == 18
        assert {row["queue"] for row in (await rows(store)).values()} == {f"stream-{number}" for number in range(18)}


async def test_a_replay_has_what_takes_back_an_event_that_was_told(storage_config: StorageConfig) -> None:
    """Where a stream is gone altogether, its retraction names nobody, and is owed to who was told of the stream."""
    async with opened(storage_config) as (store, lease):
        endpoints = [
            await endpoint(store, addresses=(ACCOUNTS[1],)),
            await endpoint(store, addresses=(ACCOUNTS[1],), ordered=True),  # disabled while the history changes
            await endpoint(store, addresses=(ACCOUNTS[5],)),  # told of nothing
            await endpoint(store, addresses=(ACCOUNTS[1],), events=("stream.created",)),  # wants no retractions
        ]
        late = endpoints[1].id
        await store.append([batch([created(100, 0, 7)], 100, headers=(header(100),))], lease=lease.number)
        await work(store)
        await store.webhooks.update(late, EndpointChanges(enabled=False), "test")
        await store.append([batch([], 100, rollback_to=99, headers=(header(100, 1),))], lease=lease.number)
        await work(store, dead=[2])
        await store.webhooks.update(late, EndpointChanges(enabled=True), "test")
        endpoints.append(await endpoint(store, addresses=(ACCOUNTS[1],)))  # told of nothing until it is replayed
        replays = [await store.webhooks.replay(each.id, 0, None, "failed", "test") for each in endpoints]
        assert [told and told.count for told in replays] == [1, 1, 0, 0, 2]
        again = {(due.endpoint_id, due.event.position) for due in await work(store)}
        assert again == {(endpoints[0].id, 2), (late, 2), (endpoints[4].id, 1), (endpoints[4].id, 2)}
        assert (await rows(store))[late, 2]["queue"] is not None
        await check_tables(store.url)


async def test_an_earlier_event_that_is_replayed_goes_before_the_later_ones_of_its_stream(
    storage_config: StorageConfig,
) -> None:
    async with opened(storage_config) as (store, _):
        await record(store, 1, changes=2)
        made = await endpoint(store, ordered=True)
        await record_change(store)  # position 4
        await store.webhooks.replay(made.id, 0, 3, "all", "test")
        assert [due.event.position for due in await work(store)] == [1, 2, 3, 4]


async def record_change(store: Store) -> None:
    import uuid

    from fluxora.protocol.streams import StreamStatus
    from fluxora.storage.store import Change

    await store.register([Change("stream-0", str(uuid.uuid4()), StreamStatus.PAUSED)])


async def test_what_is_finished_for_long_enough_is_deleted(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made, other = await endpoint(store), await endpoint(store)
        await record(store, 6)
        await work(store, dead=[2, 4], retry=[3])
        old = f"position IN (1, 2, 3) OR endpoint_id = '{other.id}'"
        await execute(
            store.url,
            [f"UPDATE webhook_deliveries SET at_ms = at_ms - {31 * DAY_MS} WHERE {old}"],
        )
        assert [await store.webhooks.purge(30 * DAY_MS, 2) for _ in range(5)] == [2, 2, 2, 1, 0]
        left = await rows(store)
        assert {key: row["status"] for key, row in left.items()} == {
            (made.id, 3): "pending",
            (other.id, 3): "pending",
            (made.id, 4): "dead",
            (made.id, 5): "delivered",
            (made.id, 6): "delivered",
        }
        attempts = await query(store.url, "SELECT DISTINCT endpoint_id, position FROM webhook_attempts")
        assert {tuple(row) for row in attempts} == set(left)
        await check_tables(store.url)


async def test_the_backlog_counts_what_waits_where_it_can_go(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_tallies, "JOINED_FROM", 4)
    async with opened(storage_config) as (store, _):
        nothing = await store.webhooks.backlog()
        assert (nothing.pending, nothing.oldest_pending_ms, nothing.dead_lettered) == (0, None, 0)
        made, off = await endpoint(store), await endpoint(store)
        await record(store, 4)
        await store.register([create()])
        older = f"UPDATE webhook_deliveries SET at_ms = at_ms - {HOUR_MS}"
        await execute(store.url, [f"{older} WHERE position = 2", f"{older} * 9 WHERE endpoint_id = '{off.id}'"])
        await work(store, retry=[2, 3], dead=[4])
        await store.webhooks.update(off.id, EndpointChanges(enabled=False), "test")
        for _ in range(3):
            found = await store.webhooks.backlog()
            assert (found.pending, found.dead_lettered) == (2, 2)
            assert found.oldest_pending_ms is not None
            assert HOUR_MS <= found.oldest_pending_ms < 2 * HOUR_MS
            await check_tables(store.url)
        (tallies,) = await query(store.url, "SELECT count(*) FROM webhook_tallies")
        assert tallies[0] == 2
        found = await store.webhooks.deliveries(DeliveryQuery(endpoint_id=made.id))
        await store.webhooks.redeliver(next(each.id for each in found if each.position == 4), "test")
        found = await store.webhooks.backlog()
        assert (found.pending, found.dead_lettered) == (3, 1)


async def test_the_backlog_is_told_however_much_has_piled_up(storage_config: StorageConfig) -> None:
    """As by many endpoints while nobody counted: joining them all would take longer than a read may, each time anew."""
    rows_ = 500_000
    async with opened(storage_config) as (store, _):
        made = await endpoint(store)
        await execute(
            store.url, [f"INSERT INTO webhook_tallies SELECT '{made.id}', 1, 1 FROM generate_series(1, {rows_})"]
        )
        left = [rows_]
        while left[-1] >= webhook_tallies.JOINED_FROM and len(left) < 4:
            told = await store.webhooks.backlog()
            assert (told.pending, told.dead_lettered) == (rows_, rows_)
            ((count,),) = await query(store.url, "SELECT count(*) FROM webhook_tallies")
            left.append(count)
        assert left == sorted(left, reverse=True)
        assert left[-1] < rows_
