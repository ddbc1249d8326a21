"""Deliveries per second from one process to a consumer that costs nothing, and how late they come when few do.

Four processes: the runtime, PostgreSQL (fsync on), the consumer, and this one. First a backlog is recorded with nobody
to send it; the clock runs from its first arrival at the consumer to its last. The baseline sends as many of the same
signed messages with the same client and the same concurrency, from a loop without a database. Then streams are
registered at a steady pace over REST, and what is measured is how old an event is when it arrives; then once more
beside an endpoint that takes every connection and answers nothing. A loss or a double fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import trio

from bench import bare_hooks_process, consumer_process, hooks_process, tables
from bench.child import Child
from bench.consumer_process import Arrived
from bench.harness import Run
from bench.processes import Sampler
from fluxora.config import StorageConfig
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.signing import Secret
from fluxora.storage.embedded import EmbeddedServer
from fluxora.storage.store import Create, EventQuery, Store, open_store
from fluxora.storage.webhook_records import NewEndpoint

LEAST_RATE = 1_000.0
LEAST_RATIO = 0.5
MOST_SLOWED = 1.2
GROUP = 256
PER_SECOND = 50
START_S = 120.0
STALLED_S = 60.0
LOOK_EVERY_S = 0.2
SENDER, RECIPIENT = (encode(AddressKind.ACCOUNT, bytes([number] * 32)) for number in (1, 2))


class Webhooks:
    """What one process delivers."""

    name = "webhooks"
    summary = "webhooks delivered per second to a fast consumer, against the same POSTs without a database"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How many, how many at a time, and for how long at a pace."""
        parser.add_argument("--deliveries", type=int, default=5_000, help="in the backlog (100000 for the real thing)")
        parser.add_argument("--in-flight", type=int, default=64, help="deliveries on their way at a time")
        parser.add_argument("--seconds", type=float, default=5.0, help="of registrations at a steady pace")

    def run(self, run: Run) -> None:
        """Record, deliver, compare; then at a pace."""
        secret = Secret.from_bytes(bytes(range(32)))
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
            folder.chmod(0o755)  # the server runs as a user of its own when this one is root
            consumer = stack.enter_context(Child(consumer_process.__name__, {}, log=folder / "consumer.log"))
            url = f"http://127.0.0.1:{consumer.read(within_s=START_S)['port']}/hook"
            with run.stage("start PostgreSQL"):
                server = EmbeddedServer(folder / "data")
                server.open()
                stack.callback(server.close)
                database = asyncio.run(tables.create_database(server.url, "hooks"))
            with run.stage("record the backlog"):
                payload = trio.run(_record, database, url, secret, run.options.deliveries, run.options.in_flight)
            # One endpoint has half of the room, so that there is some for others.
            task = hooks_process.Task(database_url=database, concurrency=2 * run.options.in_flight)
            runtime = stack.enter_context(Child(hooks_process.__name__, task, log=folder / "runtime.log"))
            with run.stage("deliver it"), Sampler({"runtime": runtime.pid, "PostgreSQL": _postmaster(server)}) as cost:
                arrived = _collect(consumer, runtime, run.options.deliveries)
            port: int = runtime.read(within_s=START_S)["port"]
            with run.stage("deliver at a pace"):
                registered = _register(port, run.options.seconds)
                paced = _collect(consumer, runtime, registered)
            with run.stage("the same beside one that is stuck"), _stuck() as elsewhere:
                trio.run(_add_endpoint, database, elsewhere, secret, run.options.in_flight)
                beside = _register(port, run.options.seconds)
                slowed = _collect(consumer, runtime, beside)
            runtime.close()
            with run.stage("the same POSTs, bare"):
                bare_task = bare_hooks_process.Task(
                    url=url,
                    secret=secret.reveal(),
                    payload=payload,
                    deliveries=run.options.deliveries,
                    concurrency=run.options.in_flight,
                )
                bare = stack.enter_context(Child(bare_hooks_process.__name__, bare_task, log=folder / "bare.log"))
                done = msgspec.convert(bare.read(within_s=START_S), bare_hooks_process.Done)
        _judge(run, arrived, done, paced, registered)
        _judge_beside(run, paced, slowed, beside)
        for name, seconds in cost.cpu_s.items():
            run.figure(f"CPU of {name}, a delivery", seconds / run.options.deliveries * 1e3, "ms")


async def _record(database: str, url: str, secret: Secret, number: int, in_flight: int) -> str:
    """An endpoint, and events for it; the payload of one."""
    async with open_store(StorageConfig(database_url=database), decimals={}) as store:
        await store.migrate()
        await store.webhooks.create(NewEndpoint(url=url, max_in_flight=in_flight), secret, "bench")
        for first in range(0, number, GROUP):
            await store.register([_create(at) for at in range(first, min(first + GROUP, number))])
        return await _payload(store)


