"""Endpoints, their secrets, and the log of who did what to them."""

from __future__ import annotations

import json
import re

import pytest
import trio
from hooked import LIFE_MS, SECRET, URL, check_tables, create, endpoint, opened, record, result, rows
from scripted import ACCOUNTS, execute, query

from fluxora.config import StorageConfig
from fluxora.errors import TooManyEndpoints
from fluxora.protocol.signing import Secret
from fluxora.storage import webhooks
from fluxora.storage.store import Store, open_store
from fluxora.storage.webhook_records import DeliveryQuery, EndpointChanges, NewEndpoint

OTHER = Secret("another secret")
FULL = NewEndpoint(
    url=URL,
    description="all of it",
    events=("stream.created", "stream.reverted"),
    stream_ids=("stream-1",),
    addresses=(ACCOUNTS[0], ACCOUNTS[1]),
    ordered=True,
    rate_limit=50,
    max_in_flight=4,
)


async def secrets(store: Store, endpoint_id: str) -> list[str]:
    target = await store.webhooks.target(endpoint_id)
    assert target is not None
    return [secret.reveal() for secret in target.secrets]


async def test_an_endpoint_is_what_was_asked_for(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await record(store, 2)
        made = await store.webhooks.create(FULL, SECRET, "key:ops")
        assert re.fullmatch(r"we_[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", made.id)
        for name in FULL.__struct_fields__:
            assert getattr(made, name) == getattr(FULL, name)
        assert (made.created_position, made.disabled_reason, made.secret_rotates_until_ms) == (2, None, None)
        assert (made.created_ms, made.failing_since_ms, made.last_success_ms) == (made.updated_ms, None, None)
        assert await store.webhooks.endpoint(made.id) == made
        off = await endpoint(store, enabled=False)
        assert (off.enabled, off.disabled_reason) == (False, "operator")
        assert await store.webhooks.endpoints() == [made, off]
        assert await store.webhooks.endpoint("we_nothing") is None
        assert await store.webhooks.target("we_nothing") is None
        assert await secrets(store, made.id) == [SECRET.reveal()]


async def test_changes_change_what_they_name(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await store.webhooks.create(FULL, SECRET, "key:ops")
        changed = await store.webhooks.update(made.id, EndpointChanges(events=(), rate_limit=0), "cli:me")
        assert changed is not None
        assert (changed.events, changed.rate_limit) == ((), 0)
        for name in ("url", "description", "stream_ids", "addresses", "ordered", "max_in_flight", "enabled"):
            assert getattr(changed, name) == getattr(made, name)
        off = await store.webhooks.update(made.id, EndpointChanges(enabled=False), "cli:me")
        assert off is not None
        assert off.disabled_reason == "operator"
        still = await store.webhooks.update(made.id, EndpointChanges(description=""), "cli:me")
        assert still is not None
        assert (still.disabled_reason, still.description) == ("operator", "")
        assert await store.webhooks.update("we_nothing", EndpointChanges(url=URL), "cli:me") is None


async def test_a_secret_is_shown_by_nothing_and_rotates_with_a_grace(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await endpoint(store)
        await record(store, 1)
        await store.webhooks.enlist("w", LIFE_MS)
        rotated = await store.webhooks.rotate(made.id, OTHER, LIFE_MS, "key:ops")
        assert rotated is not None
        assert rotated.secret_rotates_until_ms is not None
        assert rotated.secret_rotates_until_ms - rotated.updated_ms <= LIFE_MS
        assert await secrets(store, made.id) == [OTHER.reveal(), SECRET.reveal()]
        turn = await store.webhooks.turn("w", [], 9, [], [])
        assert [secret.reveal() for secret in turn.deliveries[0].secrets] == [OTHER.reveal(), SECRET.reveal()]
        await execute(store.url, ["UPDATE webhook_endpoints SET previous_until_ms = previous_until_ms - 2 * 3600000"])
        assert await secrets(store, made.id) == [OTHER.reveal()]
        settled = await store.webhooks.endpoint(made.id)
        assert settled is not None
        assert settled.secret_rotates_until_ms is None
        at_once = await store.webhooks.rotate(made.id, SECRET, 0, "key:ops")
        assert at_once is not None
        assert await secrets(store, made.id) == [SECRET.reveal()]
        assert await store.webhooks.rotate("we_nothing", OTHER, 0, "key:ops") is None
        told = repr((turn, settled, await store.webhooks.admin_log(0, 99), await store.webhooks.target(made.id)))
        assert SECRET.reveal() not in told
        assert OTHER.reveal() not in told


async def test_what_is_deleted_is_gone_at_once_and_its_rows_by_and_by(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made, kept = await endpoint(store), await endpoint(store)
        await record(store, 4)
        await store.webhooks.enlist("w", LIFE_MS)
        turn = await store.webhooks.turn("w", [], 100, [], [])
        mine = [due for due in turn.deliveries if due.endpoint_id == made.id]
        await store.webhooks.turn("w", [result(mine[0]), result(mine[1], "dead")], 0, [], [])
        assert await store.webhooks.delete(made.id, "key:ops")
        assert not await store.webhooks.delete(made.id, "key:ops")
        assert await store.webhooks.endpoints() == [kept]
        assert await store.webhooks.update(made.id, EndpointChanges(url=URL), "key:ops") is None
        assert await store.webhooks.delivery(mine[0].id) is None
        assert await store.webhooks.redeliver(mine[1].id, "key:ops") is None
        assert await store.webhooks.replay(made.id, 0, None, "all", "key:ops") is None
        listed = await store.webhooks.deliveries(DeliveryQuery(limit=100))
        assert {each.endpoint_id for each in listed} == {kept.id}
        assert (await store.webhooks.backlog()).dead_lettered == 0
        assert (await store.webhooks.turn("w", [result(mine[2])], 9, [], [])).settled == 0
        await store.register([create()])
        assert {key for key in await rows(store) if key[1] == 5} == {(kept.id, 5)}
        assert [await store.webhooks.purge(LIFE_MS, 3) for _ in range(3)] == [3, 1, 0]
        assert {id_ for id_, _ in await rows(store)} == {kept.id}
        assert await query(store.url, "SELECT 1 FROM webhook_endpoints WHERE deleted") == []
        assert await query(store.url, f"SELECT 1 FROM webhook_attempts WHERE endpoint_id = '{made.id}'") == []
        await check_tables(store.url)


async def test_the_configured_endpoint_follows_the_configuration(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "CLEARED_AT_ONCE", 1)
    async with opened(storage_config) as (store, _):
        made = await store.webhooks.ensure_default(URL, SECRET)
        assert (made.id, made.url, made.enabled, made.max_in_flight) == ("default", URL, True, 32)
        assert await store.webhooks.ensure_default(URL, SECRET) == made
        assert len(await store.webhooks.admin_log(0, 9)) == 1
        await store.webhooks.update("default", EndpointChanges(enabled=False, ordered=True), "cli:me")
        rotated = await store.webhooks.ensure_default(URL, OTHER)
        assert not rotated.enabled  # what an operator has done stays done
        assert await secrets(store, "default") == [OTHER.reveal(), SECRET.reveal()]
        moved = await store.webhooks.ensure_default(URL + "/2", OTHER)
        assert (moved.url, moved.enabled, moved.ordered) == (URL + "/2", True, True)
        assert await secrets(store, "default") == [OTHER.reveal(), SECRET.reveal()]
        await record(store, 2)
        await store.webhooks.delete("default", "cli:me")
        again = await store.webhooks.ensure_default(URL, SECRET)  # before it was purged
        assert (again.url, again.ordered, again.created_position) == (URL, False, 2)
        assert await rows(store) == {}
        assert await secrets(store, "default") == [SECRET.reveal()]
        await check_tables(store.url)


async def test_replicas_that_start_together_register_it_once(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals={}) as store:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(store.webhooks.ensure_default, URL, SECRET)
        assert [each.id for each in await store.webhooks.endpoints()] == ["default"]
        assert len(await store.webhooks.admin_log(0, 9)) == 1


async def test_there_are_never_more_than_may_be_however_many_ask(storage_config: StorageConfig) -> None:
    """That of the configuration does not count, nor does one that was deleted."""
    async with opened(storage_config) as (store, _), open_store(storage_config, decimals={}) as other:
        await store.webhooks.ensure_default(URL, SECRET)
        made: list[str] = []
        refused: list[str] = []

        async def make(where: Store) -> None:
            try:
                made.append((await where.webhooks.create(FULL, SECRET, "test", most=3)).id)
            except TooManyEndpoints as error:
                refused.append(str(error))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(make, (store, other)[number % 2])
        assert (len(made), len(refused)) == (3, 9)
        assert len(await store.webhooks.endpoints()) == 4
        assert await query(store.url, "SELECT FROM admin_log WHERE action = 'webhook.created' AND actor = 'test'") == [
            ()
        ] * len(made)
        await store.webhooks.delete(made[0], "test")
        await make(store)
        await make(store)
        assert (len(made), len(refused)) == (4, 10)
        assert "3 webhook endpoints" in refused[-1]


async def test_old_entries_of_the_admin_log_are_purged_the_oldest_first(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        for number in range(7):
            await store.webhooks.note("test", "did", str(number), {})
        await execute(store.url, [f"UPDATE admin_log SET at_ms = at_ms - {LIFE_MS * 2} WHERE subject < '5'"])
        assert await store.webhooks.purge_admin_log(LIFE_MS * 3, 100) == 0
        assert [await store.webhooks.purge_admin_log(LIFE_MS, 2) for _ in range(4)] == [2, 2, 1, 0]
        assert [entry.subject for entry in await store.webhooks.admin_log(0, 9)] == ["5", "6"]


async def test_the_admin_log_says_who_did_what(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        made = await store.webhooks.create(FULL, SECRET, "key:ops")
        await store.webhooks.update(made.id, EndpointChanges(enabled=False, stream_ids=("a", "b")), "cli:me")
        await store.webhooks.rotate(made.id, OTHER, 5, "key:ops")
        await store.webhooks.delete(made.id, "jwt:you")
        found = await store.webhooks.admin_log(0, 3)
        found += await store.webhooks.admin_log(found[-1].id, 3)
        assert [(each.actor, each.action, each.subject) for each in found] == [
            ("key:ops", "webhook.created", made.id),
            ("cli:me", "webhook.updated", made.id),
            ("key:ops", "webhook.rotated", made.id),
            ("jwt:you", "webhook.deleted", made.id),
        ]
        assert found[0].detail["events"] == "stream.created, stream.reverted"
        assert found[1].detail == {"stream_ids": "a, b", "enabled": "false"}
        assert [each.id for each in found] == sorted(each.id for each in found)
        (raw,) = await query(store.url, "SELECT detail FROM admin_log WHERE action = 'webhook.rotated'")
        assert json.loads(raw["detail"]) == {"grace_ms": "5"}


async def test_entries_of_several_at_once_appear_in_the_order_of_their_ids(storage_config: StorageConfig) -> None:
    """Whoever goes on behind the last entry that it read misses none."""
    async with open_store(storage_config, decimals={}) as store, open_store(storage_config, decimals={}) as other:
        seen: list[int] = []
        made = [await endpoint(store) for _ in range(4)]
        over = trio.Event()

        async def rotate(at: Store, endpoint_id: str) -> None:
            for _ in range(15):
                await at.webhooks.rotate(endpoint_id, SECRET, 0, "many")

        async def read() -> None:
            while True:
                last = over.is_set()
                seen.extend(each.id for each in await store.webhooks.admin_log(seen[-1] if seen else 0, 100))
                if last:
                    return

        with trio.fail_after(60):
            async with trio.open_nursery() as readers:
                readers.start_soon(read)
                async with trio.open_nursery() as nursery:
                    for number, each in enumerate(made):
                        nursery.start_soon(rotate, store if number % 2 else other, each.id)
                over.set()
        (count,) = await query(store.url, "SELECT count(*) FROM admin_log")
        assert len(seen) == count[0] == 64
