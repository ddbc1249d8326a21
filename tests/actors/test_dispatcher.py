"""The dispatcher over a real database and real consumers: what is sent when, how often, and what is held back."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import trio
import trio.testing
from hook_world import HookWorld
from webhook_consumer import OK, Answer, Request, consuming, in_turn

from fluxora.actors import breaker
from fluxora.actors.webhook_sender import Message, Sent
from fluxora.protocol.retries import DELAYS_S
from fluxora.protocol.signing import delivery_id
from fluxora.storage.webhook_records import EndpointChanges

FAILED = Answer(500, b"no")
NEVER = 10**6


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No breaker opens."""
    monkeypatch.setattr(breaker, "THRESHOLD", NEVER)


# What is sent


async def test_what_is_recorded_arrives_once_signed_and_under_its_id(world: HookWorld) -> None:
    async with consuming() as consumer, world.dispatching() as dispatcher:
        await world.record(2)
        endpoint = await world.endpoint(consumer)
        await world.record(200)
        await world.settled()
        assert {request.position for request in consumer.requests} == set(range(3, 203))
        assert len(consumer.requests) == 200
        for request in consumer.requests:
            event = request.verified()
            assert request.id == delivery_id(endpoint.id, int(event["position"]), event["eventId"])
        assert await world.statuses() == {"delivered": 200}
        detail = await world.store.webhooks.delivery(consumer.ids[0])
        assert detail is not None
        assert [(one.number, one.status, one.error) for one in detail.attempts] == [(1, 200, None)]
        status = dispatcher.status
        assert (status.in_flight, status.attempts) == (0, {"delivered": 200, "retry": 0, "dead": 0, "gone": 0})
        assert sum(status.latencies.counts) == 200


async def test_what_waited_before_the_start_is_sent_at_the_start(world: HookWorld) -> None:
    async with consuming() as consumer:
        await world.endpoint(consumer, max_in_flight=4)
        await world.record(30)
        async with world.dispatching():
            await world.settled()
        assert len(set(consumer.ids)) == len(consumer.ids) == 30
        assert consumer.most_open_requests <= 4


async def test_a_test_event_goes_out_at_once_and_leaves_nothing(world: HookWorld) -> None:
    async with consuming(in_turn(Answer(503, b"later"), OK)) as consumer, world.dispatching() as dispatcher:
        endpoint = await world.endpoint(consumer)
        first, second = await dispatcher.test(endpoint.id), await dispatcher.test(endpoint.id)
        assert first is not None
        assert second is not None
        assert (first.status, first.response, first.delivered, second.delivered) == (503, "later", False, True)
        assert len(set(consumer.ids)) == 2
        assert consumer.requests[0].verified()["event"] == consumer.requests[0].headers["x-fluxora-event"]
        assert await dispatcher.test("we_nobody") is None
        assert await world.statuses() == {}


# What fails


@pytest.mark.usefixtures("patient")
async def test_the_schedule_from_the_first_failure_to_the_dead_letter(world: HookWorld) -> None:
    async with consuming(FAILED) as consumer, world.dispatching():
        await world.endpoint(consumer)
        await world.record(1)
        delays = []
        for number in range(1, len(DELAYS_S) + 2):
            with trio.fail_after(10):
                while await world.value("SELECT count(*) FROM webhook_attempts") < number:
                    await trio.sleep(0.005)
            if number <= len(DELAYS_S):
                delays.append(
                    await world.value(
                        "SELECT due_ms - (SELECT max(at_ms) FROM webhook_attempts) FROM webhook_deliveries"
                    )
                )
                await world.hurry()
        assert delays == [seconds * 1000 for seconds in DELAYS_S]  # drawn in the middle of the jitter
        await world.settled()
        assert await world.statuses() == {"dead": 1}
        assert len(set(consumer.ids)) == 1
        assert len(consumer.requests) == 12
        [dead_id] = set(consumer.ids)
        detail = await world.store.webhooks.delivery(dead_id)
        assert detail is not None
        assert [(one.status, one.response) for one in detail.attempts] == [(500, "no")] * 12
        consumer.respond = lambda _request: OK
        assert await world.store.webhooks.redeliver(dead_id, "test") is not None
        await world.settled()
        assert await world.statuses() == {"delivered": 1}


