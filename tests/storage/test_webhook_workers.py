"""Workers that die, sleep and leave, and what they had claimed."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import trio
from hooked import (
    LIFE_MS,
    check_tables,
    claim,
    endpoint,
    enlisted,
    opened,
    positions,
    record,
    result,
    settle,
)
from scripted import DECIMALS, execute

from fluxora.config import StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.backup import backup, restore
from fluxora.storage.store import Store, open_store


async def test_what_a_dead_worker_claimed_is_taken_over_and_its_results_are_not(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 2)
        await enlisted(store, "slept", "w")
        late = (await claim(store, "slept")).deliveries
        turn = await claim(store)
        assert turn.deliveries == []
        assert turn.next_due_ms is not None
        assert turn.next_due_ms <= LIFE_MS + 1  # then the other might be dead
        await execute(store.url, ["UPDATE webhook_workers SET alive_until_ms = 0 WHERE id = 'slept'"])
        assert await store.webhooks.renew("slept", LIFE_MS)  # nobody has noticed
        await execute(store.url, ["UPDATE webhook_workers SET alive_until_ms = 0 WHERE id = 'slept'"])
        taken = (await claim(store)).deliveries
        assert sorted(due.id for due in taken) == sorted(due.id for due in late)
        assert not await store.webhooks.renew("slept", LIFE_MS)
        told = await store.webhooks.turn("slept", [result(due, "dead") for due in late], 9, [], [])
        assert (told.alive, told.settled, told.deliveries) == (False, 0, [])
        await enlisted(store, "slept")
        assert (await settle(store, *(result(due, "dead") for due in late), worker="slept")).settled == 0
        assert (await settle(store, *map(result, taken))).settled == 2
        await check_tables(store.url)


async def test_one_that_retires_leaves_its_claims_to_others(storage_config: StorageConfig) -> None:
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 2)
        await enlisted(store, "leaving", "w")
        assert len(positions(await claim(store, "leaving"))) == 2
        await store.webhooks.retire("leaving")
        assert len(positions(await claim(store))) == 2
        assert not (await claim(store, "leaving")).alive


async def test_one_that_is_overdue_itself_or_only_settles_takes_nobody_for_dead(storage_config: StorageConfig) -> None:
    """After an outage all are overdue: whoever comes first must not take the others for dead."""
    async with opened(storage_config) as (store, _):
        await endpoint(store)
        await record(store, 3)
        await enlisted(store, "a", "b")
        of_a, of_b = (await claim(store, "a", 1)).deliveries, (await claim(store, "b", 1)).deliveries
        await execute(store.url, ["UPDATE webhook_workers SET alive_until_ms = 0"])
        assert (await claim(store, "a")).deliveries == []
        assert await store.webhooks.renew("a", LIFE_MS)
        assert (await settle(store, *map(result, of_a), worker="a")).settled == 1
        assert (await settle(store, *map(result, of_b), worker="b")).settled == 1
        assert len(positions(await claim(store, "a"))) == 1
        assert not (await claim(store, "b")).alive
        await check_tables(store.url)


async def test_a_restored_database_knows_no_workers(storage_config: StorageConfig, tmp_path: Path) -> None:
    """Its claims are of another time: a process that is still there would hold them as long as it lives."""
    async with open_store(storage_config, decimals=DECIMALS) as store:
        await endpoint(store)
        await record(store, 2)
        await enlisted(store, "w")
        claimed = positions(await claim(store))
        archive = str(tmp_path / "x.dump")
        made = await trio.to_thread.run_sync(backup, store.url, archive)
        assert made.success, made
        back = await trio.to_thread.run_sync(partial(restore, store.url, archive, disconnect=True))
        assert back.success, back
        assert not await alive(store, "w")
        await enlisted(store, "w")
        assert positions(await claim(store)) == claimed
        await check_tables(store.url)


async def alive(store: Store, worker: str) -> bool:
    """As far as the store knows; the first connections may have been ended."""
    with trio.fail_after(20):
        while True:
            with suppress(StorageUnavailable):
                return await store.webhooks.renew(worker, LIFE_MS)
