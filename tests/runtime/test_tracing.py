"""Traces as a collector gets them: real requests, ledgers and webhooks, told by OTLP to a server of the test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import trio
from in_process import config
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp import Collector, Told, open_collector
from processes import environment, following, serve
from structlog.testing import capture_logs
from truth import Books, caught_up
from waiting import eventually

import fluxora
from fluxora import collector as collecting
from fluxora import tracing
from fluxora.errors import ConfigError
from fluxora.localnet import Network, Script, account, open_localnet
from fluxora.protocol.api_keys import ENTROPY_BYTES, make
from fluxora.protocol.signing import Secret

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 53
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
NEW = {
    "sender": account(SEED, "alice"),
    "recipient": account(SEED, "bob"),
    "depositAmount": "100.0000000",
    "ratePerSecond": "0.5000000",
}
LONGEST_STOP_S = 20.0  # OpenTelemetry alone would wait for 30


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, and the variables that send this process's traces there."""
    with open_collector() as opened:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", opened.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield opened


def traced(net: Network, url: str) -> fluxora.Config:
    return replace(config(net, url), tracing=True)


@asynccontextmanager
async def following_net(url: str, books: Books) -> AsyncIterator[tuple[fluxora.Runtime, Network]]:
    """A traced runtime that has recorded a few ledgers."""
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3)) as net:
        await net.close_ledgers(3)
        async with fluxora.open_runtime(traced(net, url)) as rt:
            await caught_up(books, net)
            yield rt, net


async def told(collector: Collector, name: str, trace_id: str | None = None) -> Told:
    found = await eventually(lambda: collector.named(name, trace_id), f"{name} reaches the collector")
    return found[0]


def chain_to_root(span: Told, spans: dict[str, Told]) -> list[str]:
    """Names from the span up to where its trace begins here; each lies within the time of the next one."""
    chain = [span]
    while chain[-1].parent in spans:
        chain.append(spans[chain[-1].parent])
    for inner, outer in pairwise(chain):
        assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns
    return [one.name for one in chain]


async def test_a_caller_s_trace_goes_on_in_the_server_and_in_the_database(
    postgres_url: str, books_of: OpenBooks, collector: Collector
) -> None:
    books = await books_of(postgres_url)
    async with following_net(postgres_url, books) as (rt, _), httpx.AsyncClient(base_url=rt.url) as client:
        stream_id = (await client.get("/api/streams?limit=1")).json()["streams"][0]["id"]
        read = await client.get(f"/api/streams/{stream_id}/events?limit=1", headers=TRACEPARENT)
        assert read.status_code == 200
        server = await told(collector, "GET /api/streams/{id}/events", TRACE)
        below = await told(collector, "reads.events", TRACE)
    assert (server.kind, server.parent, server.status) == ("server", CALLER, "unset")
    assert server.attributes == {
        "http.request.method": "GET",
        "http.route": "/api/streams/{id}/events",
        "url.path": f"/api/streams/{stream_id}/events",
        "http.response.status_code": 200,
        "fluxora.request_id": read.headers["x-request-id"],
    }
    assert (server.resource["service.name"], server.resource["service.version"]) == ("fluxora", fluxora.__version__)
    assert (below.kind, below.parent) == ("client", server.id)
    assert below.attributes == {"db.system.name": "postgresql", "db.operation.name": "reads.events"}
    assert chain_to_root(below, collector.of(TRACE)) == ["reads.events", "GET /api/streams/{id}/events"]


async def test_what_memory_answers_is_told_as_well_and_each_request_for_itself(
    postgres_url: str, books_of: OpenBooks, collector: Collector
) -> None:
    books = await books_of(postgres_url)
    async with following_net(postgres_url, books) as (rt, _), httpx.AsyncClient(base_url=rt.url) as client:
        for number in range(3):
            await client.get("/health/live", headers={"traceparent": f"00-{TRACE}-{CALLER[:-1]}{number}-01"})
        await client.get("/health/live")
        await client.get("/health/live", headers=[*TRACEPARENT.items(), *TRACEPARENT.items()])  # which of the two?
        await client.get("/nowhere?token=hunter22", headers=TRACEPARENT)
        (lost,) = await eventually(lambda: collector.named("GET"), "the last one is told")
        spans = collector.named("GET /health/live")
    assert [span.parent for span in spans] == [f"{CALLER[:-1]}{number}" for number in range(3)] + ["", ""]
    assert len({span.trace for span in spans}) == 3
    assert (lost.attributes["url.path"], lost.attributes["http.response.status_code"]) == ("/nowhere", 404)
    assert "http.route" not in lost.attributes


