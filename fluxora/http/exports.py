"""GET /api/export/streams.csv and /api/export/events.ndjson: whole lists, streamed page by page.

Promises
- No more than a page of rows is in memory, however long the list and however slow the reader.
- An export ends at the log's position at its start: it does not chase a tip that moves.
- What fails before the first byte is an ordinary error answer. What fails later breaks the connection, so that half a
  list is never taken for a whole one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Annotated, Any, TypeVar

import msgspec
import trio
from msgspec import Meta
from msgspec.structs import replace

from fluxora import logs
from fluxora.errors import Unavailable
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request
from fluxora.http.fields import Address, ContractId, EventName, Ledger, Order, Position, Status, StreamId, UnixSeconds
from fluxora.http.models import check_ledgers
from fluxora.http.reading import Draft, read_query
from fluxora.protocol.messages import LogEvent, StreamRecord, StreamView, encode_event, view
from fluxora.storage.records import EventQuery, StreamQuery

CSV_COLUMNS = StreamView.__struct_encode_fields__
PAGE_ROWS = 500
PAGE_BYTES = 1 << 20  # of payloads
PIECE_BYTES = 1 << 15  # rendered at a time, a few milliseconds of work; other tasks run in between

_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Row = TypeVar("Row", StreamRecord, LogEvent)

_log = logs.get("http")


class ExportStreams(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The streams that are wanted: the filters of their list, without pages."""

    status: Annotated[Status | None, Meta(description="Only streams of this status.")] = None
    sender: Annotated[Address | None, Meta(description="Only streams of this sender.")] = None
    recipient: Annotated[Address | None, Meta(description="Only streams of this recipient.")] = None
    contract_id: Annotated[ContractId | None, Meta(description="Only streams of this contract.")] = None
    order: Order = "asc"
    as_of: Annotated[UnixSeconds | None, Meta(description="Unix seconds that amounts are for; now if absent.")] = None


class ExportEvents(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The events that are wanted: the filters of the log, without pages. Ledger bounds are inclusive."""

    after: Annotated[Position, Meta(description="Only events behind this position.")] = 0
    stream_id: Annotated[StreamId | None, Meta(description="Only events of this stream.")] = None
    event: Annotated[EventName | None, Meta(description="Only events of this name.")] = None
    contract_id: Annotated[ContractId | None, Meta(description="Only events of this contract.")] = None
    ledger_from: Annotated[Ledger | None, Meta(description="Only events of this ledger or later ones.")] = None
    ledger_to: Annotated[Ledger | None, Meta(description="Only events of this ledger or earlier ones.")] = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The range of ledgers is one."""
        check_ledgers(draft)


async def streams_csv(request: Request, backend: Backend) -> Reply:
    """The streams that GET /api/streams lists, as RFC 4180 with a header row; columns are the Stream's members.

    Each is shown as recorded when its page is read, valued at `asOf` (the second of the request where absent).

    Raises:
        BadRequest: a parameter is wrong.
        StorageUnavailable: the database cannot answer.
    """
    asked = read_query(ExportStreams, request.query)
    as_of = int(backend.clock()) if asked.as_of is None else asked.as_of
    descending = asked.order == "desc"
    wanted = StreamQuery(
        status=asked.status,
        sender=asked.sender,
        recipient=asked.recipient,
        contract_id=asked.contract_id,
        descending=descending,
        limit=PAGE_ROWS,
    )
    headers = _headers("text/csv; charset=utf-8; header=present", "streams.csv")
    if request.method == "HEAD":
        return Reply(200, headers, chunks=_nothing())
    began = await backend.store.head()
    until = began.position

    async def page(last: StreamRecord | None) -> list[StreamRecord]:
        beyond = until + 1 if descending else None
        found = await backend.store.streams(replace(wanted, after=last.created_position if last else beyond))
        if last is not None and len(found) < PAGE_ROWS and (await backend.store.head()).epoch != began.epoch:
            raise Unavailable("The network began anew during the export, and its old streams left the list")
        return [record for record in found if record.created_position <= until]

    def line(record: StreamRecord) -> bytes:
        return _csv_line(msgspec.structs.astuple(view(record, as_of)))

    chunks = _chunks(
        await page(None),
        page,
        line,
        full=lambda rows: len(rows) == PAGE_ROWS,
        header=_csv_line(CSV_COLUMNS),
        request_id=request.request_id,
    )
    return Reply(200, headers, chunks=chunks)


async def events_ndjson(request: Request, backend: Backend) -> Reply:
    """The log that GET /api/events shows, one Event a line.

    Raises:
        BadRequest: a parameter is wrong.
        StorageUnavailable: the database cannot answer.
    """
    asked = read_query(ExportEvents, request.query)
    wanted = EventQuery(limit=PAGE_ROWS, most_bytes=PAGE_BYTES, **msgspec.structs.asdict(asked))
    headers = _headers("application/x-ndjson", "events.ndjson")
    if request.method == "HEAD":
        return Reply(200, headers, chunks=_nothing())
    until = await backend.store.position()

    async def page(last: LogEvent | None) -> list[LogEvent]:
        found = await backend.store.events(replace(wanted, after=last.position) if last else wanted)
        return [event for event in found if event.position <= until]

    def line(event: LogEvent) -> bytes:
        return encode_event(event) + b"\n"

    return Reply(
        200, headers, chunks=_chunks(await page(None), page, line, full=wanted.is_full, request_id=request.request_id)
    )


async def _chunks(
    page: list[Row],
    next_page: Callable[[Row], Awaitable[list[Row]]],
    line: Callable[[Row], bytes],
    *,
    full: Callable[[list[Row]], bool],
    header: bytes = b"",
    request_id: str,
) -> AsyncGenerator[bytes, None]:
    """The body in pieces of about `PIECE_BYTES`, each made when it is asked for, so that the reader sets the pace.

    `next_page` gives the rows behind the last one of a page; what comes behind one that is not `full` is not asked for.
    """
    piece, rows = bytearray(header), 0
    try:
        while page:
            for row in page:
                piece += line(row)
                if len(piece) >= PIECE_BYTES:
                    await trio.lowlevel.checkpoint()
                    yield bytes(piece)
                    piece.clear()
            rows += len(page)
            if not full(page):
                break
            last = page[-1]
            page.clear()  # before the next one is read, not after
            page = await next_page(last)
        if piece:
            yield bytes(piece)
    except Exception as error:
        _log.error("http.export_broken", request_id=request_id, rows=rows, error=repr(error))
        raise


async def _nothing() -> AsyncGenerator[bytes, None]:
    """The body of an answer to HEAD: streamed like the one that GET has, so that no length is claimed for it."""
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece


def _headers(media_type: str, file_name: str) -> tuple[tuple[str, str], ...]:
    return ("content-type", media_type), ("content-disposition", f'attachment; filename="{file_name}"')


def _csv_line(values: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow([_cell(value) for value in values])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """Text as it is, numbers in digits, maps as JSON, nothing for None.

    Spreadsheets run a cell that begins like a formula: an apostrophe in front of it makes it text.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    else:
        text = str(value) if isinstance(value, int) else msgspec.json.encode(value).decode()
    return f"'{text}" if text.startswith(_FORMULA) else text
