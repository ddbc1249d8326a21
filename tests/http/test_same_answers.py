"""Both carriers send the same bytes: the listener itself, and Quart-Trio over Hypercorn.

Masked are the date, request ids that the server made up, and the case of one header's name. Where a request is refused
before its body was read, the connection may go on or end as the body was here or not; else every byte is compared.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from difflib import unified_diff
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from front import Server, read_to_end
from spoken import APP, GUARDED, KEYS, NEW, NO_REQUESTS, NOW, ONE, READS, TOKEN, WRITER, Row, ask, bad, missing, ok, row
from story import ALICE, BOB, CAROL, SECOND, batch, created, event
from wire import assert_common, assert_error, read_answers

from fluxora.actors.registrar import Registrar
from fluxora.actors.stream_cache import StreamCache
from fluxora.config import LimitConfig, StorageConfig
from fluxora.errors import StorageUnavailable
from fluxora.http.limits import Limiter
from fluxora.storage.store import Store, open_store

UUID4 = rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
MASKS = [
    (re.compile(rb"\r\ndate: [^\r]*\r\n"), b"\r\ndate: -\r\n"),
    (re.compile(rb"\r\nx-request-id: " + UUID4), b"\r\nx-request-id: -"),
    (re.compile(rb"\r\nConnection: close\r\n"), b"\r\nconnection: close\r\n"),  # as h11 writes it where it adds it
    (re.compile(rb'"requestId":"' + UUID4 + b'"'), b'"requestId":"-"'),
]
MADE_UP = re.compile(rb"stream-[0-9a-f]{32}")
CLOSING = b"\r\nconnection: close\r\n"


@pytest.fixture
def carrier() -> str:
    """Not one after the other here: both in each test."""
    return "direct"


async def received(server: Server, sent: bytes, *, fragments: bool = False) -> bytes:
    """All that comes back for `sent`, behind which the client ends its side."""
    async with await server.connect() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                for part in [sent[i : i + 1] for i in range(len(sent))] if fragments else [sent]:
                    await stream.send_all(part)
                await stream.send_eof()
            except trio.BrokenResourceError:
                return  # the server has heard enough

        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        nursery.start_soon(send)
        return await read_to_end(stream)


def masked(data: bytes, row: Row) -> bytes:
    data = data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")  # sent or not as the body was here or not
    for pattern, instead in MASKS:
        data = pattern.sub(instead, data)
    return data.replace(CLOSING, b"\r\n") if row.unread else data


def judge(data: bytes, row: Row) -> None:
    """One answer that h11 can read, and it is the one that the contract has."""
    (answer,) = read_answers(data, [row.method])
    assert answer.status == row.status, (row.sent[:100], answer)
    assert_common(answer)
    if row.code is not None:
        assert_error(answer, row.status, row.code)


def assert_one(answers: set[bytes], row: Row) -> None:
    """They are all the same; else the test fails with the lines in which two of them differ."""
    first, *others = sorted(answers)
    for other in others:
        lines = unified_diff(*(answer.decode("latin-1").split("\r\n") for answer in (first, other)), lineterm="", n=0)
        pytest.fail("\n".join([repr(row.sent[:200]), *lines]))


async def assert_same(servers: Sequence[Server], rows: Sequence[Row]) -> None:
    """Each request, sent whole, again (memory may answer then), and byte by byte: one answer, in the same bytes."""
    for one in rows:
        answers: list[bytes] = []
        for server in servers:
            ways = [False, False, True] if len(one.sent) < 5000 else [False]
            answers += [await received(server, one.sent, fragments=fragments) for fragments in ways]
        for answer in answers:
            judge(answer, one)
        assert_one({masked(answer, one) for answer in answers}, one)


@pytest.fixture
async def history(record: Callable[..., Any]) -> None:
    await record(
        batch(
            *(created(n, ledger=10 + n) for n in range(3)),
            created(3, ledger=13, sender=BOB, recipient=CAROL),
            created(4, ledger=14, sender=CAROL, recipient=ALICE),
            created(0, ledger=15, of=SECOND),
            event("paused", {"stream_id": 1, "reason": "Operational"}, ledger=20),
            event("cancelled", {"stream_id": 2}, ledger=100),
        )
    )


async def pair(start: Callable[..., Any], store: Any, **options: Any) -> list[Server]:
    """One server of each carrier over the same store, each with a read cache of its own."""
    return [
        await start(
            store=store,
            cache=StreamCache(store, trusted=lambda: True),
            clock=lambda: NOW + 0.5,
            direct=direct,
            **options,
        )
        for direct in (True, False)
    ]


def test_the_table_is_large() -> None:
    rows = [*READS, *NO_REQUESTS, *GUARDED]
    assert len(rows) >= 120
    assert len(set(READS)) + len(set(NO_REQUESTS)) + len(set(GUARDED)) == len(rows), "no row stands twice"


async def test_reads_and_refusals(start, store, history):
    await assert_same(await pair(start, store), READS)


async def test_what_is_no_request(start, store):
    await assert_same(await pair(start, store), NO_REQUESTS)


async def test_credentials_and_origins(start, store, history):
    guarded = replace(KEYS, required=True)
    servers = await pair(start, store, access=guarded, cors_origins=(APP,), indexer_worker_token=TOKEN)
    await assert_same(servers, GUARDED)


async def test_many_requests_on_one_connection(start, store, history):
    """The same answers in the same order where all requests are sent at once, and where each byte comes by itself."""
    servers = await pair(start, store)
    rows = [
        one for one in READS if not one.unread and len(one.sent) < 5000 and b"\r\nConnection: close" not in one.sent
    ]
    rows = [one for one in rows if b"HTTP/1.0" not in one.sent]
    sent = b"".join(one.sent for one in rows)
    whole = [await received(server, sent, fragments=fragments) for server in servers for fragments in (False, True)]
    for data in whole:
        answers = read_answers(data, [one.method for one in rows])
        assert [answer.status for answer in answers] == [one.status for one in rows]
    streams = [data.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") for data in whole]
    assert_one({masked(data, rows[0]) for data in streams}, rows[0])


class Away:
    """A store whose database does not answer."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def fail(*_: object) -> Any:
            raise StorageUnavailable("connection refused")

        return fail