@pytest.mark.parametrize("carrier", ["framework", "hosted"])
async def test_other_carriers_tell_the_same_and_what_is_read_while_it_is_sent(
    postgres_url: str, books_of: OpenBooks, collector: Collector, monkeypatch: pytest.MonkeyPatch, carrier: str
) -> None:
    monkeypatch.setattr("fluxora.http.exports.PAGE_ROWS", 2)
    books = await books_of(postgres_url)
    async with following_net(postgres_url, books) as (rt, _):
        transport = httpx.ASGITransport(rt.app) if carrier == "hosted" else None
        async with httpx.AsyncClient(base_url=rt.url, transport=transport) as client:
            answer = await client.get("/api/export/events.ndjson", headers=TRACEPARENT)
            pages = len(answer.text.splitlines()) // 2 + 1
            server = await told(collector, "GET /api/export/events.ndjson", TRACE)
            reads = await eventually(
                lambda: (found := collector.named("reads.events", TRACE)) and len(found) == pages and found,
                "each page is told",
            )
    assert pages > 2
    assert (server.parent, {read.parent for read in reads}) == (CALLER, {server.id})


async def test_a_write_its_commit_and_its_webhook_are_one_story(
    postgres_url: str, books_of: OpenBooks, collector: Collector
) -> None:
    await books_of(postgres_url)
    got: list[httpx.Headers] = []
    async with open_localnet(seed=SEED) as net, trio.open_nursery() as nursery:
        port = await nursery.start(receive, got)
        wanted = replace(
            traced(net, postgres_url),
            webhooks=fluxora.WebhookConfig(
                url=f"http://127.0.0.1:{port}/hook/hunter22",
                secret=Secret.parse("whsec_aHVudGVyMjJodW50ZXIyMmh1bnRlcjIy"),
                allowed_networks=(ip_network("127.0.0.0/8"),),
            ),
        )
        async with fluxora.open_runtime(wanted) as rt, httpx.AsyncClient(base_url=rt.url) as client:
            (await client.post("/api/streams", json=NEW, headers=TRACEPARENT)).raise_for_status()
            attempt = await told(collector, "dispatcher.attempt")
            commit = await told(collector, "registrar.commit", TRACE)
            work = await told(collector, "register.register", TRACE)
            await told(collector, "POST /api/streams", TRACE)
        nursery.cancel_scope.cancel()
    assert chain_to_root(work, collector.of(TRACE)) == ["register.register", "registrar.commit", "POST /api/streams"]
    assert commit.attributes == {"fluxora.commands": 1}
    assert (attempt.kind, attempt.parent, attempt.status) == ("client", "", "unset")
    assert attempt.links == ((commit.trace, commit.id),)
    assert attempt.attributes == {
        "http.request.method": "POST",
        "http.request.resend_count": 0,
        "http.response.status_code": 204,
        "server.address": "127.0.0.1",
        "server.port": port,
        "fluxora.webhook.endpoint": "default",
        "fluxora.event.name": "stream.created",
        "fluxora.event.position": 1,
    }
    version, trace_id, span_id, flags = got[0]["traceparent"].split("-")
    assert (version, trace_id, span_id, int(flags, 16) & 1) == ("00", attempt.trace, attempt.id, 1)


async def receive(got: list[httpx.Headers], *, task_status: trio.TaskStatus[int]) -> None:
    """A receiver of webhooks that says 204."""

    async def take(stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < length(data):
            data += await stream.receive_some()
        lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        got.append(httpx.Headers([tuple(line.split(": ", 1)) for line in lines]))
        await stream.send_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        await stream.aclose()

    def length(data: bytes) -> int:
        return int(re.search(rb"(?i)content-length: (\d+)", data)[1])

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listener.socket.getsockname()[1])
    await trio.serve_listeners(take, [listener])


