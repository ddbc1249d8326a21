"""Rows on their way into PostgreSQL, encoded here rather than value by value in the driver.

Log rows go as binary COPY: their columns are integers, texts and bytes, which are cheap to frame. Stream rows go as
text: they are full of NUMERICs, which text carries as they are. Numbers that no honest contract sends are clamped in
the projected columns, never in the state, so that no event can stop ingest.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from fluxora.protocol.messages import KIND_NAMES, STATUS_NAMES, LogEvent, StreamRecord
from fluxora.protocol.streams import StreamState, pack_state

EVENT_COLUMNS = (
    "position",
    "epoch",
    "timestamp_ms",
    "ledger",
    "contract_id",
    "event",
    "action",
    "event_id",
    "tx_hash",
    "stream_id",
    "payload",
    "raw",
)
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"

_HEAD = struct.Struct(">hiqiiiq").pack  # the number of fields, then length and value of position, epoch and timestamp
_LENGTH = struct.Struct(">i").pack
_LEDGER = struct.Struct(">iq").pack
_NULL = b"\xff\xff\xff\xff"
_COUNT = len(EVENT_COLUMNS)

# What changes while a stream lives; the rest of its row is written once.
CHANGING_COLUMNS = (
    "status",
    "kind",
    "sender",
    "recipient",
    "deposit_amount",
    "rate_per_second",
    "withdrawn_amount",
    "start_time",
    "cliff_time",
    "end_time",
    "position",
    "ledger",
    "created_ms",
    "updated_ms",
    "last_event_id",
    "state",
)
STREAM_COLUMNS = (
    "id",
    *CHANGING_COLUMNS,
    "origin",
    "epoch",
    "contract_id",
    "chain_stream_id",
    "decimals",
    "created_position",
)

_AMOUNT_LIMIT = 10**39 - 1
_TIME_LIMIT = 10**20 - 1


def _framed(text: str | None) -> bytes:
    if text is None:
        return _NULL
    octets = text.encode()
    if b"\0" in octets:  # the one character that a text column cannot hold
        octets = octets.replace(b"\0", b"\xef\xbf\xbd")
    return _LENGTH(len(octets)) + octets


@lru_cache(maxsize=1024)  # few contracts and few names, over and over
def _framed_names(contract_id: str | None, event: str, action: str) -> bytes:
    return _framed(contract_id) + _framed(event) + _framed(action)


def event_row(epoch: int, event: LogEvent, raw: bytes | None) -> bytes:
    """One log row as binary COPY data, in the order of EVENT_COLUMNS."""
    payload, ledger = event.payload, event.ledger
    return b"".join(
        (
            _HEAD(_COUNT, 8, event.position, 4, epoch, 8, event.timestamp_ms),
            _NULL if ledger is None else _LEDGER(8, ledger),
            _framed_names(event.contract_id, event.event, event.action),
            _framed(event.event_id),
            _framed(event.tx_hash),
            _framed(event.stream_id),
            _LENGTH(len(payload)),
            payload,
            _NULL if raw is None else _LENGTH(len(raw)) + raw,
        )
    )


def stream_row(record: StreamRecord, last_event_id: str) -> bytes:
    """A new stream's row as text COPY data, in the order of STREAM_COLUMNS."""
    state = record.state
    *texts, packed = changing(record, last_event_id)
    fields = (
        record.id,
        *texts,
        packed,
        record.origin,
        record.epoch,
        record.contract_id,
        state.stream_id,
        record.decimals,
        record.created_position,
    )
    return "\t".join([_copy_text(field) for field in fields]).encode() + b"\n"


def changing(record: StreamRecord, last_event_id: str) -> tuple[str | int | bytes | None, ...]:
    """The values of CHANGING_COLUMNS; NUMERICs as digit strings."""
    state: StreamState = record.state
    return (
        STATUS_NAMES[state.status],
        KIND_NAMES[state.kind],
        state.sender,
        state.recipient,
        _within(state.deposit_amount, _AMOUNT_LIMIT),
        _within(state.rate_per_second, _AMOUNT_LIMIT),
        _within(state.withdrawn_amount, _AMOUNT_LIMIT),
        _within(state.start_time, _TIME_LIMIT),
        _within(state.cliff_time, _TIME_LIMIT),
        _within(state.end_time, _TIME_LIMIT),
        record.position,
        record.ledger,
        record.created_at,
        record.updated_at,
        last_event_id,
        pack_state(state),
    )


def _within(value: int, limit: int) -> str:
    return str(value if -limit <= value <= limit else limit if value > 0 else -limit)


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\ufffd"})


def _copy_text(value: str | int | bytes | None) -> str:
    """One field of text COPY."""
    if type(value) is str:
        return value if value.isalnum() else value.translate(_ESCAPES)
    if type(value) is bytes:
        return "\\\\x" + value.hex()
    return "\\N" if value is None else str(value)