def explode() -> Any:
    raise RuntimeError("a secret")


async def test_a_database_that_is_away_and_a_defect(start):
    rows = [
        *(row(503, "SERVICE_UNAVAILABLE", "GET", target) for target in ("/api/streams", ONE, "/api/events")),
        *(row(503, "SERVICE_UNAVAILABLE", "GET", f"{ONE}{more}") for more in ("/events", "?asOf=1")),
        *(row(503, "SERVICE_UNAVAILABLE", "GET", f"/api/export/{name}") for name in ("streams.csv", "events.ndjson")),
        row(503, "SERVICE_UNAVAILABLE", "GET", f"/api/treasury/{ALICE}"),
        row(503, "SERVICE_UNAVAILABLE", "GET", "/health/ready"),
        row(503, "SERVICE_UNAVAILABLE", "POST", "/api/streams", body=NEW),
        row(503, "SERVICE_UNAVAILABLE", "PATCH", ONE, body={"status": "paused"}, chunks=2),
        row(503, "SERVICE_UNAVAILABLE", "DELETE", ONE),
        row(500, "INTERNAL_ERROR", "GET", "/health"),
        Row("HEAD", ask("HEAD", "/health"), 500),
        ok("/health/live"),
        bad("/api/streams?limit=0"),
    ]
    await assert_same(await pair(start, Away(), writes=Away(), health=explode), rows)


async def test_limits(start, store, history):
    """Each server has counted as many requests when it comes to a row; the clock stands still."""
    servers = await pair(start, store, access=KEYS, limits=LimitConfig(anonymous_read=3, anonymous_write=1, key=2))
    for server in servers:
        server.backend.limiter = Limiter(server.backend.config.limits, clock=lambda: 1000.0, wall=lambda: NOW + 0.5)
    over = "RATE_LIMIT_EXCEEDED"
    rows = [
        ok("/"),
        ok(ONE, "Expect: 100-continue"),
        ok("/api/export/events.ndjson"),
        row(429, over, "GET", ONE),
        row(429, over, "GET", "/api/export/streams.csv"),
        row(429, over, "GET", "/docs"),
        missing("/nowhere"),
        ok("/health/live"),
        row(415, "UNSUPPORTED_MEDIA_TYPE", "POST", "/api/streams", body=b"", chunks=1),
        row(429, over, "POST", "/api/streams", body=NEW, unread=True),
        row(429, over, "DELETE", ONE),
        row(403, "FORBIDDEN", "GET", ONE, f"X-Api-Key: {WRITER}"),
        row(403, "FORBIDDEN", "GET", ONE, f"X-Api-Key: {WRITER}"),
        row(429, over, "GET", ONE, f"X-Api-Key: {WRITER}"),
        *[row(401, "UNAUTHORIZED", "GET", "/", "X-Api-Key: guess")] * 20,
        row(429, over, "GET", "/", "X-Api-Key: guess"),
        row(429, over, "GET", "/", "X-Api-Key: flx_reader_" + "0" * 43),
    ]
    for one in rows:
        answers = [await received(server, one.sent) for server in servers]
        for answer in answers:
            judge(answer, one)
        assert_one({masked(answer, one) for answer in answers}, one)


