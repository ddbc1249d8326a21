"""Who sends: what happens to deliveries when a process dies, sleeps, stops, crashes, or has no database."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
import trio
import trio.testing
from hook_world import LOOPBACK, NOTIFY, HookWorld
from webhook_consumer import OK, Answer, Request, consuming, in_turn

from fluxora.actors.dispatcher import Dispatcher
from fluxora.actors.supervisor import ChildSpec, Supervisor
from fluxora.actors.webhook_sender import WebhookSender
from fluxora.config import WebhookConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.store import Store
from fluxora.storage.webhook_records import Result

NEVER = 10**6


def result_of(due: Any, outcome: Any) -> Result:
    return Result(
        endpoint_id=due.endpoint_id, position=due.event.position, outcome=outcome, status=200, error=None, latency_ms=1
    )


# Who sends


async def test_what_a_dead_process_had_claimed_is_taken_over_and_its_late_results_refused(world: HookWorld) -> None:
    async with consuming() as consumer:
        await world.endpoint(consumer)
        await world.record(5)
        hooks = world.store.webhooks
        await hooks.enlist("dead", 60_000)
        claimed = (await hooks.turn("dead", [], 64, [], [])).deliveries
        assert len(claimed) == 5
        async with world.dispatching():
            await world.record(1)
            await consumer.until(lambda: len(consumer.requests) == 1)
            assert await world.value("SELECT count(*) FROM webhook_claims WHERE worker = 'dead'") == 5
            await world.sql("UPDATE webhook_workers SET alive_until_ms = 0 WHERE id = 'dead'")
            await world.sql(NOTIFY)
            await world.settled()
        assert len(consumer.acknowledged) == len(consumer.requests) == 6
        assert set(consumer.ids) > {due.id for due in claimed}
        late = await hooks.turn("dead", [result_of(due, "dead") for due in claimed], 0, [], [])
        assert (late.settled, late.alive) == (0, False)
        assert await world.statuses() == {"delivered": 6}


@pytest.mark.parametrize("renew_every_s", [0.05, NEVER])
async def test_a_process_that_slept_too_long_begins_anew(world: HookWorld, renew_every_s: float) -> None:
    """It learns so from its renewal, or from a turn."""
    gate = trio.Event()
    async with consuming(Answer(gate=gate)) as consumer:
        await world.endpoint(consumer)
        async with world.dispatching(renew_every_s=renew_every_s) as sleeper:
            await world.record(3)
            with trio.fail_after(10):
                while consumer.open_requests < 3:
                    await consumer.arrived.wait()
            before = sleeper._shifts[-1].worker
            await world.bury_workers()
            with trio.fail_after(10):
                while not sleeper._shifts or sleeper._shifts[-1].worker == before or len(consumer.requests) < 6:
                    await trio.sleep(0.005)
            gate.set()
            await world.settled()
    assert await world.statuses() == {"delivered": 3}
    assert len(set(consumer.ids)) == 3
    assert await world.value("SELECT count(*) FROM webhook_workers WHERE alive_until_ms > 0") == 0


async def test_a_newcomer_takes_nobody_for_dead_in_its_first_moments(world: HookWorld) -> None:
    """The database is just back, all are overdue, and one starts that knows nothing of that: the others may speak."""
    async with consuming() as consumer:
        await world.endpoint(consumer)
        await world.record(2)
        hooks = world.store.webhooks
        for worker in ("living", "dead"):
            await hooks.enlist(worker, 60_000)
        of_living, of_dead = [(await hooks.turn(each, [], 1, [], [])).deliveries for each in ("living", "dead")]
        await world.sql("UPDATE webhook_workers SET alive_until_ms = 0")
        async with world.dispatching(patience_s=3.0, poll_s=NEVER):
            await world.record(1)
            await consumer.until(lambda: len(consumer.requests) == 1)
            assert await hooks.renew("living", 60_000)
            assert (await hooks.turn("living", [result_of(of_living[0], "delivered")], 0, [], [])).settled == 1
            await world.settled()  # nothing rings: the end of the patience begins a turn
        assert len(consumer.requests) == 2
        assert consumer.ids[-1] == of_dead[0].id


# How it ends


async def test_a_drain_waits_for_what_is_on_its_way_and_leaves_no_claim(world: HookWorld) -> None:
    gate = trio.Event()
    async with consuming(Answer(gate=gate)) as consumer:
        await world.endpoint(consumer, max_in_flight=4)
        await world.record(10)
        async with trio.open_nursery() as nursery, world.dispatching() as dispatcher:
            with trio.fail_after(10):
                while consumer.open_requests < 4:
                    await consumer.arrived.wait()
            dispatcher.drain()
            nursery.start_soon(_open_later, gate)
        assert len(consumer.acknowledged) == len(consumer.requests) == 4
        assert await world.statuses() == {"delivered": 4, "pending": 6}
        assert await world.value("SELECT count(*) FROM webhook_claims") == 0
        assert await world.value("SELECT count(*) FROM webhook_workers") == 0


async def _open_later(gate: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
    gate.set()


class Standing:
    """Stands before the real store of webhooks, and for the store that has it."""

    def __init__(self, world: HookWorld) -> None:
        self._real = world.store.webhooks
        self.webhooks = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_an_end_that_is_cut_short_settles_what_has_ended_and_frees_the_rest(world: HookWorld) -> None:
    """It is cut in the middle of the turn that was to settle a delivery."""
    stuck = trio.Event()

    class Stuck(Standing):
        async def turn(self, worker: str, results: Any, *rest: Any, **options: Any) -> Any:
            if results and not stuck.is_set():
                stuck.set()
                await trio.sleep_forever()
            return await self._real.turn(worker, results, *rest, **options)

    gate = trio.Event()
    async with consuming(in_turn(Answer(gate=gate), Answer(hang=True))) as consumer:
        await world.endpoint(consumer, max_in_flight=6)
        await world.record(6)
        async with trio.open_nursery() as nursery, world.dispatching(Stuck(world)):
            with trio.fail_after(10):
                while len(consumer.requests) < 6:
                    await consumer.arrived.wait()
            gate.set()
            await stuck.wait()
            nursery.cancel_scope.cancel()
        assert await world.statuses() == {"delivered": 1, "pending": 5}
        assert await world.value("SELECT count(*) FROM webhook_claims") == 0
        consumer.respond = lambda _request: OK
        async with world.dispatching():
            await world.settled()
        assert len(set(consumer.ids)) == 6
        assert len(consumer.requests) == 6 + 5


async def test_a_crash_is_survived_under_a_supervisor(world: HookWorld) -> None:
    crashes = [RuntimeError("broken")]

    class Crashing(Standing):
        async def turn(self, *args: Any, **options: Any) -> Any:
            turn = await self._real.turn(*args, **options)
            if turn.settled and crashes:
                raise crashes.pop()
            return turn

    config = WebhookConfig(allowed_networks=LOOPBACK)
    dispatcher = Dispatcher(cast("Store", Crashing(world)), WebhookSender(config), config)
    child = ChildSpec(dispatcher.name, dispatcher.run, drain=dispatcher.drain)
    supervisor = Supervisor("test", [child], jitter=lambda: 1)
    async with consuming() as consumer, trio.open_nursery() as nursery:
        await world.endpoint(consumer, max_in_flight=3)
        await world.record(20)
        await nursery.start(supervisor.run)
        await world.settled()
        assert supervisor.statuses()[0].restarts == 1
        supervisor.stop()
    assert len(set(consumer.ids)) == 20
    assert await world.statuses() == {"delivered": 20}


# The database away


async def test_claims_that_nobody_can_be_sure_of_are_freed_and_nothing_is_lost_or_sent_twice(world: HookWorld) -> None:
    """Turns are committed, and their answer is lost: what they settled is settled, what they claimed is not sent."""
    lost = iter([False, True, False, True, True] + [False] * NEVER)
    orphans = 0

    class Unsure(Standing):
        async def turn(self, *args: Any, **options: Any) -> Any:
            nonlocal orphans
            turn = await self._real.turn(*args, **options)
            if (turn.deliveries or turn.settled) and next(lost):
                orphans += len(turn.deliveries)
                raise StorageUnavailable("the answer was lost")
            return turn

    async with consuming() as consumer:
        await world.endpoint(consumer, max_in_flight=4)
        await world.record(60)
        async with world.dispatching(Unsure(world), poll_s=NEVER):
            await world.settled()
    assert orphans > 0
    assert len(consumer.requests) == len(set(consumer.ids)) == 60
    assert await world.statuses() == {"delivered": 60}
    assert await world.value("SELECT count(*) FROM webhook_workers") == 0


async def test_after_a_turn_that_failed_the_next_shift_goes_on_though_an_attempt_of_the_last_one_hangs(
    world: HookWorld,
) -> None:
    failures = [StorageUnavailable("away")]

    class Failing(Standing):
        async def turn(self, worker: str, results: Any, *rest: Any, **options: Any) -> Any:
            if results and failures:
                raise failures.pop()
            return await self._real.turn(worker, results, *rest, **options)

    gate = trio.Event()
    async with consuming(in_turn(Answer(gate=gate), OK)) as consumer:
        await world.endpoint(consumer, max_in_flight=2)
        await world.record(5)
        async with world.dispatching(Failing(world), poll_s=NEVER, slow_s=NEVER):
            await consumer.until(lambda: len(consumer.acknowledged) == 4)
            gate.set()
            await world.settled()
    assert not failures
    assert len(consumer.requests) == len(set(consumer.ids)) == 5


async def test_while_the_database_is_away_results_are_kept(world: HookWorld) -> None:
    away = False

    class Away(Standing):
        def __getattr__(self, name: str) -> Any:
            async def unavailable(*_args: Any, **_options: Any) -> None:
                await trio.lowlevel.checkpoint()
                raise StorageUnavailable("away")

            return unavailable if away else super().__getattr__(name)

    gate = trio.Event()
    async with consuming(Answer(gate=gate)) as consumer:
        await world.endpoint(consumer, max_in_flight=5)
        await world.record(12)
        away = True
        async with world.dispatching(Away(world), renew_every_s=0.02):
            away = False
            with trio.fail_after(10):
                while consumer.open_requests < 5:
                    await consumer.arrived.wait()
            away = True
            gate.set()
            await consumer.until(lambda: len(consumer.acknowledged) == 5)
            await world.sql("SELECT pg_sleep(0.1)")
            away = False
            await world.settled()
    assert len(consumer.requests) == len(set(consumer.ids)) == 12


@pytest.mark.parametrize("replicas", [1, 2])
async def test_an_outage_that_outlasts_the_life_of_all_workers_sends_nothing_twice(
    world: HookWorld, replicas: int
) -> None:
    """When the database is back all of them are overdue, and none takes the others for dead before they could speak."""
    away = False

    class Away(Standing):
        def __getattr__(self, name: str) -> Any:
            async def ask(*args: Any, **options: Any) -> Any:
                if away:
                    await trio.lowlevel.checkpoint()
                    raise StorageUnavailable("away")
                return await real(*args, **options)

            real = super().__getattr__(name)
            return ask

    during, after = trio.Event(), trio.Event()
    first = 8 * replicas

    def respond(request: Request) -> Answer:
        """Half of the first ones are taken while the database is away, the other half when it is back."""
        return Answer(gate=(during, after)[request.number % 2]) if request.number <= first else OK

    async with consuming(respond) as consumer, AsyncExitStack() as stack:
        await world.endpoint(consumer, max_in_flight=16)
        await world.record(40)
        for _ in range(replicas):  # of a room for 16 an endpoint has half
            await stack.enter_async_context(world.dispatching(Away(world), concurrency=16, outage_s=0.0))
        with trio.fail_after(10):
            while consumer.open_requests < first:
                await consumer.arrived.wait()
        await world.sql("UPDATE webhook_workers SET alive_until_ms = 0")
        away = True
        during.set()
        await consumer.until(lambda: len(consumer.acknowledged) == first // 2)
        with trio.fail_after(10):
            while len([each for each in world.dispatchers if len(each._shifts) == 2]) < replicas:
                await trio.sleep(0.005)
        away = False
        await consumer.until(lambda: len(consumer.acknowledged) > first // 2)
        after.set()
        await world.settled()
    assert len(consumer.requests) == len(set(consumer.ids)) == 40
