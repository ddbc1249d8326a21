"""A store with webhooks in it, and dispatchers over it that start and drain with a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any, cast

import trio
from webhook_consumer import SECRET, Consumer

from fluxora.actors.dispatcher import Dispatcher
from fluxora.actors.webhook_sender import WebhookSender
from fluxora.config import StorageConfig, WebhookConfig
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.signing import Secret
from fluxora.protocol.streams import StreamStatus
from fluxora.storage.store import Change, Create, Store, open_store
from fluxora.storage.webhook_records import Endpoint, NewEndpoint

SENDER, RECIPIENT = (encode(AddressKind.ACCOUNT, bytes([number] * 32)) for number in (1, 2))
LOOPBACK = (ip_network("127.0.0.0/8"),)
NOTIFY = "SELECT pg_notify('fluxora_log', '')"


class HookWorld:
    """`sql` runs a statement on a connection of its own."""

    def __init__(self, store: Store, sql: Callable[[str], list[Any]]) -> None:
        self.store = store
        self._sql = sql
        self.dispatchers: list[Dispatcher] = []
        self._recorded = 0

    async def sql(self, text: str) -> list[Any]:
        return await trio.to_thread.run_sync(self._sql, text)

    async def value(self, text: str) -> Any:
        return (await self.sql(text))[0][0]

    def ring(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.ring()

    async def endpoint(self, consumer: Consumer | str, **fields: Any) -> Endpoint:
        url = consumer if isinstance(consumer, str) else consumer.url
        return await self.store.webhooks.create(NewEndpoint(url=url, **fields), Secret.parse(SECRET), "test")

    async def record(self, number: int) -> list[str]:
        """Register streams, each an event; their ids."""
        names = [f"stream-{self._recorded + each}" for each in range(number)]
        self._recorded += number
        new = NewStream(sender=SENDER, recipient=RECIPIENT, deposit_amount=10**9, rate_per_second=1)
        await self.store.register([Create(name, f"created-{name}", new, None) for name in names])
        return names

    async def toggle(self, names: Sequence[str], times: int) -> None:
        """Pause and resume the streams, each an event."""
        for time in range(times):
            to = StreamStatus.PAUSED if time % 2 == 0 else StreamStatus.ACTIVE
            await self.store.register([Change(name, f"{time}-{name}", to) for name in names])

    async def hurry(self) -> None:
        """Whatever is pending is due now."""
        await self.sql("UPDATE webhook_deliveries SET due_ms = 0 WHERE status = 'pending' AND due_ms > 0")
        await self.sql(NOTIFY)

    async def hurry_on(self) -> None:
        """That, again and again: no failure costs time."""
        while True:
            await self.hurry()
            await trio.sleep(0.05)

    async def bury_workers(self) -> None:
        """As others do with one that is dead to them: who sends now loses its claims."""
        await self.sql("DELETE FROM webhook_workers")
        await self.sql("DELETE FROM webhook_claims")
        await self.sql(NOTIFY)

    async def statuses(self) -> dict[str, int]:
        rows = await self.sql("SELECT status, count(*) FROM webhook_deliveries GROUP BY status")
        return {row[0]: row[1] for row in rows}

    async def settled(self, within_s: float = 30.0) -> None:
        """Wait until nothing is pending and nothing claimed."""
        with trio.fail_after(within_s):
            while await self.value(
                "SELECT (SELECT count(*) FROM webhook_deliveries WHERE status = 'pending')"
                " + (SELECT count(*) FROM webhook_claims)"
            ):
                await trio.sleep(0.01)

    @asynccontextmanager
    async def dispatching(
        self, store: Any = None, *, sender: Any = None, concurrency: int = 64, **options: Any
    ) -> AsyncIterator[Dispatcher]:
        """A dispatcher for the length of the block, drained at its end; `store` and `sender` may stand in for ours.

        It has no patience with those that are overdue, unless the options say so.
        """
        options.setdefault("patience_s", 0.0)
        config = WebhookConfig(allowed_networks=LOOPBACK, concurrency=concurrency)
        dispatcher = Dispatcher(
            cast("Store", store or self.store), sender or WebhookSender(config), config, draw=lambda: 0.5, **options
        )
        self.dispatchers.append(dispatcher)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(dispatcher.run)
                try:
                    yield dispatcher
                    dispatcher.drain()
                except BaseException:
                    nursery.cancel_scope.cancel()
                    raise
        finally:
            self.dispatchers.remove(dispatcher)


@asynccontextmanager
async def hook_world(config: StorageConfig, sql: Callable[[str], list[Any]]) -> AsyncIterator[HookWorld]:
    world: HookWorld | None = None

    def ring() -> None:
        if world is not None:
            world.ring()

    async with open_store(config, decimals={}, wakeup=lambda: None, webhook_wakeup=ring) as store:
        world = HookWorld(store, sql)
        yield world
