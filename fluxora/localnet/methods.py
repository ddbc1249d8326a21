"""The JSON-RPC methods of a Stellar RPC node over the simulated chain: pure functions from parameters to result bytes.

Windows, cursors, limits, error codes and error texts are those of stellar-rpc v27/v28 (`get_events.go`,
`get_ledgers.go`, `get_ledger_entries.go`), quirks included: close times are strings in getEvents and getHealth but
numbers in getLedgers, a short page's cursor is the end of the searched window, and -32600 "A - B" means pruned, future,
lagging or reset alike.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec
from stellar_sdk import xdr

from fluxora.localnet.chain import Entry, Ledger, LedgerEvents
from fluxora.localnet.entries import ENTRY_TTL_LEDGERS
from fluxora.localnet.filters import FilterError, FilterParams, SegmentError, parse_filters, select
from fluxora.localnet.headers import PROTOCOL_VERSION, close_meta

LEDGER_SCAN_LIMIT = 10_000
MAX_EVENTS, DEFAULT_EVENTS = 10_000, 100
MAX_LEDGERS, DEFAULT_LEDGERS = 200, 50
MAX_ENTRY_KEYS = 200
MAX_CURSOR_TAIL = 1_048_575 << 12 | 4095  # the last transaction and operation of a ledger
MAX_EVENT_INDEX = 4_294_967_295

_Params = TypeVar("_Params", bound=msgspec.Struct)

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602

VERSION = {
    "version": "27.1.1-7e712815319140618b9be8cf0846701a6f9a2cbe",
    "commitHash": "7e712815319140618b9be8cf0846701a6f9a2cbe",
    "buildTimestamp": "2026-07-07T21:12:19",
    "captiveCoreVersion": "stellar-core 27.1.0 (3589a696b0d4ef5a2cf2124e349c671d71886d9c)",
    "protocolVersion": PROTOCOL_VERSION,
}


class RpcError(Exception):
    """A JSON-RPC error answer."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class View(Protocol):
    """What one node shows of the chain; a faulty node shows less, or something else."""

    @property
    def passphrase(self) -> str:
        """The network this node says it is on."""

    @property
    def retention(self) -> int:
        """How many ledgers it says it keeps."""

    def bounds(self) -> tuple[Ledger, Ledger]:
        """The oldest and the latest ledger it has."""

    def ledgers(self, first: int, last: int) -> list[Ledger]:
        """The ledgers of [first, last] it has, ascending."""

    def entry(self, key: str) -> Entry | None:
        """The entry under a base64 LedgerKey, as of its latest ledger."""


class Pagination(msgspec.Struct):
    """The `pagination` parameter."""

    cursor: str | None = None
    limit: int | None = None


class EventsParams(msgspec.Struct):
    """Parameters of getEvents."""

    startLedger: int | None = None  # noqa: N815 - the wire's name
    endLedger: int | None = None  # noqa: N815 - the wire's name
    filters: list[FilterParams] | None = None
    pagination: Pagination | None = None
    xdrFormat: str | None = None  # noqa: N815 - the wire's name


class LedgersParams(msgspec.Struct):
    """Parameters of getLedgers."""

    startLedger: int | None = None  # noqa: N815 - the wire's name
    pagination: Pagination | None = None
    xdrFormat: str | None = None  # noqa: N815 - the wire's name


class EntriesParams(msgspec.Struct):
    """Parameters of getLedgerEntries."""

    keys: list[str] | None = None
    xdrFormat: str | None = None  # noqa: N815 - the wire's name


def _unsigned(value: int | None, bits: int = 32) -> int:
    """A Go unsigned integer: null is zero, anything out of range cannot be read."""
    if value is None:
        return 0
    if not 0 <= value < 1 << bits:
        raise RpcError(INVALID_PARAMS, "invalid parameters", f"json: cannot unmarshal number {value} into uint{bits}")
    return value


def _check_format(name: str | None) -> None:
    if name == "json":
        raise RpcError(INVALID_PARAMS, "xdrFormat 'json' is not served here: its schema is not to be relied upon")
    if name not in (None, "", "base64"):
        raise RpcError(INVALID_PARAMS, "expected xdrFormat to be 'base64' or 'json'")


def _read(params: object, shape: type[_Params]) -> _Params:
    """Parameters by name; null means none, a list (by position) cannot be read."""
    try:
        return msgspec.convert({} if params is None else params, shape)
    except msgspec.ValidationError as error:
        raise RpcError(INVALID_PARAMS, "invalid parameters", str(error)) from error


def _dumps(result: object) -> bytes:
    return json.dumps(result, separators=(",", ":")).encode()