@pytest.fixture
async def twins(postgres_run: Any, tmp_path: Any, nursery: trio.Nursery) -> AsyncIterator[list[tuple[Store, Any]]]:
    """Two empty databases of the same form, each with a running registrar."""
    urls = [postgres_run.create() for _ in range(2)]
    async with AsyncExitStack() as stack:
        made: list[tuple[Store, Any]] = []
        for url in urls:
            config = StorageConfig(database_url=url, data_dir=tmp_path, pool_size=4)
            store = await stack.enter_async_context(open_store(config, decimals={}))
            cache = StreamCache(store, trusted=lambda: True)
            registrar = Registrar(store, publish=lambda appended, cache=cache: cache.take_over(appended.streams))
            await nursery.start(registrar.run)
            made.append((store, {"cache": cache, "writes": registrar}))
        yield made
        for _, parts in made:
            parts["writes"].drain()
        await trio.testing.wait_all_tasks_blocked(0.01)
    for url in urls:
        postgres_run.drop(url)


async def test_writes(start, twins, monkeypatch):
    """The same writes in the same order on two databases: the same answers, but for the ids made up there.

    The registrations' clock stands still like the servers' own, or the two would be valued at different seconds.
    """
    monkeypatch.setattr("fluxora.storage.register.time", SimpleNamespace(time_ns=lambda: NOW * 10**9 + 5 * 10**8))
    servers = [
        await start(store=store, clock=lambda: NOW + 0.5, direct=direct, **parts)
        for (store, parts), direct in zip(twins, (True, False), strict=True)
    ]
    one = "/api/streams/{id}"
    key, other = "Idempotency-Key: k", {**NEW, "depositAmount": "7"}
    rows = [
        ok("/api/streams", method="POST", body=NEW, status=201),
        ok(one),
        ok(one, "If-None-Match: *", status=304),
        ok("/api/streams", key, method="POST", body=NEW, status=201),
        ok("/api/streams", key, method="POST", body=NEW, status=201),
        ok("/api/streams", key, method="POST", body=NEW, status=201, chunks=9),
        row(422, "IDEMPOTENCY_CONFLICT", "POST", "/api/streams", key, body=other),
        ok("/api/streams", "Expect: 100-continue", method="POST", body=other, status=201),
        ok(one, method="PATCH", body={"status": "paused"}),
        row(409, "CONFLICT", "PATCH", one, body={"status": "completed"}),
        ok(one, method="PATCH", body={"status": "active"}, chunks=1),
        ok(one, method="DELETE"),
        row(409, "CONFLICT", "DELETE", one),
        row(409, "CONFLICT", "DELETE", one, body="ignored", chunks=3),
        missing("/api/streams/stream-none", method="DELETE"),
        missing("/api/streams/x", method="PATCH", body={"status": "paused"}),
        ok("/api/streams?status=cancelled"),
        ok("/api/streams"),
    ]
    ids = []
    for server in servers:
        created = await received(server, ask("POST", "/api/streams", body=NEW))
        ids.append(read_answers(created)[0].json["id"])
    for step in rows:
        answers = [
            await received(server, step.sent.replace(b"{id}", stream_id.encode()), fragments=step.status == 200)
            for server, stream_id in zip(servers, ids, strict=True)
        ]
        for answer in answers:
            judge(answer, step)
        assert_one({MADE_UP.sub(b"stream-made-up", masked(answer, step)) for answer in answers}, step)


CREATE = ask("POST", "/api/streams", "Expect: 100-continue", body=NEW)


@pytest.mark.parametrize("length", ["counted", "chunked"])
async def test_who_waits_for_100_continue_gets_it_once_the_body_is_wanted(start, twins, length):
    for (store, parts), direct in zip(twins, (True, False), strict=True):
        server = await start(store=store, direct=direct, **parts)
        sent = ask("POST", "/api/streams", "Expect: 100-continue", body=NEW, chunks=20 * (length == "chunked"))
        head, separator, body = sent.partition(b"\r\n\r\n")
        async with await server.connect() as stream:
            await stream.send_all(head + separator)
            with trio.fail_after(5):
                assert await stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(body)
            await stream.send_eof()
            (answer,) = read_answers(await read_to_end(stream), ["POST"])
        assert (answer.status, answer.informational) == (201, ())


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (ask("POST", "/nowhere", "Expect: 100-continue", "Content-Length: 5"), 404),
        (ask("POST", "/api/streams", "Expect: 100-continue", "Content-Length: 5", "X-Api-Key: guess"), 401),
        (ask("POST", "/api/streams", "Expect: 100-continue", "Content-Length: 262145"), 413),
        (ask("POST", "/api/streams", "Expect: 100-continue", "Transfer-Encoding: chunked", "X-Api-Key: x"), 401),
    ],
)
async def test_who_is_refused_is_not_told_to_send_the_body(start, refused, status):
    for direct in (True, False):
        server = await start(direct=direct)
        (answer,) = read_answers(await server.exchange(refused), ["POST"])
        assert (answer.status, answer.informational) == (status, ())
        assert answer.header("connection") == "close"
