from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import trio
from planted import plant, plant_many, state
from story import ALICE, BOB, CAROL, FIRST, GENESIS_S, SECOND, batch, created, event, stream
from structlog.testing import capture_logs

from fluxora.errors import StorageUnavailable
from fluxora.http import exports
from fluxora.http.exchange import Request
from fluxora.protocol.streams import StreamStatus
from fluxora.storage.store import LogHead, Store

STREAMS, EVENTS = "/api/export/streams.csv", "/api/export/events.ndjson"
COLUMNS = [
    *("id", "origin", "contractId", "chainStreamId", "sender", "recipient"),
    *("depositAmount", "ratePerSecond", "withdrawnAmount", "streamedAmount", "withdrawableAmount", "remainingAmount"),
    *("startTime", "cliffTime", "endTime", "kind", "status", "cancelledAt", "pausedAt", "closedAt", "depletionTime"),
    *("memo", "metadata", "position", "ledger", "asOf", "createdAt", "updatedAt"),
]
NUMBERS = {
    *("startTime", "cliffTime", "endTime", "cancelledAt", "pausedAt", "closedAt", "depletionTime", "ledger", "asOf"),
}
AS_OF = GENESIS_S + 300


@pytest.fixture
async def server(start, store, record):
    await record(
        batch(
            *(created(n, ledger=10 + n) for n in range(3)),
            created(3, ledger=13, sender=BOB, recipient=CAROL, memo='plain, with "quotes"\r\nand lines'),
            created(4, ledger=14, sender=CAROL, recipient=ALICE, metadata={"a": "1", "=b": "ä;\n"}),
            created(0, ledger=15, of=SECOND),
            event("paused", {"stream_id": 1, "reason": "Operational"}, ledger=20),
            event("gl_pause", {"paused": True}, ledger=21),
            event("cancelled", {"stream_id": 2}, ledger=100),
        )
    )
    return await start(store=store, clock=lambda: AS_OF + 0.75)


class Counting:
    """A store that counts its pages, and fails where it is told to."""

    def __init__(self, store: Store, fail_at: int | None = None) -> None:
        self._store = store
        self._fail_at = fail_at
        self.pages = 0

    async def position(self) -> int:
        return await self._store.position()

    async def head(self) -> LogHead:
        return await self._store.head()

    async def streams(self, wanted: Any) -> Any:
        return await self._page(self._store.streams, wanted)

    async def events(self, wanted: Any) -> Any:
        return await self._page(self._store.events, wanted)

    async def _page(self, read: Any, wanted: Any) -> Any:
        self.pages += 1
        if self.pages == self._fail_at:
            raise StorageUnavailable("PostgreSQL cannot answer: gone")
        return await read(wanted)


def plain(cell: str) -> str:
    """The cell as it was before the apostrophe was put in front of it."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@\t\r") else cell


def rows(text: str) -> list[dict[str, Any]]:
    """The rows as the JSON API would show them."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    assert reader.fieldnames == COLUMNS
    found = []
    for row in reader:
        shown: dict[str, Any] = {}
        for name, cell in row.items():
            if cell or name in {"sender", "recipient"}:
                shown[name] = int(cell) if name in NUMBERS else json.loads(cell) if name == "metadata" else plain(cell)
        found.append(shown)
    return found


async def listed(server, query: str) -> list[dict[str, Any]]:
    answer = await server.get(f"/api/streams?limit=100&{query}")
    assert answer.status_code == 200
    return answer.json()["streams"]


STREAM_QUERIES = [
    "",
    "order=desc",
    "status=active",
    f"sender={ALICE}&order=desc",
    f"recipient={ALICE}",
    f"contractId={SECOND}",
    f"status=cancelled&sender={ALICE}&recipient={BOB}&contractId={FIRST}",
    "status=completed",
    f"asOf={GENESIS_S + 5000}",
]


@pytest.mark.parametrize("page_rows", [1, 2, 500])
async def test_the_csv_says_what_the_list_says(server, monkeypatch, page_rows: int):
    monkeypatch.setattr(exports, "PAGE_ROWS", page_rows)
    for query in STREAM_QUERIES:
        answer = await server.get(f"{STREAMS}?{query}")
        assert answer.status_code == 200
        assert rows(answer.text) == await listed(server, query), query


async def test_its_form_is_that_of_rfc_4180(server):
    answer = await server.get(STREAMS)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="streams.csv"'
    assert "content-length" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    lines = answer.content.split(b"\r\n")
    assert lines[0] == ",".join(COLUMNS).encode()
    assert lines[-1] == b""
    assert b'"plain, with ""quotes""' in answer.content