async def test_a_ledger_is_followed_from_the_node_to_the_log(
    postgres_url: str, books_of: OpenBooks, collector: Collector
) -> None:
    books = await books_of(postgres_url)
    async with following_net(postgres_url, books) as (rt, net):
        net.faults.status(429)
        (throttled,) = await eventually(
            lambda: [span for span in collector.spans if span.attributes.get("error.type") == "throttled"][:1],
            "a refusal is told",
        )
        net.faults.clear()
        port = int(net.url.rpartition(":")[2].strip("/"))
        append = await told(collector, "append")
        await eventually(lambda: collector.named("ingester.round", append.trace), "its round is told")
        assert rt.health().status in {"ok", "degraded"}
    spans = collector.of(append.trace)
    record = spans[append.parent]
    round_ = spans[record.parent]
    (events,) = (span for span in spans.values() if span.name == "getEvents")
    assert (record.name, round_.name, round_.parent, events.parent) == (
        "recorder.record",
        "ingester.round",
        "",
        round_.id,
    )
    assert set(record.attributes) == {"fluxora.parcels", "fluxora.events"}
    assert (events.kind, events.status) == ("client", "unset")
    assert events.attributes == {
        "rpc.system.name": "jsonrpc",
        "rpc.method": "getEvents",
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    assert (throttled.status, throttled.attributes["http.response.status_code"], throttled.texts) == ("error", 429, ())


async def test_nobody_s_heartbeat_begins_a_trace(postgres_url: str, books_of: OpenBooks, collector: Collector) -> None:
    books = await books_of(postgres_url)
    async with following_net(postgres_url, books) as (_, net):
        await net.close_ledger()
        await caught_up(books, net)
        await told(collector, "webhook_claims.turn")  # the dispatcher has counted its backlog before
    begun = {span.name for span in collector.spans if not span.parent}
    assert begun >= {"ingester.round", "webhook_claims.turn", "migrate"}
    assert not begun & {"reads.ping", "reads.head", "reads.entry_wants", "webhook_workers.renew"}
    assert "webhook_tallies.backlog" not in begun


async def test_no_secret_is_told(tmp_path: Path, postgres_url: str, books_of: OpenBooks) -> None:
    """A whole process, each of whose secrets is in use."""
    books = await books_of(postgres_url)
    key_text, key = make("dash", ["streams:read", "streams:write"], entropy=bytes(range(ENTROPY_BYTES)))
    got: list[httpx.Headers] = []
    with open_collector() as collector:
        async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=1)) as net:
            await net.close_ledgers(2)
            async with trio.open_nursery() as nursery:
                port = await nursery.start(receive, got)
                hidden_rpc = (
                    net.url.replace("http://", "http://rpcuser:rpc-hunter@").rstrip("/") + "/rpc-key?k=rpc-query"
                )
                environ = following(
                    net,
                    url=postgres_url.replace("?", "?password=db-hunter&"),
                    FLUXORA_TRACING="on",
                    FLUXORA_API_KEYS=key.entry,
                    FLUXORA_AUTH="required",
                    JWT_SECRET="jwt-hunter" * 4,
                    INDEXER_WORKER_TOKEN="worker-hunter-worker",
                    FLUXORA_WEBHOOK_URL=f"http://127.0.0.1:{port}/hook-hunter?q=hook-query",
                    FLUXORA_WEBHOOK_SECRET="sign-hunter",
                    FLUXORA_WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
                    OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
                    OTEL_EXPORTER_OTLP_HEADERS="authorization=otlp-hunter",
                    OTEL_BSP_SCHEDULE_DELAY="50",
                ) | {"STELLAR_RPC_URL": hidden_rpc}
                async with serve(environ, tmp_path / "serve.log") as served:
                    await caught_up(books, net)
                    async with httpx.AsyncClient(base_url=await served.ready(), headers=TRACEPARENT) as client:
                        made = await client.post("/api/streams", json=NEW, headers={"x-api-key": key_text})
                        assert made.status_code == 201
                        refused = await client.get("/api/streams", headers={"authorization": "Bearer token-hunter"})
                        assert refused.status_code == 401
                        await client.get("/ws/streams?token=query-hunter")
                        await client.get("/api/events?cursor=query-hunter")
                    names = {"getEvents", "append", "dispatcher.attempt", "registrar.commit", "GET /api/events"}
                    await eventually(lambda: names <= {span.name for span in collector.spans}, "all is told")
                    assert await served.stop() == 0
                nursery.cancel_scope.cancel()
    lines = [json.loads(line) for line in served.text.splitlines() if '"http.request_served"' in line]
    assert {line["route"] for line in lines} >= {"/api/streams", "/ws/streams", "/api/events"}
    assert {line["trace_id"] for line in lines if line["route"] != "/health"} == {TRACE}
    assert ("/v1/traces", "otlp-hunter") in {(path, head.get("authorization")) for path, head in collector.heads}
    everything = b"".join(collector.bodies)
    for secret in ("hunter", "rpcuser", "rpc-key", "rpc-query", "hook-query", key_text, key.entry, "aHVudGVy"):
        assert secret.encode() not in everything, secret
    assert not [span.texts for span in collector.spans if span.texts]