def get_health(view: View, _: object) -> bytes:
    """The node's bounds. A node is healthy here as long as it answers: the chain's clock is not the wall's."""
    oldest, latest = view.bounds()
    return _dumps(
        {
            "status": "healthy",
            "latestLedger": latest.sequence,
            "latestLedgerCloseTime": str(latest.closed_at),
            "oldestLedger": oldest.sequence,
            "oldestLedgerCloseTime": str(oldest.closed_at),
            "ledgerRetentionWindow": view.retention,
        }
    )


def get_network(view: View, _: object) -> bytes:
    """The passphrase and the protocol version."""
    return _dumps({"passphrase": view.passphrase, "protocolVersion": PROTOCOL_VERSION})


def get_version_info(_view: View, _: object) -> bytes:
    """The version this server speaks as."""
    return _dumps(VERSION)


def get_latest_ledger(view: View, _: object) -> bytes:
    """The latest ledger with its whole header and meta."""
    latest = view.bounds()[1]
    return _dumps(
        {
            "id": latest.hash.hex(),
            "protocolVersion": PROTOCOL_VERSION,
            "sequence": latest.sequence,
            "closeTime": str(latest.closed_at),
            "headerXdr": latest.header_xdr,
            "metadataXdr": close_meta(latest.header, latest.previous_hash),
        }
    )


def get_ledgers(view: View, params: object) -> bytes:
    """Headers and meta from `startLedger`, or behind the cursor (a ledger's sequence)."""
    request = _read(params, LedgersParams)
    page = request.pagination or Pagination()
    start, limit = _unsigned(request.startLedger), _unsigned(page.limit)
    oldest, latest = view.bounds()
    if page.cursor:
        if start:
            raise RpcError(INVALID_REQUEST, "startLedger and cursor cannot both be set")
    elif not oldest.sequence <= start <= latest.sequence:
        raise RpcError(
            INVALID_REQUEST,
            f"start ledger ({start}) must be between the oldest ledger: {oldest.sequence} "
            f"and the latest ledger: {latest.sequence} for this rpc instance",
        )
    if limit > MAX_LEDGERS:
        raise RpcError(INVALID_REQUEST, f"limit must not exceed {MAX_LEDGERS}")
    _check_format(request.xdrFormat)
    if page.cursor:
        start = _ledger_cursor(page.cursor, oldest.sequence, latest.sequence)
    found = view.ledgers(start, start + (limit or DEFAULT_LEDGERS) - 1)
    return _dumps(
        {
            "ledgers": [
                {
                    "hash": ledger.hash.hex(),
                    "sequence": ledger.sequence,
                    "ledgerCloseTime": str(ledger.closed_at),
                    "headerXdr": ledger.header_xdr,
                    "metadataXdr": close_meta(ledger.header, ledger.previous_hash),
                }
                for ledger in found
            ],
            "latestLedger": latest.sequence,
            "latestLedgerCloseTime": latest.closed_at,
            "oldestLedger": oldest.sequence,
            "oldestLedgerCloseTime": oldest.closed_at,
            "cursor": str(found[-1].sequence) if found else page.cursor or str(start - 1),
        }
    )


def _ledger_cursor(cursor: str, oldest: int, latest: int) -> int:
    if not cursor.isascii() or not cursor.isdigit() or int(cursor) >= 1 << 32:
        raise RpcError(INVALID_PARAMS, f'strconv.ParseUint: parsing "{cursor}": invalid syntax')
    start = int(cursor) + 1
    if not oldest <= start <= latest:
        raise RpcError(
            INVALID_PARAMS,
            f"cursor ('{cursor}') must be between the oldest ledger: {oldest} "
            f"and the latest ledger: {latest} for this rpc instance",
        )
    return start


def _event_cursor(cursor: str) -> tuple[int, int]:
    """A cursor "%019d-%010d" as (ledger, position inside it)."""
    toid, dash, index = cursor.partition("-")
    fits = dash and toid.isascii() and toid.isdigit() and index.isascii() and index.isdigit()
    if not fits or int(toid) >= 1 << 63 or int(index) > MAX_EVENT_INDEX:
        raise RpcError(INVALID_PARAMS, "invalid parameters", f"invalid event id {cursor}")
    tail = int(toid) & 0xFFFFFFFF
    return int(toid) >> 32, (tail >> 12) << 44 | (tail & 4095) << 32 | int(index)