async def test_without_streams_there_is_the_header_row(start, store):
    server = await start(store=store)
    assert (await server.get(STREAMS)).text == ",".join(COLUMNS) + "\r\n"


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
async def test_no_cell_begins_like_a_formula(start, store, first: str):
    await plant(store, [state(memo=f"{first}cmd|'/c calc'!A1".encode()), state(memo=b"a=b"), state(deposit_amount=-5)])
    server = await start(store=store, clock=lambda: AS_OF)
    text = (await server.get(STREAMS)).text
    cells = list(csv.DictReader(io.StringIO(text, newline="")))
    assert cells[0]["memo"] == f"'{first}cmd|'/c calc'!A1"
    assert cells[1]["memo"] == "a=b"
    assert cells[2]["depositAmount"] == "'-0.0000005"
    assert all(not cell.startswith(tuple("=+-@\t\r")) for row in cells for cell in row.values())
    assert rows(text) == await listed(server, "")


async def test_api_streams_and_absent_members_are_empty_cells(start, store):
    await plant(store, [state(status=StreamStatus.COMPLETED)], contract_id=None)
    server = await start(store=store, clock=lambda: AS_OF)
    (row,) = csv.DictReader(io.StringIO((await server.get(STREAMS)).text, newline=""))
    assert {name for name, cell in row.items() if not cell} == {
        *("contractId", "chainStreamId", "cancelledAt", "pausedAt", "closedAt", "memo", "metadata", "ledger"),
    }


def events_in(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.content == b"" or answer.content.endswith(b"\n")
    return [json.loads(line) for line in answer.content.split(b"\n")[:-1]]


EVENT_QUERIES = [
    "",
    "after=3",
    "after=9223372036854775807",
    f"streamId={stream(1)}",
    "event=contract.updated",
    f"contractId={SECOND}",
    "ledgerFrom=12&ledgerTo=20",
    f"ledgerTo=20&event=stream.created&contractId={FIRST}",
]


@pytest.mark.parametrize("page_rows", [1, 2, 500])
async def test_the_ndjson_says_what_the_log_says(server, monkeypatch, page_rows: int):
    monkeypatch.setattr(exports, "PAGE_ROWS", page_rows)
    for query in EVENT_QUERIES:
        answer = await server.get(f"{EVENTS}?{query}")
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["content-disposition"] == 'attachment; filename="events.ndjson"'
        assert events_in(answer) == (await server.get(f"/api/events?limit=1000&{query}")).json()["events"], query


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        (f"{STREAMS}?limit=5&cursor=x", ["cursor", "limit"]),
        (f"{STREAMS}?status=x&sender=y&recipient=z&contractId={ALICE}&order=up&asOf=-1", None),
        (f"{EVENTS}?limit=5", ["limit"]),
        (f"{EVENTS}?after=x&streamId=y&event=z&contractId=a&ledgerFrom=b&ledgerTo=c", None),
        (f"{EVENTS}?ledgerFrom=5&ledgerTo=4", ["ledgerTo"]),
        (f"{EVENTS}?after=1&after=2", ["after"]),
    ],
)
async def test_wrong_parameters_are_refused_by_name(server, url: str, wrong: list[str] | None):
    for method in ("GET", "HEAD"):
        answer = await server.request(method, url)
        assert answer.status_code == 400
    answer = await server.get(url)
    names = wrong or sorted(pair.partition("=")[0] for pair in url.partition("?")[2].split("&"))
    assert sorted(detail["field"] for detail in answer.json()["details"]) == names


async def test_head_answers_the_headers_and_reads_nothing(start, store):
    await plant_many(store, streams=10, events=10)
    counting = Counting(store)
    server = await start(store=counting)
    for url in (STREAMS, EVENTS):
        async with server.client() as client:
            head = await client.head(url)
            assert (head.status_code, head.content, counting.pages) == (200, b"", 0)
            assert "content-length" not in head.headers
            got = await client.get(url)  # on the same connection
            assert counting.pages == 1
            counting.pages = 0
        assert got.headers["content-type"] == head.headers["content-type"]
        assert got.headers["content-disposition"] == head.headers["content-disposition"]


async def opened(backend: Any, url: str, query: tuple[tuple[str, str], ...] = ()) -> AsyncGenerator[bytes, None]:
    handler = exports.streams_csv if url == STREAMS else exports.events_ndjson
    reply = await handler(Request(method="GET", query=query, request_id="test"), backend)
    assert reply.chunks is not None
    return reply.chunks


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_streams_end_with_those_of_the_start(server, store, record, monkeypatch, order: str):
    """New ones come right behind the start, before the first page is read, and before each other page."""
    monkeypatch.setattr(exports, "PAGE_ROWS", 2)
    growing = Counting(store)

    async def grow(read: Any, wanted: Any) -> Any:
        growing.pages += 1
        number = growing.pages * 100
        await record(batch(*(created(number + n, ledger=number + n) for n in range(10))))
        return await read(wanted)

    monkeypatch.setattr(growing, "_page", grow)
    server.backend.store = growing
    chunks = await opened(server.backend, STREAMS, (("order", order),))
    text = b"".join([chunk async for chunk in chunks]).decode()
    wanted = [*(stream(n) for n in range(5)), stream(0, SECOND)]
    assert [row["id"] for row in rows(text)] == (wanted if order == "asc" else wanted[::-1])