async def test_a_collector_that_hangs_holds_up_nothing(
    postgres_url: str, books_of: OpenBooks, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MAX_QUEUE_SIZE", "16"), ("MAX_EXPORT_BATCH_SIZE", "8")):
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setattr("fluxora.collector.FLUSH_S", 0.5)
    books = await books_of(postgres_url)
    collector.hold.clear()
    with capture_logs() as lines, trio.CancelScope() as bound:
        async with following_net(postgres_url, books) as (rt, _), httpx.AsyncClient(base_url=rt.url) as client:
            assert await trio.to_thread.run_sync(collector.asked.wait)
            for _ in range(100):
                (await client.get("/api/events?limit=1")).raise_for_status()
            bound.deadline = trio.current_time() + LONGEST_STOP_S
    assert not bound.cancel_called, "the stop waited for the collector"
    assert not collector.bodies, "nothing had waited for it"
    assert [line for line in lines if line["event"] == "tracing.spans_lost"]
    assert [line["said"] for line in lines if line["event"] == "tracing.sdk_complained"] == ["Queue full, dropping …."]


async def test_a_collector_that_is_away_loses_its_spans_and_nothing_else(
    postgres_url: str, books_of: OpenBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_collector() as gone:
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{gone.url}/path-hunter?key=query-hunter")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "header-hunter")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setattr("fluxora.collector.FLUSH_S", 0.5)
    books = await books_of(postgres_url)
    with capture_logs() as lines, trio.CancelScope() as bound:
        async with following_net(postgres_url, books) as (rt, _), httpx.AsyncClient(base_url=rt.url) as client:
            (await client.get("/api/events?limit=1")).raise_for_status()
            trouble = await eventually(
                lambda: [line["said"] for line in lines if "Transient" in line.get("said", "")], "the operator is told"
            )
            bound.deadline = trio.current_time() + LONGEST_STOP_S
    assert not bound.cancel_called
    assert trouble[0].startswith("Transient error ConnectionError encountered while exporting")
    assert [line for line in lines if line.get("said", "").startswith("Header format invalid!")]
    assert "hunter" not in str(lines)


async def test_the_application_s_own_provider_is_used_and_left_as_it_is(
    postgres_url: str, books_of: OpenBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # it can be set once in a process
    books = await books_of(postgres_url)
    theirs = provider.get_tracer("theirs")
    with theirs.start_as_current_span("main") as main:
        async with following_net(postgres_url, books) as (rt, _), httpx.AsyncClient(base_url=rt.url) as client:
            (await client.get("/api/events?limit=1", headers=TRACEPARENT)).raise_for_status()
        assert trace.get_current_span() is main
    theirs.start_span("afterwards").end()
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert f"{spans['GET /api/events'].parent.span_id:016x}" == CALLER
    assert spans["ingester.round"].parent is None, "what the runtime does goes on behind the block that opened it"
    assert {"migrate", "recorder.record", "main", "afterwards"} <= set(spans)


async def test_without_the_extra_the_start_names_it(tmp_path: Path) -> None:
    without = "import sys; sys.modules['opentelemetry'] = None; from fluxora.__main__ import main; sys.exit(main())"
    environ = environment(FLUXORA_TRACING="on", FLUXORA_DATA_DIR=str(tmp_path), PORT="0")
    async with serve(environ, tmp_path / "serve.log", ("-c", without, "serve")) as served:
        assert await served.ended() == 2
    (line,) = served.text.splitlines()
    assert (
        line
        == "fluxora: FLUXORA_TRACING: OpenTelemetry is not installed; pip install 'fluxora[otel]', or set it to off"
    )


def test_while_it_is_off_opentelemetry_is_not_imported(postgres_url: str) -> None:
    program = """
import sys, trio, fluxora

async def main():
    async with fluxora.open_runtime(fluxora.Config.from_env({"DATABASE_URL": sys.argv[1], "PORT": "0"})) as rt:
        rt.health()
    print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))

trio.run(main)
"""
    words = [sys.executable, "-c", program, postgres_url]
    done = subprocess.run(words, check=False, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf can be used"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER: only otlp can be used"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "max_queue_size must be a positive integer"),
    ],
)
async def test_a_variable_that_cannot_be_followed_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(told)):
        async with collecting.open_tracing(on=True, version="1"):
            pass
    assert tracing.tracer is None
