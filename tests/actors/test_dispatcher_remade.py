"""The endpoint of the configuration may be deleted and made again under its id, with a delivery to it on its way."""

from __future__ import annotations

import trio
from hook_world import HookWorld
from webhook_consumer import SECRET, Answer, Consumer, consuming

from fluxora.protocol.signing import Secret
from fluxora.storage.webhook_records import DEFAULT_ENDPOINT


async def until_open(consumer: Consumer, count: int = 1) -> None:
    with trio.fail_after(10):
        while consumer.open_requests < count:
            await consumer.arrived.wait()


async def test_an_attempt_of_before_is_not_taken_for_one_of_after(world: HookWorld) -> None:
    """Two attempts at the same event are on their way at a time, to two endpoints that have one id after the other."""
    hooks, secret = world.store.webhooks, Secret.parse(SECRET)
    old_gate, new_gate = trio.Event(), trio.Event()
    async with (
        consuming(Answer(gate=old_gate)) as old,
        consuming(Answer(500, b"no", gate=new_gate)) as new,
        world.dispatching() as dispatcher,
    ):
        await hooks.ensure_default(old.url, secret)
        await world.record(1)
        await until_open(old)
        assert await hooks.delete(DEFAULT_ENDPOINT, "test")
        await hooks.ensure_default(new.url, secret)
        replayed = await hooks.replay(DEFAULT_ENDPOINT, 0, None, "failed", "test")
        assert replayed is not None
        assert replayed.count == 1
        await until_open(new)
        assert dispatcher.in_flight == 2

        old_gate.set()  # it is taken there, which says nothing about the new one
        await old.until(lambda: len(old.acknowledged) == 1)
        with trio.fail_after(10):
            while dispatcher.in_flight == 2:
                await trio.sleep(0.005)
        await world.record(1)  # whose claim is a turn behind the one that the result came with
        await until_open(new, 2)
        assert await world.statuses() == {"pending": 2}
        assert await world.value("SELECT count(*) FROM webhook_attempts") == 0

        new_gate.set()
        with trio.fail_after(10):
            while await world.value("SELECT count(*) FROM webhook_attempts WHERE status = 500") < 2:
                await trio.sleep(0.005)
        assert dispatcher.in_flight == 0
        assert await world.statuses() == {"pending": 2}
        assert await world.value("SELECT count(*) FROM webhook_claims") == 0