async def test_events_end_with_those_of_the_start_however_fast_the_log_grows(server, record, monkeypatch):
    """A page of events is added before each page is read: an export that chased them would never end."""
    monkeypatch.setattr(exports, "PAGE_ROWS", 2)
    until = await server.backend.store.position()
    growing = Counting(server.backend.store)
    number = 1000

    async def grow(read: Any, wanted: Any) -> Any:
        nonlocal number
        growing.pages += 1
        assert growing.pages <= until
        await record(batch(*(created(number + n, ledger=number + n) for n in range(3))))
        number += 3
        return await read(wanted)

    monkeypatch.setattr(growing, "_page", grow)
    server.backend.store = growing
    chunks = await opened(server.backend, EVENTS)
    lines = b"".join([chunk async for chunk in chunks]).splitlines()
    assert [int(json.loads(line)["position"]) for line in lines] == list(range(1, until + 1))


@pytest.mark.parametrize("url", [STREAMS, EVENTS])
async def test_a_page_is_read_when_the_reader_has_taken_the_one_before(start, store, url: str):
    await plant_many(store, streams=20_500, events=20_500, filling=200)
    counting = Counting(store)
    server = await start(store=counting, clock=lambda: AS_OF)
    chunks = await opened(server.backend, url)
    taken = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            taken += chunk.count(b"\n")
            assert len(chunk) < exports.PIECE_BYTES + 2000
            # The rest of the page, and the one that the piece has begun to take from.
            assert counting.pages * exports.PAGE_ROWS <= taken + 2 * exports.PAGE_ROWS
    assert taken == 20_500 + (url == STREAMS)
    assert counting.pages == 42


async def test_a_slow_client_slows_the_reading(start, store):
    """What the server has read is never more than the client took, a page, and what the kernel holds for them."""
    await plant_many(store, events=24_000, filling=2000)
    counting = Counting(store)
    server = await start(store=counting)
    page_bytes, in_flight = exports.PAGE_ROWS * 2000, 12 << 20
    taken = lines = 0
    async with await server.connect() as client:
        await client.send_all(f"GET {EVENTS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        with trio.fail_after(60):
            while data := await client.receive_some(1 << 16):
                taken += len(data)
                lines += data.count(b"\n{")
                assert counting.pages * page_bytes <= taken + in_flight + page_bytes
    assert taken > 4 * in_flight  # there was more to read ahead than could be
    assert counting.pages == 49


async def test_failures_before_the_first_byte_are_ordinary_answers(start, store):
    for url in (STREAMS, EVENTS):
        server = await start(store=Counting(store, fail_at=1))
        answer = await server.get(url)
        assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")
        assert answer.headers["content-type"] == "application/json"


async def drained(answer: httpx.Response, into: bytearray) -> None:
    async for chunk in answer.aiter_bytes():
        into += chunk


@pytest.mark.parametrize("url", [STREAMS, EVENTS])
async def test_a_later_failure_breaks_the_connection_and_is_logged(start, store, url: str):
    """The client has the beginning, and knows that it is not the whole."""
    await plant_many(store, streams=3000, events=3000)
    server = await start(store=Counting(store, fail_at=4))
    received = bytearray()
    async with server.client() as client, client.stream("GET", url) as answer:
        assert answer.status_code == 200
        with capture_logs() as lines, pytest.raises(httpx.RemoteProtocolError):
            await drained(answer, received)
    assert 0 < received.count(b"\n") <= 3 * exports.PAGE_ROWS + 1
    (line,) = [line for line in lines if line["event"] == "http.export_broken"]
    assert (line["rows"], line["request_id"]) == (3 * exports.PAGE_ROWS, answer.headers["x-request-id"])


async def test_a_client_that_leaves_ends_the_reading(start, store, monkeypatch):
    await plant_many(store, events=20_000, filling=2000)
    made, ended = exports._chunks, trio.Event()

    async def watched(*args: Any, **options: Any) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(made(*args, **options)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            ended.set()

    monkeypatch.setattr(exports, "_chunks", watched)
    counting = Counting(store)
    server = await start(store=counting)
    async with server.client() as client, client.stream("GET", EVENTS) as answer:
        assert answer.status_code == 200
    with trio.fail_after(10):
        await ended.wait()
    assert counting.pages < 40