async def _add_endpoint(database: str, url: str, secret: Secret, in_flight: int) -> None:
    async with open_store(StorageConfig(database_url=database), decimals={}) as store:
        await store.webhooks.create(NewEndpoint(url=url, max_in_flight=in_flight), secret, "bench")


@contextmanager
def _stuck() -> Iterator[str]:
    """The URL of a receiver whose connections the kernel takes, and nobody ever reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


async def _payload(store: Store) -> str:
    [event] = await store.events(EventQuery(after=0, limit=1))
    return event.payload.decode()


def _create(number: int) -> Create:
    new = NewStream(
        sender=SENDER, recipient=RECIPIENT, deposit_amount=10**9, rate_per_second=1, start_time=1_700_000_000
    )
    return Create(f"stream-{number:032x}", f"event-{number}", new, None)


def _collect(consumer: Child, runtime: Child, expected: int) -> Arrived:
    """What has arrived, once it is as much as was expected, or nothing has come for long."""
    parts: list[Arrived] = []
    until = time.monotonic() + STALLED_S
    while sum(part.requests for part in parts) < expected and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        runtime.alive()
        part = msgspec.convert(consumer.ask({}, within_s=STALLED_S), Arrived)
        if part.requests:
            parts.append(part)
            until = time.monotonic() + STALLED_S
    time.sleep(LOOK_EVERY_S)  # for doubles
    parts.append(msgspec.convert(consumer.ask({}, within_s=STALLED_S), Arrived))
    return _sum([part for part in parts if part.requests])


def _sum(parts: list[Arrived]) -> Arrived:
    return Arrived(
        requests=sum(part.requests for part in parts),
        distinct=sum(part.distinct for part in parts),
        first_at=parts[0].first_at if parts else 0.0,
        last_at=parts[-1].last_at if parts else 0.0,
        longest_pause_s=max((part.longest_pause_s for part in parts), default=0.0),
        ages_ms=sorted(age for part in parts for age in part.ages_ms),
    )


def _register(port: int, seconds: float) -> int:
    """Register streams over REST at a steady pace; how many."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    body = json.dumps({"sender": SENDER, "recipient": RECIPIENT, "depositAmount": "100", "ratePerSecond": "0.0000001"})
    number = max(1, round(seconds * PER_SECOND))
    due = time.perf_counter()
    for _ in range(number):
        connection.request("POST", "/api/streams", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == http.HTTPStatus.CREATED, f"a registration was answered with {answer.status}"
        due += 1 / PER_SECOND
        time.sleep(max(0.0, due - time.perf_counter()))
    connection.close()
    return number


def _judge(run: Run, arrived: Arrived, done: bare_hooks_process.Done, paced: Arrived, registered: int) -> None:
    rate = (arrived.requests - 1) / max(arrived.last_at - arrived.first_at, 1e-9)
    ratio = run.compare(
        "delivered",
        ours=rate,
        baseline=done.delivered / done.seconds,
        baseline_name="the same POSTs without a database",
        unit="deliveries/s",
    )
    run.figure("longest pause between arrivals", arrived.longest_pause_s * 1e3, "ms")
    run.figure("from the event to its arrival, p50", _percentile(paced, 50), "ms")
    run.figure("from the event to its arrival, p99", _percentile(paced, 99), "ms")
    expected = run.options.deliveries + registered
    run.equal("deliveries lost", expected - arrived.distinct - paced.distinct, 0)
    run.equal("deliveries made twice", arrived.requests + paced.requests - arrived.distinct - paced.distinct, 0)
    run.equal("baseline deliveries that failed", run.options.deliveries - done.delivered, 0)
    run.goal("deliveries/s", rate, LEAST_RATE)
    run.goal("ratio to the same POSTs without a database", ratio, LEAST_RATIO)


def _judge_beside(run: Run, paced: Arrived, slowed: Arrived, registered: int) -> None:
    p99 = _percentile(slowed, 99)
    run.figure("the same beside one that is stuck, p50", _percentile(slowed, 50), "ms")
    run.figure("the same beside one that is stuck, p99", p99, "ms")
    run.equal("deliveries lost beside one that is stuck", registered - slowed.distinct, 0)
    run.equal("deliveries made twice beside one that is stuck", slowed.requests - slowed.distinct, 0)
    run.goal_at_most("p99 beside one that is stuck, ratio", p99 / _percentile(paced, 99), MOST_SLOWED)


def _percentile(arrived: Arrived, percent: int) -> float:
    ages = arrived.ages_ms or [float("inf")]
    return ages[len(ages) * percent // 100]


def _postmaster(server: EmbeddedServer) -> int:
    return int((server.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