def get_events(view: View, params: object) -> bytes:
    """A page of events: at most `limit`, from at most 10,000 ledgers.

    The cursor is the last event's id when the page is full, else the end of the searched window. At the tip it stays
    where it is. `endLedger` is exclusive.
    """
    request = _read(params, EventsParams)
    page = request.pagination or Pagination()
    start, end, limit = _unsigned(request.startLedger), _unsigned(request.endLedger), _unsigned(page.limit)
    after = -1
    cursor = None if page.cursor is None else _event_cursor(page.cursor)
    try:
        filters = parse_filters(request.filters or [])
    except SegmentError as error:
        raise RpcError(INVALID_PARAMS, "invalid parameters", str(error)) from error
    except FilterError as error:
        late_error: FilterError | None = error  # the other parameters are looked at first
        filters = ()
    else:
        late_error = None
    _check_format(request.xdrFormat)
    if cursor is not None:
        if start or end:
            raise RpcError(INVALID_PARAMS, "ledger ranges and cursor cannot both be set")
        start, after = cursor
    elif start == 0:
        raise RpcError(INVALID_PARAMS, "startLedger must be positive")
    if limit > MAX_EVENTS:
        raise RpcError(INVALID_PARAMS, f"limit must not exceed {MAX_EVENTS}")
    if late_error is not None:
        raise RpcError(INVALID_PARAMS, str(late_error))
    oldest, latest = view.bounds()
    if not oldest.sequence <= start <= latest.sequence:
        raise RpcError(
            INVALID_REQUEST,
            f"startLedger must be within the ledger range: {oldest.sequence} - {latest.sequence}",
        )
    limit = limit or DEFAULT_EVENTS
    stop = min(start + LEDGER_SCAN_LIMIT, latest.sequence + 1)
    stop = min(stop, end) if end else stop
    rows: list[bytes] = []
    last = (0, 0)
    for ledger in view.ledgers(start, stop - 1):
        events = ledger.events()
        if not events.positions:
            continue
        chosen = select(filters, events, after=after if ledger.sequence == start else -1, limit=limit - len(rows))
        if chosen:
            _append(rows, events, chosen)
            last = (ledger.sequence, events.positions[chosen[-1]])
            if len(rows) == limit:
                break
    next_cursor = (
        _event_id(*last)
        if len(rows) == limit
        else f"{((stop - 1) << 32) + MAX_CURSOR_TAIL:019d}-{MAX_EVENT_INDEX:010d}"
    )
    return b"".join(
        (
            b'{"events":[',
            b",".join(rows),
            (
                f'],"cursor":"{next_cursor}","latestLedger":{latest.sequence},"oldestLedger":{oldest.sequence},'
                f'"latestLedgerCloseTime":"{latest.closed_at}","oldestLedgerCloseTime":"{oldest.closed_at}"}}'
            ).encode(),
        )
    )


def _append(rows: list[bytes], events: LedgerEvents, chosen: list[int]) -> None:
    first, last = chosen[0], chosen[-1]
    if last - first + 1 == len(chosen):
        rows.extend(events.rendered[first : last + 1])
    else:
        rows.extend([events.rendered[i] for i in chosen])


def _event_id(sequence: int, position: int) -> str:
    toid = sequence << 32 | (position >> 44) << 12 | position >> 32 & 4095
    return f"{toid:019d}-{position & 0xFFFFFFFF:010d}"


def get_ledger_entries(view: View, params: object) -> bytes:
    """The entries found under the keys, in the order asked; what is absent (closed, never there) is left out."""
    request = _read(params, EntriesParams)
    _check_format(request.xdrFormat)
    keys = request.keys or []
    if len(keys) > MAX_ENTRY_KEYS:
        raise RpcError(INVALID_PARAMS, f"key count ({len(keys)}) exceeds maximum supported ({MAX_ENTRY_KEYS})")
    for i, key in enumerate(keys):
        try:
            kind = xdr.LedgerKey.from_xdr(key).type
        except Exception as error:  # the SDK raises what its reader happens to meet
            raise RpcError(INVALID_PARAMS, f"cannot unmarshal key value {key} at index {i}") from error
        if kind is xdr.LedgerEntryType.TTL:
            raise RpcError(INVALID_PARAMS, "ledger ttl entries cannot be queried directly")
    found = (view.entry(key) for key in dict.fromkeys(keys))
    return _dumps(
        {
            "entries": [
                {
                    "key": entry.key,
                    "xdr": entry.xdr,
                    "lastModifiedLedgerSeq": entry.last_modified,
                    "liveUntilLedgerSeq": entry.last_modified + ENTRY_TTL_LEDGERS,
                    "extXdr": _NO_EXTENSION,
                }
                for entry in found
                if entry is not None
            ],
            "latestLedger": view.bounds()[1].sequence,
        }
    )


_NO_EXTENSION = b64encode(b"\x00\x00\x00\x00").decode()

METHODS: dict[str, Callable[[View, Any], bytes]] = {
    "getHealth": get_health,
    "getNetwork": get_network,
    "getVersionInfo": get_version_info,
    "getLatestLedger": get_latest_ledger,
    "getLedgers": get_ledgers,
    "getEvents": get_events,
    "getLedgerEntries": get_ledger_entries,
}


def answer(view: View, method: str, params: object) -> bytes:
    """The result of a call as JSON text.

    Raises:
        RpcError: what the node answers instead.
    """
    handler = METHODS.get(method)
    if handler is None:
        raise RpcError(METHOD_NOT_FOUND, "method not found", method)
    return handler(view, params)