async def test_a_consumer_that_asks_for_a_wait_gets_it(world: HookWorld) -> None:
    async with consuming(Answer(429, headers=[("Retry-After", "1000")])) as consumer, world.dispatching():
        await world.endpoint(consumer)
        await world.record(1)
        await consumer.until(lambda: len(consumer.requests) == 1)
        with trio.fail_after(10):
            while not await world.value("SELECT count(*) FROM webhook_attempts"):
                await trio.sleep(0.005)
        assert (
            await world.value("SELECT due_ms - (SELECT max(at_ms) FROM webhook_attempts) FROM webhook_deliveries")
            == 1_000_000
        )


async def test_410_disables_the_endpoint_and_what_waits_goes_on_when_it_is_enabled(world: HookWorld) -> None:
    async with consuming(Answer(410)) as consumer, world.dispatching() as dispatcher:
        endpoint = await world.endpoint(consumer, max_in_flight=1)
        await world.record(3)
        with trio.fail_after(10):
            while (found := await world.store.webhooks.endpoint(endpoint.id)) is None or found.enabled:
                await trio.sleep(0.005)
        assert found.disabled_reason == "gone"
        assert await world.statuses() == {"pending": 3}
        await world.record(1)
        assert (len(consumer.requests), dispatcher.status.attempts["gone"]) == (1, 1)
        consumer.respond = lambda _request: OK
        await world.store.webhooks.update(endpoint.id, EndpointChanges(enabled=True), "test")
        await world.settled()
        assert await world.statuses() == {"delivered": 3}


async def test_an_attempt_that_fails_inside_is_a_failed_attempt_and_no_crash(world: HookWorld) -> None:
    class Broken:
        async def send(self, _url: str, _message: Message, _span: object) -> Sent:
            raise RuntimeError("broken")

        def close(self) -> None:
            pass

    await world.endpoint("http://127.0.0.1:1/")
    await world.record(1)
    async with world.dispatching(sender=Broken()):
        with trio.fail_after(10):
            while not await world.value("SELECT count(*) FROM webhook_attempts"):
                await trio.sleep(0.005)
    assert await world.value("SELECT error FROM webhook_attempts") == "the attempt failed inside Fluxora: RuntimeError"
    assert await world.statuses() == {"pending": 1}


# What is held back


