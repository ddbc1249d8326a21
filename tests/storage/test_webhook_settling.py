"""What becomes of deliveries and endpoints when attempts have ended."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

import pytest
from hooked import (
    HOUR_MS,
    check_tables,
    claim,
    endpoint,
    enlisted,
    opened,
    pass_time,
    positions,
    record,
    result,
    rows,
    settle,
)
from scripted import execute

from fluxora.config import StorageConfig
from fluxora.storage.store import EventQuery
from fluxora.storage.webhook_records import EndpointChanges
from fluxora.storage.webhook_settling import FAILING_MS


async def test_a_delivery_is_claimed_sent_and_settled(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store)
        await record(store, 1)
        await enlisted(store, "w")
        turn = await claim(store)
        (due,) = turn.deliveries
        (logged,) = await store.events(EventQuery())
        assert due.event == logged
        assert due.id == f"msg_{made.id}_1_{sha256(logged.event_id.encode()).hexdigest()[:12]}"
        assert (due.url, due.attempts, due.ordered) == (made.url, 0, False)
        assert [secret.reveal() for secret in due.secrets] == ["whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]
        assert (turn.alive, turn.settled, turn.disabled, turn.next_due_ms) == (True, 0, [], None)
        assert positions(await claim(store)) == []
        done = await settle(store, result(due))
        assert (done.settled, done.deliveries) == (1, [])
        found = await store.webhooks.delivery(due.id)
        assert found is not None
        assert (found.delivery.status, found.delivery.attempts, found.delivery.last_status) == ("delivered", 1, 200)
        assert [(each.number, each.status, each.response) for each in found.attempts] == [(1, 200, "ok")]
        after = await store.webhooks.endpoint(made.id)
        assert after is not None
        assert (after.failing_since_ms, after.last_success_ms) == (None, found.delivery.finished_ms)
        await check_tables(store.url)


@pytest.mark.parametrize(("outcome", "delay_ms"), [("dead", 0), ("retry", HOUR_MS)])
async def test_what_is_redelivered_while_it_is_sent_is_due_at_once_though_that_attempt_fails(
    storage_config: StorageConfig, outcome: str, delay_ms: int
) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 1)
        await enlisted(store, "w")
        await execute(store.url, ["UPDATE webhook_deliveries SET attempts = 11"])
        (due,) = (await claim(store)).deliveries
        assert due.attempts == 11
        assert await store.webhooks.redeliver(due.id, "key:ops") is not None
        done = await settle(store, result(due, outcome, delay_ms=delay_ms))
        assert done.settled == 1
        assert (await store.webhooks.backlog()).dead_lettered == 0
        (again,) = (await claim(store)).deliveries
        assert (again.id, again.attempts) == (due.id, 1)
        await settle(store, result(again))
        await check_tables(store.url)


async def test_a_result_counts_once(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 1)
        await enlisted(store, "w", "thief")
        (due,) = (await claim(store)).deliveries
        assert (await settle(store, result(due), worker="thief")).settled == 0
        assert (await settle(store, result(due, "retry", delay_ms=HOUR_MS), result(due))).settled == 1
        assert (await settle(store, result(due))).settled == 0
        (row,) = (await rows(store)).values()
        assert row["attempts"] == 1
        await check_tables(store.url)


async def test_a_retry_waits_as_long_as_it_is_told(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 1)
        await enlisted(store, "w")
        (due,) = (await claim(store)).deliveries
        await settle(store, result(due, "retry", delay_ms=10 * HOUR_MS, status=None, error="no route"))
        turn = await claim(store)
        assert turn.deliveries == []
        assert turn.next_due_ms is not None
        assert 9 * HOUR_MS < turn.next_due_ms <= 10 * HOUR_MS
        await pass_time(store, 10 * HOUR_MS)
        (again,) = (await claim(store)).deliveries
        assert (again.id, again.attempts) == (due.id, 1)
        await settle(store, result(again, "dead"))
        await pass_time(store)
        turn = await claim(store)
        assert (turn.deliveries, turn.next_due_ms) == ([], None)
        found = await store.webhooks.delivery(due.id)
        assert found is not None
        assert found.delivery.status == "dead"
        assert [(each.status, each.error) for each in found.attempts] == [(None, "no route"), (500, "answered 500")]


async def test_gone_disables_and_keeps_what_is_pending(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store, max_in_flight=2)
        await record(store, 3)
        await enlisted(store, "w")
        first, second = (await claim(store)).deliveries
        done = await store.webhooks.turn("w", [result(first, "gone", status=410)], 9, [], [])
        assert (done.disabled, done.deliveries, done.next_due_ms) == ([made.id], [], None)
        assert (await settle(store, result(second))).disabled == []
        found = await store.webhooks.endpoint(made.id)
        assert found is not None
        assert (found.enabled, found.disabled_reason) == (False, "gone")
        assert Counter(row["status"] for row in (await rows(store)).values()) == {"pending": 2, "delivered": 1}
        assert (await store.webhooks.admin_log(0, 9))[-1].detail == {"reason": "gone", "url": made.url}
        assert (await store.webhooks.backlog()).pending == 0
        await store.webhooks.update(made.id, EndpointChanges(enabled=True), "test")
        assert sorted(positions(await claim(store))) == [first.event.position, 3]


async def test_gone_counts_against_the_url_that_said_so(storage_config: StorageConfig) -> None:
    """A consumer that moves lets its old place answer so; what was on its way there goes to the new one."""
    async with opened(storage_config) as (store, _):
        made = await endpoint(store)
        await record(store, 2)
        await enlisted(store, "w")
        first, second = (await claim(store)).deliveries
        await store.webhooks.update(made.id, EndpointChanges(url="https://moved.example/hook"), "test")
        gone = [result(due, "gone", status=410, url=due.url) for due in (first, second)]
        assert (await settle(store, gone[0])).disabled == []
        (again,) = (await claim(store)).deliveries
        assert (again.id, again.url) == (first.id, "https://moved.example/hook")
        await store.webhooks.update(made.id, EndpointChanges(url=first.url), "test")
        assert (await settle(store, gone[1])).disabled == [made.id]


async def test_five_days_of_nothing_but_failures_disable(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store)
        await record(store, 3)
        await enlisted(store, "w")
        one, two, three = (await claim(store)).deliveries

        async def age(ms: int) -> None:
            await execute(store.url, [f"UPDATE webhook_endpoints SET failing_since_ms = failing_since_ms - {ms}"])

        assert (await settle(store, result(one, "retry"))).disabled == []
        await age(FAILING_MS)
        assert (await settle(store, result(two))).disabled == []  # a success begins anew
        assert (await settle(store, result(three, "retry"))).disabled == []
        await age(FAILING_MS - HOUR_MS)
        again, last = (await claim(store)).deliveries
        assert (await settle(store, result(again, "retry"))).disabled == []
        await age(HOUR_MS)
        assert (await settle(store, result(last, "retry"))).disabled == [made.id]
        entry = (await store.webhooks.admin_log(0, 9))[-1]
        assert (entry.actor, entry.action, entry.subject) == ("fluxora", "webhook.disabled", made.id)
        assert entry.detail["reason"] == "failing"
        enabled = await store.webhooks.update(made.id, EndpointChanges(enabled=True), "test")
        assert enabled is not None
        assert (enabled.failing_since_ms, enabled.disabled_reason) == (None, None)
