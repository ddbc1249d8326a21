"""What leaves the house: a stream as REST shows it, an event as every transport carries it.

Amounts are decimal strings, positions and on-chain ids strings too (they outgrow a JSON number); the `At` of a record
is RFC 3339 UTC with milliseconds, a stream's own times are Unix seconds. Field names are camelCase.

Reading of the rules where they leave room
- The amounts of a stream are those of its state as recorded, valued at `asOf`. Terminal streams no longer change: at
  any `asOf` after the start a completed one has streamed its deposit, a cancelled one what it had when cancelled.
- `remainingAmount` is what is still to be streamed: the deposit less what is streamed, and 0 once the stream is
  completed or cancelled (the sender has the rest back).
- `sender` and `recipient` are null while they are unknown, never missing.
- Bytes (memo, metadata, hashes) are text where they are UTF-8, else base64.
"""

from __future__ import annotations

import re
from base64 import b64encode
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from fluxora.protocol.amounts import DEFAULT_DECIMALS, format_amount
from fluxora.protocol.contract import AMOUNT_FIELDS, CORRECTED, UNKNOWN
from fluxora.protocol.streams import (
    StreamKind,
    StreamState,
    StreamStatus,
    accrued,
    depletion_time,
    withdrawable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fluxora.protocol.contract import ContractEvent

STATUS_NAMES: Final = tuple(status.name.lower() for status in StreamStatus)
"""The wire's name of each status, by its number."""
KIND_NAMES: Final = tuple(kind.name.lower() for kind in StreamKind)
"""The wire's name of each kind, by its number."""
_PAUSED, _COMPLETED, _CANCELLED = StreamStatus.PAUSED, StreamStatus.COMPLETED, StreamStatus.CANCELLED
_NO_END: Final = 2**64 - 1


class StreamRecord(msgspec.Struct, frozen=True, gc=False):
    """A stream as stored: its state, where it comes from, and where in the log it stands.

    `created_at` and `updated_at` are Unix milliseconds; `position` is the last event applied to it, `created_position`
    its first. `contract_id` and `ledger` are None for a stream of origin "api".
    """

    id: str
    origin: Literal["chain", "api"]
    epoch: int
    contract_id: str | None
    decimals: int
    state: StreamState
    position: int
    created_position: int
    ledger: int | None
    created_at: int
    updated_at: int


class StreamView(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """The wire's Stream. Fields that default to None are left out of the JSON while they are None."""

    id: str
    origin: Literal["chain", "api"]
    contract_id: str | None = None
    chain_stream_id: str | None = None
    sender: str | None
    recipient: str | None
    deposit_amount: str
    rate_per_second: str
    withdrawn_amount: str
    streamed_amount: str
    withdrawable_amount: str
    remaining_amount: str
    start_time: int
    cliff_time: int
    end_time: int
    kind: str
    status: str
    cancelled_at: int | None = None
    paused_at: int | None = None
    closed_at: int | None = None
    depletion_time: int | None = None
    memo: str | None = None
    metadata: dict[str, str] | None = None
    position: str
    ledger: int | None = None
    as_of: int
    created_at: str
    updated_at: str


class LogEvent(msgspec.Struct, frozen=True, gc=False):
    """One row of the log. `payload` is JSON text, carried verbatim; `timestamp_ms` is Unix milliseconds."""

    position: int
    event_id: str
    event: str
    action: str
    stream_id: str | None
    ledger: int | None
    tx_hash: str | None
    contract_id: str | None
    timestamp_ms: int
    payload: bytes


class _WireEvent(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    event: str
    event_id: str
    stream_id: str | None
    position: str
    action: str
    ledger: int | None = None
    tx_hash: str | None = None
    contract_id: str | None = None
    timestamp: str
    payload: msgspec.Raw


_encode = msgspec.json.Encoder().encode


def stream_id(contract_id: str, chain_id: int, epoch: int) -> str:
    """Public id of the contract's stream `chain_id`; networks that began anew add their epoch from the second on."""
    base = f"stream-{contract_id[:12].lower()}-{chain_id}"
    return base if epoch < 2 else f"{base}-e{epoch}"


@lru_cache(maxsize=4096)  # rows of one ledger, and of one page, share their times
def timestamp_text(unix_ms: int) -> str:
    """RFC 3339 UTC with milliseconds: 2026-01-01T00:00:00.000Z."""
    seconds, milliseconds = divmod(unix_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def octets_text(octets: bytes) -> str:
    """Bytes from the ledger as text where they are UTF-8, else as base64."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return b64encode(octets).decode()


class Worth(msgspec.Struct, frozen=True, gc=False):
    """What a stream is worth at one second, in base units; `depletion_time` (Unix seconds) is that of its schedule."""

    streamed: int
    withdrawable: int
    remaining: int
    depletion_time: int | None


def worth(record: StreamRecord, as_of: int) -> Worth:
    """The stream valued at `as_of` (Unix seconds, past or future): the one source of what any answer says of it."""
    state = record.state
    if record.origin == "api" and state.end_time == 0:
        state = msgspec.structs.replace(state, end_time=_NO_END)  # 0 says that there is no end
    status = state.status
    started = as_of >= state.start_time
    streamed = accrued(state, as_of) if started else 0
    ended = status == _COMPLETED or status == _CANCELLED  # noqa: PLR1714  # half the time of a tuple
    return Worth(
        streamed,
        withdrawable(state, as_of, streamed) if started else 0,
        0 if ended else state.deposit_amount - streamed,
        depletion_time(state),
    )


def shown_depletion(record: StreamRecord, value: Worth) -> int | None:
    """The depletion time that answers show: none where a stream without an end has hundreds of millions of years left.

    Beyond them there may be no more than the end that stands for none.
    """
    depletion = value.depletion_time
    if depletion is not None and depletion > _SAFE and record.origin == "api" and record.state.end_time == 0:
        return None
    return depletion


def view(record: StreamRecord, as_of: int) -> StreamView:
    """The stream as a client sees it, its amounts valued at `as_of` (Unix seconds, past or future)."""
    state, decimals = record.state, record.decimals
    value = worth(record, as_of)
    on_chain = record.origin == "chain"
    status, metadata = state.status, state.metadata
    return StreamView(
        id=record.id,
        origin=record.origin,
        contract_id=record.contract_id,
        chain_stream_id=str(state.stream_id) if on_chain else None,
        sender=state.sender or None,
        recipient=state.recipient or None,
        deposit_amount=format_amount(state.deposit_amount, decimals),
        rate_per_second=format_amount(state.rate_per_second, decimals),
        withdrawn_amount=format_amount(state.withdrawn_amount, decimals),
        streamed_amount=format_amount(value.streamed, decimals),
        withdrawable_amount=format_amount(value.withdrawable, decimals),
        remaining_amount=format_amount(value.remaining, decimals),
        start_time=state.start_time,
        cliff_time=state.cliff_time,
        end_time=state.end_time,
        kind=KIND_NAMES[state.kind],
        status=STATUS_NAMES[status],
        cancelled_at=state.cancelled_at,
        paused_at=state.paused_at_timestamp if status == _PAUSED else None,
        closed_at=state.closed_at,
        depletion_time=shown_depletion(record, value),
        memo=None if state.memo is None else octets_text(state.memo),
        metadata=None if metadata is None else {octets_text(k): octets_text(v) for k, v in metadata.items()},
        position=str(record.position),
        ledger=record.ledger,
        as_of=as_of,
        created_at=timestamp_text(record.created_at),
        updated_at=timestamp_text(record.updated_at),
    )


def encode_view(record: StreamRecord, as_of: int) -> bytes:
    """`view` as JSON, one line."""
    return _encode(view(record, as_of))


def payload_for(record: StreamRecord | None, event: ContractEvent, *, decimals: int = DEFAULT_DECIMALS) -> bytes:
    """The payload stored with a chain event: the stream after it, valued at its second, plus `change`.

    `record` is None where the event concerns no stream, or one whose creation was not seen: `change` stands alone then,
    its amounts in `decimals` (elsewhere the record's). A delegated share has two rows of one event, the parent's and
    the child's: call once for each record. JSON, one line.
    """
    if record is None:
        return b'{"change":' + _encode(change_of(event, decimals)) + b"}"
    return with_change(encode_view(record, event.closed_at), change_of(event, record.decimals))


def with_change(stream: bytes, change: dict[str, Any]) -> bytes:
    """An event's payload: the JSON of the stream after it (`encode_view`) plus `change`. JSON, one line."""
    return b"".join((stream[:-1], b',"change":', _encode(change), b"}"))


def reverted_payload(record: StreamRecord | None, reverts: Sequence[str], as_of: int) -> bytes:
    """The payload of `stream.reverted`. JSON, one line.

    `stream` is the restored stream valued at `as_of`, null where it no longer exists; `reverts` are the ids of the
    events that were taken back.
    """
    return _encode({"stream": None if record is None else view(record, as_of), "reverts": list(reverts)})


def encode_event(event: LogEvent) -> bytes:
    """The wire's Event on one line of JSON, the payload spliced in as it is."""
    return _encode(
        _WireEvent(
            event=event.event,
            event_id=event.event_id,
            stream_id=event.stream_id,
            position=str(event.position),
            action=event.action,
            ledger=event.ledger,
            tx_hash=event.tx_hash,
            contract_id=event.contract_id,
            timestamp=timestamp_text(event.timestamp_ms),
            payload=msgspec.Raw(event.payload),
        )
    )


_IDS: Final = frozenset(
    {"stream_id", "offer_id", "template_id", "parent_stream_id", "child_stream_id", "source_stream_id", "start_id"}
    | {"new_stream_id", "old_stream_id"}
)
_WORD: Final = re.compile("_([a-z0-9])")
_SAFE: Final = 2**53  # a JSON number beyond it does not survive most readers


@lru_cache(maxsize=1024)  # the names are the contract's; strangers' events do not come this way
def _shown_as(name: Any) -> tuple[str, bool, bool]:
    """A field's name on the wire, whether it is an amount, whether it is an id. A map's key need not be a name."""
    if not isinstance(name, str):
        return str(_plain(name)), False, False
    return _WORD.sub(lambda match: match[1].upper(), name), name in AMOUNT_FIELDS, name in _IDS


def change_of(event: ContractEvent, decimals: int) -> dict[str, Any]:
    """`change`: the decoded contract data in camelCase, amounts as decimal strings, ids as strings, times as they are.

    An unknown event is shown as it came, {"topics": [base64 XDR...], "value": base64 XDR}, or, when it came decoded,
    its name for `topics` and its fields for `value`; `error` says why the data of a known topic could not be used.
    A correction shows the ledger entry, its enums by the names that the Stream uses.
    """
    if event.action == UNKNOWN:
        return _unknown_change(event)
    change = _fields_shown(event.data, decimals)
    if event.action == CORRECTED:
        change["entry"] = entry = _fields_shown(event.data["entry"], decimals)
        for name, names in (("status", STATUS_NAMES), ("kind", KIND_NAMES)):
            number = entry.get(name)
            if isinstance(number, int) and 0 <= number < len(names):
                entry[name] = names[number]
    return change


def _fields_shown(fields: dict[str, Any], decimals: int) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in fields.items():
        wire_name, is_amount, is_id = _shown_as(name)
        kind = type(value)
        if kind is int:
            if is_amount:
                shown[wire_name] = format_amount(value, decimals)
            else:
                shown[wire_name] = str(value) if is_id or not -_SAFE < value < _SAFE else value
        else:
            shown[wire_name] = value if kind is str or value is None else _plain(value)
    return shown


def _unknown_change(event: ContractEvent) -> dict[str, Any]:
    change: dict[str, Any]
    kind, *parts = msgspec.msgpack.decode(event.raw)
    if kind == "xdr":
        change = {"topics": [b64encode(topic).decode() for topic in parts[0]], "value": b64encode(parts[1]).decode()}
    else:
        change = {"topics": _plain(event.data.get("topics", [])), "value": _plain(event.data.get("value"))}
    if "error" in event.data:
        change["error"] = event.data["error"]
    return change


def _plain(value: Any) -> Any:
    """A decoded ScVal or a pushed field as JSON can say it: bytes as text, numbers beyond 53 bits as digit strings."""
    if isinstance(value, bytes):
        return octets_text(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if type(value) is int and not -_SAFE < value < _SAFE:
        return str(value)
    return value
