"""A database that goes back to an earlier state gives positions again: no other event gets the id of a delivery."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio
from hooked import claim, create, endpoint, enlisted, opened
from scripted import batch, created, withdrew

from fluxora.config import StorageConfig
from fluxora.storage.backup import backup, restore
from fluxora.storage.lease import Lease
from fluxora.storage.records import EventQuery
from fluxora.storage.store import Store
from fluxora.storage.webhook_records import Due


async def deliveries(store: Store) -> dict[str, Due]:
    """What is pending, by the delivery's id."""
    await enlisted(store, "w")
    return {due.id: due for due in (await claim(store)).deliveries}


async def chain(store: Store, lease: Lease) -> None:
    """Three events of the chain, of which a fork takes back the last two."""
    await store.append([batch([created(10, 0, 1), withdrew(11, 0, 1), withdrew(12, 0, 1)], 12)], lease=lease.number)
    await store.append([batch((), rollback_to=10)], lease=lease.number)


async def test_what_comes_after_a_restore_has_ids_of_its_own_and_what_comes_again_has_the_same(
    storage_config: StorageConfig, tmp_path: Path
) -> None:
    archive = str(tmp_path / "x.dump")
    async with opened(storage_config) as (store, _):
        await endpoint(store, max_in_flight=100)
        await store.register([create("kept")])
        assert (await trio.to_thread.run_sync(backup, store.url, archive)).success
        url = store.url
    async with opened(storage_config) as (store, lease):  # positions 2 and 3 by API, then those of the chain
        await store.register([create("lost-1"), create("lost-2")])
        await chain(store, lease)
        before = await deliveries(store)
    assert [due.event.position for due in before.values()] == [1, 2, 3, 4, 5, 6, 7]
    restored = await trio.to_thread.run_sync(partial(restore, url, archive, disconnect=True))
    assert restored.success, restored
    async with opened(storage_config) as (store, lease):
        await store.register([create("new-1"), create("new-2")])
        await chain(store, lease)
        after = await deliveries(store)
        assert {name: due.event.event_id for name, due in after.items() if name in before} == {
            name: due.event.event_id for name, due in before.items() if due.event.position in {1, 4, 5, 6}
        }, "the pending one, and what the chain tells again where it was; of API writes and retractions none"
        assert len(set(before) | set(after)) == 10
        for name in set(before) - set(after):
            assert await store.webhooks.delivery(name) is None
            assert await store.webhooks.redeliver(name, "test") is None
        for name in after:
            assert await store.webhooks.delivery(name) is not None
        events = [event.event_id for event in await store.events(EventQuery(after=0, limit=100))]
        told = {due.event.event_id for due in before.values()}
        assert [event in told for event in events] == [True, False, False, True, True, True, False]