async def test_an_open_breaker_burns_no_tries_and_the_others_go_on(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_OPEN_S", NEVER)
    async with consuming(FAILED) as bad, consuming() as good, world.dispatching() as dispatcher:
        failing = await world.endpoint(bad, max_in_flight=1)
        await world.endpoint(good)
        for _ in range(4):
            await world.record(5)
            await good.until(lambda: len(good.requests) % 5 == 0)
        await bad.until(lambda: len(bad.requests) >= 5)
        await world.hurry()
        await world.record(5)
        await good.until(lambda: len(good.requests) == 25)
        assert (len(bad.requests), dispatcher.status.breakers_open) == (5, 1)
        assert await world.value("SELECT max(attempts) FROM webhook_deliveries") == 1
        bad.respond = lambda _request: OK
        assert await dispatcher.test(failing.id) is not None  # which gets through, and closes it
        await world.hurry()
        await world.settled()
        assert len(set(bad.ids)) == 25 + 1
        assert dispatcher.status.breakers_open == 0


async def test_a_half_open_breaker_lets_one_attempt_through_at_a_time(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_OPEN_S", 0.01)
    monkeypatch.setattr(breaker, "LONGEST_OPEN_S", 0.01)
    gate = trio.Event()

    def respond(request: Request) -> Answer:
        if request.number <= 5:
            return FAILED
        return FAILED if request.number <= 8 else Answer(gate=gate)

    async with consuming(respond) as consumer, world.dispatching():
        await world.endpoint(consumer, max_in_flight=5)
        await world.record(5)
        await consumer.until(lambda: len(consumer.requests) == 5)
        await world.record(20)
        with trio.fail_after(10):
            while len(consumer.requests) < 9:
                await consumer.arrived.wait()
        await world.sql("SELECT pg_sleep(0.1)")
        assert len(consumer.requests) == 9, "the fourth probe is on its way, and nothing beside it"
        gate.set()
        await world.hurry()
        await world.settled()
        assert len(consumer.acknowledged) == 25


async def test_a_rate_limit_holds_over_two_replicas(world: HookWorld) -> None:
    rate, number = 10, 12
    async with consuming() as consumer, world.dispatching(), world.dispatching():
        await world.endpoint(consumer, rate_limit=rate)
        await world.record(number)
        await world.settled()
    times = [request.at for request in consumer.requests]
    assert len(times) == number
    # The first may be late and the last not. Without a limit all of them take a few hundredths.
    assert times[-1] - times[0] >= (number - 1) / rate / 2


async def test_the_in_flight_cap_holds_over_two_replicas(world: HookWorld) -> None:
    gate = trio.Event()
    async with consuming(Answer(gate=gate)) as consumer, world.dispatching(), world.dispatching():
        await world.endpoint(consumer, max_in_flight=3)
        await world.record(30)
        with trio.fail_after(10):
            while consumer.open_requests < 3:
                await consumer.arrived.wait()
        gate.set()
        await world.settled()
    assert consumer.most_open_requests == 3
    assert len(set(consumer.ids)) == len(consumer.ids) == 30


@pytest.mark.usefixtures("patient")
async def test_an_ordered_endpoint_sees_each_stream_in_order_though_it_fails_at_random(world: HookWorld) -> None:
    chance = random.Random(11)
    first_seen: dict[str, list[int]] = defaultdict(list)
    taken: dict[str, list[int]] = defaultdict(list)

    def respond(request: Request) -> Answer:
        stream, position = request.event["streamId"], request.position
        if position not in first_seen[stream]:
            first_seen[stream].append(position)
        answer = chance.choice([OK, OK, FAILED, Answer(drop=True)])
        if answer is OK:
            taken[stream].append(position)
        return answer

    async with consuming(respond) as consumer, world.dispatching(), world.dispatching():
        await world.endpoint(consumer, ordered=True)
        names = await world.record(12)
        await world.toggle(names, 7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.hurry_on)
            await world.settled()
            nursery.cancel_scope.cancel()
    assert set(first_seen) == set(names)
    for name in names:
        assert len(taken[name]) == 8
        assert first_seen[name] == taken[name] == sorted(taken[name])


async def test_endpoints_that_hang_do_not_hold_up_another(world: HookWorld) -> None:
    async with (
        consuming(Answer(hang=True)) as stuck,
        consuming() as well,
        world.dispatching(concurrency=8, slow_s=0.02),
    ):
        for _ in range(3):
            await world.endpoint(stuck, max_in_flight=8)
        await world.record(40)
        with trio.fail_after(10):
            while len(stuck.requests) < 20:
                await stuck.arrived.wait()
        await world.endpoint(well)
        for so_far in range(1, 6):
            await world.record(20)
            await well.until(lambda so_far=so_far: len(well.requests) == 20 * so_far, 10)  # type: ignore[misc]
        assert len(stuck.requests) <= 24, "each is held at its in-flight cap"
        for shift in tuple(world.dispatchers[0]._shifts):
            shift.lost.cancel()  # what hangs is not waited for


# Beside the deliveries


async def test_the_backlog_is_counted_and_gets_older_while_nobody_can_count(world: HookWorld) -> None:
    async with consuming(Answer(hang=True)) as consumer:
        await world.endpoint(consumer)
        await world.record(3)
        async with trio.open_nursery() as nursery, world.dispatching() as dispatcher:
            with trio.fail_after(10):
                while dispatcher.status.pending < 3 or dispatcher.status.in_flight < 3:
                    await trio.sleep(0.005)
            first = dispatcher.status.oldest_pending_ms
            with trio.fail_after(10):
                while dispatcher.status.oldest_pending_ms == first:
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()


async def test_finished_deliveries_and_the_admin_log_are_purged_when_they_are_old(world: HookWorld) -> None:
    async with consuming() as consumer, world.dispatching(purge_every_s=0.05):
        await world.endpoint(consumer)
        await world.record(2)
        await world.settled()
        await world.store.webhooks.note("test", "did", "something", {})
        await world.sql("UPDATE webhook_deliveries SET at_ms = at_ms - 86400000 * 31::bigint WHERE position = 1")
        await world.sql("UPDATE admin_log SET at_ms = at_ms - 86400000 * 401::bigint WHERE action <> 'did'")
        with trio.fail_after(10):
            while await world.statuses() != {"delivered": 1} or len(await world.store.webhooks.admin_log(0, 9)) != 1:
                await trio.sleep(0.005)
        assert [entry.action for entry in await world.store.webhooks.admin_log(0, 9)] == ["did"]
