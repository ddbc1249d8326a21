"""Who is rung by what is committed: the log by every append, dispatchers only where there is something for them."""

from __future__ import annotations

import trio

from fluxora.config import StorageConfig
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.signing import Secret
from fluxora.storage.records import Create
from fluxora.storage.store import Store, open_store
from fluxora.storage.webhook_records import DeliveryQuery, EndpointChanges, NewEndpoint

ALICE = "GBTCYEJULCFIW2KAAJA6FHE5D7NZ3SYSYORZNI6MSBGYHT4H3ZPGDWZK"
BOB = "GBFTCKGB37APXZFUXIPZ2GCWIPO3FN5SRGNV5CWZZXVMVRF7EHXPZMHE"
LIMIT_S = 20.0


class Bell:
    """Counts rings; `next` waits for one that nobody has waited for yet."""

    def __init__(self) -> None:
        self._rings: tuple[trio.MemorySendChannel[None], trio.MemoryReceiveChannel[None]]
        self._rings = trio.open_memory_channel(100)

    def ring(self) -> None:
        self._rings[0].send_nowait(None)

    async def next(self) -> None:
        with trio.fail_after(LIMIT_S):
            await self._rings[1].receive()

    @property
    def waiting(self) -> int:
        return self._rings[1].statistics().current_buffer_used


async def register(store: Store, name: int) -> None:
    new = NewStream(sender=ALICE, recipient=BOB, deposit_amount=10**9, rate_per_second=1)
    await store.register([Create(f"stream-{name}", f"event-{name}", new, None)])


async def test_dispatchers_are_rung_only_where_there_may_be_something_to_send(storage_config: StorageConfig) -> None:
    log, webhooks = Bell(), Bell()
    async with open_store(storage_config, decimals={}, wakeup=log.ring, webhook_wakeup=webhooks.ring) as store:
        await log.next()
        await webhooks.next()  # it listens from now on, and cannot know of what was before
        for name in range(2):  # rings come in their order: at the second one all of the first have come
            await register(store, name)
            await log.next()
        assert webhooks.waiting == 0, "there is no endpoint"
        made = await store.webhooks.create(
            NewEndpoint(url="https://consumer.example/", stream_ids=("stream-5",)), Secret("s"), "test"
        )
        await webhooks.next()
        await log.next()
        for name in range(2, 4):
            await register(store, name)
            await log.next()
        assert webhooks.waiting == 0, "the endpoint does not want them"
        await register(store, 5)
        await webhooks.next()
        (owed,) = await store.webhooks.deliveries(DeliveryQuery(endpoint_id=made.id))
        await store.webhooks.redeliver(owed.id, "test")
        await webhooks.next()
        await store.webhooks.update(made.id, EndpointChanges(enabled=False), "test")
        await webhooks.next()
