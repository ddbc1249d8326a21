"""GET /metrics, read by the parsers of others: it counts what was served, and no client can make it grow."""

from __future__ import annotations

import random
import shutil
import string
import subprocess
from collections import defaultdict
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from front import report
from prometheus_client.parser import text_string_to_metric_families
from story import batch, created, stream

from fluxora.actors.deliveries import DispatcherStatus, Tally
from fluxora.actors.status import ActorStatus
from fluxora.config import LimitConfig
from fluxora.http.metrics import BOUNDS_S, HttpMetrics
from fluxora.storage.webhook_records import Result

COUNT = "fluxora_http_request_duration_seconds_count"
BUCKET = "fluxora_http_request_duration_seconds_bucket"


class Scraped:
    """The samples of one scrape; `value` adds up those that have the labels."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found)


async def scrape(server: Any) -> Scraped:
    answer = await server.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scraped(answer.text)


async def test_it_counts_what_was_served_by_method_route_and_status(start, store, record):
    await record(batch(created(0, ledger=10)))
    server = await start(store=store)
    for method, url, times in (
        ("GET", f"/api/streams/{stream(0)}", 3),
        ("HEAD", f"/api/streams/{stream(0)}", 2),
        ("GET", "/api/streams/stream-none", 4),
        ("GET", "/api/streams?limit=0", 1),
        ("DELETE", "/health", 5),
        ("POST", "/nowhere", 2),
        ("BREW", "/", 1),
        ("POST", "/api/streams", 1),
    ):
        for _ in range(times):
            await server.request(method, url)
    seen = await scrape(server)
    assert seen.value(COUNT, method="GET", route="/api/streams/{id}", status="200") == 3
    assert seen.value(COUNT, method="HEAD", route="/api/streams/{id}", status="200") == 2
    assert seen.value(COUNT, method="GET", route="/api/streams/{id}", status="404") == 4
    assert seen.value(COUNT, method="GET", route="/api/streams", status="400") == 1
    assert seen.value(COUNT, method="DELETE", route="unmatched", status="405") == 5
    assert seen.value(COUNT, method="POST", route="unmatched", status="404") == 2
    assert seen.value(COUNT, method="OTHER", route="unmatched", status="405") == 1
    assert seen.value(COUNT, method="POST", route="/api/streams", status="415") == 1
    assert seen.value(COUNT) == 19
    assert (await scrape(server)).value(COUNT, route="/metrics", status="200") == 1


async def test_histograms_are_cumulative_and_in_seconds(start):
    server = await start()
    for _ in range(5):
        await server.get("/health/live")
    seen = await scrape(server)
    by_bound = {
        one.labels["le"]: one.value
        for one in seen.samples
        if one.name == BUCKET and one.labels["route"] == "/health/live"
    }
    assert list(map(float, by_bound)) == [*BOUNDS_S, float("inf")]
    assert list(by_bound.values()) == sorted(by_bound.values())
    assert by_bound["+Inf"] == seen.value(COUNT, route="/health/live") == 5
    assert 0 < seen.value("fluxora_http_request_duration_seconds_sum", route="/health/live") < 10


@pytest.mark.parametrize("seconds", [0.0, *BOUNDS_S, 31.0])
def test_a_duration_is_in_every_bucket_from_its_own_on(seconds):
    metrics = HttpMetrics()
    metrics.served("GET", "/", 200, seconds)
    (histogram, *_) = metrics.collect()
    for sample in histogram.samples:
        if sample.name == BUCKET:
            assert sample.value == (seconds <= float(sample.labels["le"]))


async def test_refusals_and_connections_are_counted(start):
    server = await start(max_connections=3)
    await server.exchange(b"nonsense\r\n\r\n")
    await server.exchange(b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n")
    await server.exchange(b"GET / HTTP/2.0\r\n\r\n")
    async with await server.connect(), await server.connect():
        seen = await scrape(server)
        assert [seen.value("fluxora_http_refused_total", status=status) for status in ("400", "501", "505")] == [
            1,
            1,
            1,
        ]
        assert seen.value("fluxora_http_connections") == 3


async def test_a_thousand_random_paths_and_methods_add_no_labels(start):
    server = await start()
    chance = random.Random(7)
    letters = string.ascii_letters

    def word() -> str:
        return "".join(chance.choices(letters, k=12))

    async with server.client() as client:
        for number in range(1000):
            path = chance.choice(["/{}", "/api/streams/{}?{}=1", "/api/{}/{}", "/docs/{}", "/health/{}"])
            method = word() if number % 3 == 0 else chance.choice(["GET", "HEAD", "POST", "PUT"])
            await client.request(method, path.replace("{}", word()), headers={"x-request-id": word()})
    seen = await scrape(server)
    labels: dict[str, set[str]] = defaultdict(set)
    for sample in seen.samples:
        if sample.name == COUNT:
            for name, value in sample.labels.items():
                labels[name].add(value)
    assert seen.value(COUNT) == 1000
    assert labels["method"] <= {"GET", "HEAD", "POST", "PUT", "OTHER"}
    assert labels["route"] <= {"unmatched", "/api/streams/{id}", "/docs/{file}"}
    assert labels["status"] <= {"400", "404", "405"}


async def test_it_tells_of_the_runtime_what_health_tells(start):
    def health() -> Any:
        made = report("degraded")
        made.actors.append(ActorStatus(name="feed", state="running", restarts=2, inbox=None))
        made.actors.append(ActorStatus(name="registrar", state="restarting", restarts=0, inbox=7, inbox_size=9))
        return made

    seen = await scrape(await start(health=health))
    assert states_of(seen, "fluxora_status") == {"degraded"}
    assert states_of(seen, "fluxora_actor_state", actor="feed") == {"running"}
    assert states_of(seen, "fluxora_actor_state", actor="registrar") == {"restarting"}
    assert seen.value("fluxora_actor_restarts_total", actor="feed") == 2
    assert seen.value("fluxora_actor_inbox", actor="registrar") == 7
    assert seen.value("fluxora_actor_inbox_limit", actor="registrar") == 9
    assert seen.value("fluxora_build_info", version="1.2.3") == 1
    assert seen.value("fluxora_database_up") == 1


def states_of(seen: Scraped, name: str, **labels: str) -> set[str]:
    """The states that have a 1; all others have a 0."""
    samples = [one for one in seen.samples if one.name == name and labels.items() <= one.labels.items()]
    assert {one.value for one in samples} == {0, 1}
    return {one.labels["state"] for one in samples if one.value}


async def test_the_ways_to_the_database_are_counted(start, store, record):
    await record(batch(created(0, ledger=10)))
    server = await start(store=store)
    before = await scrape(server)
    for _ in range(3):
        await server.get(f"/api/streams/{stream(0)}")
    seen = await scrape(server)
    assert seen.value("fluxora_database_pool_limit") == 4
    assert 1 <= seen.value("fluxora_database_pool_connections") <= 4
    for name in ("pool_in_use", "pool_waiting", "timeouts_total", "pool_given_up_total"):
        assert seen.value(f"fluxora_database_{name}") == 0
    for name in ("fluxora_database_pool_acquisitions_total", "fluxora_database_work_duration_seconds_count"):
        assert seen.value(name) - before.value(name) == 3
    assert seen.value("fluxora_bridge_in_flight") == seen.value("fluxora_bridge_waiting") == 0


async def test_what_the_limits_refuse_is_counted(start):
    server = await start(limits=LimitConfig(anonymous_read=2))
    for _ in range(5):
        await server.get("/api/streams?limit=0")
    seen = await scrape(server)
    assert seen.value("fluxora_rate_limit_refused_total", policy="anonymous-read") == 3
    assert seen.value("fluxora_rate_limit_refused_total") == 3
    assert seen.value("fluxora_rate_limit_callers") == 1


async def test_webhooks_are_counted(start):
    tally = Tally()
    for latency_ms, outcome in ((3, "delivered"), (20, "delivered"), (20_000, "retry"), (5, "dead")):
        tally.count(
            Result(endpoint_id="default", position=1, outcome=outcome, status=200, error=None, latency_ms=latency_ms)
        )
    status = DispatcherStatus(
        pending=7,
        oldest_pending_ms=2_500,
        dead_lettered=3,
        in_flight=2,
        breakers_open=1,
        attempts=tally.attempts,
        latencies=tally.latencies,
        concurrency=64,
    )
    seen = await scrape(await start(dispatcher=SimpleNamespace(status=status)))
    for name, value in (
        ("fluxora_webhook_pending", 7),
        ("fluxora_webhook_oldest_pending_seconds", 2.5),
        ("fluxora_webhook_dead_lettered", 3),
        ("fluxora_webhook_in_flight", 2),
        ("fluxora_webhook_concurrency_limit", 64),
        ("fluxora_webhook_breakers_open", 1),
    ):
        assert seen.value(name) == value
    attempts = {
        one.labels["outcome"]: one.value for one in seen.samples if one.name == "fluxora_webhook_attempts_total"
    }
    assert attempts == {"delivered": 2, "retry": 1, "dead": 1, "gone": 0}
    bucket = "fluxora_webhook_attempt_duration_seconds_bucket"
    by_bound = {float(one.labels["le"]): one.value for one in seen.samples if one.name == bucket}
    assert (by_bound[0.005], by_bound[0.025], by_bound[15.0], by_bound[inf]) == (2, 3, 3, 4)
    assert seen.value("fluxora_webhook_attempt_duration_seconds_count") == 4
    assert seen.value("fluxora_webhook_attempt_duration_seconds_sum") == 20.028


async def test_the_read_cache_is_counted(start, store, record, cache):
    await record(batch(created(0, ledger=10)))
    server = await start(store=store, cache=cache)
    for _ in range(4):
        await server.get(f"/api/streams/{stream(0)}")
    seen = await scrape(server)
    assert seen.value("fluxora_read_cache_hits_total") == 3
    assert seen.value("fluxora_read_cache_misses_total") == 1
    assert seen.value("fluxora_read_cache_entries", kind="stream") == 1


async def test_names_and_help_are_as_they_should_be(start):
    """What `promtool check metrics` looks for, for those who have none."""
    seen = await scrape(await start())
    names = [family.name for family in seen.families]
    assert len(set(names)) == len(names)
    for family in seen.families:
        assert family.documentation
        if family.name.startswith("fluxora_"):
            assert not family.name.endswith(("_milliseconds", "_ms"))
            assert all(one.name.endswith("_total") for one in family.samples if family.type == "counter")


async def test_promtool_finds_nothing_wrong(start):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Prometheus, is not installed here")
    server = await start()
    text = (await server.get("/metrics")).content
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    )
    assert (done.returncode, done.stderr) == (0, b"")
