"""Contract events: what the stream contract said, from any source, under one set of names.

Rules
- An event is recognised by its first topic and the shape of its data, never by a contract version number. Older
  shapes are lifted to today's field names, renamed topics to today's topic.
- Nothing is dropped: what is not recognised, or cannot be used, is kept with the action "unknown" and its raw form.
- `raw` alone is enough to build the event again (`decode_raw`), so that a rollback can refold what remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from fluxora.errors import DecodeError
from fluxora.protocol import scval
from fluxora.protocol.topics import ACTIONS, AMOUNT_FIELDS, BY_NAME, BY_XDR, CORRECTED, UNKNOWN, Topic

__all__ = [
    "ACTIONS",
    "AMOUNT_FIELDS",
    "CORRECTED",
    "UNKNOWN",
    "ContractEvent",
    "correction",
    "correction_id",
    "decode_named",
    "decode_raw",
    "decode_xdr",
]

_U64_ARM: Final = b"\0\0\0\x05"
_U64_TOPIC_BYTES: Final = 12
_U64_LIMIT: Final = 2**64
_BIG_INT: Final = 1  # MessagePack extension type: a signed big-endian integer of more than 64 bits
_PAIRS: Final = 2  # MessagePack extension type: a map as a list of its keys and values
_I64_MIN: Final = -(2**63)


class ContractEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of the contract as the pipeline carries it.

    `id` is the network's event id ("%019d-%010d": position of the operation, index of the event): within one network
    epoch its string order is the chain's order. `closed_at` is the close time of `ledger` in Unix seconds, the clock
    that the contract itself saw. `contract_id` is a C... StrKey.

    `action` is today's topic name, "unknown", or "corrected" for a ledger-entry correction. `stream_id` is the on-chain
    id of the stream that the event concerns, None where it concerns none (pauses of the contract, offers not yet
    accepted, templates) or where the topic is not known. `data` holds the decoded fields by the contract's names;
    amounts are base units, times Unix seconds. An unknown event has {"topics": [...], "value": ...}, or {"error": text}
    when it could not be decoded.
    `raw` is MessagePack of ["xdr", topics, value], ["json", topic, payload] or ["entry", data].
    """

    id: str
    ledger: int
    closed_at: int
    contract_id: str
    tx_hash: str
    action: str
    stream_id: int | None
    data: dict[str, Any]
    raw: bytes


def correction_id(ledger: int, stream_id: int, *, immutable_only: bool = False) -> str:
    """Id of a ledger-entry correction: in string order it follows every event of `ledger`.

    It is the highest cursor of the ledger (transaction 1048575, operation 4095, event 4294967295) and the stream. One
    that tells only what never changes stands one event before it: the whole entry may be of the same ledger, and must
    not be taken for a duplicate of it.
    """
    return f"{ledger << 32 | 1048575 << 12 | 4095:019d}-{4294967295 - immutable_only}-{stream_id}"


def decode_xdr(
    *,
    id: str,  # noqa: A002  # the event's own field name
    ledger: int,
    closed_at: int,
    contract_id: str,
    tx_hash: str,
    topics: Sequence[bytes],
    value: bytes,
) -> ContractEvent:
    """Decode an event from its XDR ScVals: any number of topics, none included. Never raises for what they hold."""
    action, stream_id, data = _interpret(topics, value)
    raw = _encode(("xdr", topics, value))
    return ContractEvent(id, ledger, closed_at, contract_id, tx_hash, action, stream_id, data, raw)


def decode_named(
    *,
    id: str,  # noqa: A002  # the event's own field name
    ledger: int,
    closed_at: int,
    contract_id: str,
    tx_hash: str,
    topic: str,
    payload: Mapping[str, Any],
) -> ContractEvent:
    """Decode an event that arrives as its topic's name and its fields by name.

    Integers may be digit strings (i128 does not fit a JSON number); memo and metadata are text, hashes 64 hex digits.
    A topic that is not known gives an "unknown" event.

    Raises:
        DecodeError: a known topic whose fields are missing or not of their type.
    """
    action, stream_id, data = _interpret_named(topic, payload)
    raw = _encode(("json", topic, _packable(payload)))
    return ContractEvent(id, ledger, closed_at, contract_id, tx_hash, action, stream_id, data, raw)


def correction(
    *,
    ledger: int,
    closed_at: int,
    contract_id: str,
    stream_id: int,
    entry: Mapping[str, Any],
    immutable_only: bool,
) -> ContractEvent:
    """The event that sets a stream's state from its ledger entry as of `ledger` (`entry`: the contract's fields).

    `immutable_only` says that the entry is newer than the event it was read for: only what never changes may be taken.
    """
    data = {"entry": dict(entry), "immutable_only": immutable_only}
    raw = _encode(("entry", _packable(data)))
    return ContractEvent(
        correction_id(ledger, stream_id, immutable_only=immutable_only),
        ledger,
        closed_at,
        contract_id,
        "",
        CORRECTED,
        stream_id,
        data,
        raw,
    )


def decode_raw(  # noqa: PLR0917  # in the order of the event's columns
    id: str,  # noqa: A002  # the event's own field name
    ledger: int,
    closed_at: int,
    contract_id: str,
    tx_hash: str,
    raw: bytes,
) -> ContractEvent:
    """Build an event again from its stored `raw`, equal to the one that was stored.

    Raises:
        DecodeError: `raw` was not written by this module.
    """
    try:
        kind, *parts = _decode(raw)
        if kind == "xdr":
            action, stream_id, data = _interpret(parts[0], parts[1])
        elif kind == "json":
            try:
                action, stream_id, data = _interpret_named(parts[0], parts[1])
            except DecodeError as error:  # it was accepted under looser rules: keep it
                action, stream_id, data = UNKNOWN, None, {"error": str(error)}
        elif kind == "entry":
            action, stream_id, data = CORRECTED, int(id.rpartition("-")[2]), parts[0]
        else:
            raise DecodeError(f"raw event of unknown kind {kind!r}")
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DecodeError("raw event is damaged") from error
    return ContractEvent(id, ledger, closed_at, contract_id, tx_hash, action, stream_id, data, raw)


_Interpreted = tuple[str, int | None, dict[str, Any]]


def _interpret(topics: Sequence[bytes], value: bytes) -> _Interpreted:
    topic = BY_XDR.get(topics[0]) if topics else None
    try:
        if topic is not None:
            return _recognise(topic, topics, scval.decode(value))
        return UNKNOWN, None, {"topics": [scval.decode_topic(item) for item in topics], "value": scval.decode(value)}
    except DecodeError as error:
        return UNKNOWN, _stream_of(topic, topics), {"error": str(error)}


def _stream_of(topic: Topic | None, topics: Sequence[bytes]) -> int | None:
    """The stream of a known topic whose data cannot be used: its ledger entry can still tell what happened."""
    if topic is None or topic.id_field is None or not topic.is_stream:
        return None
    try:
        topic_id = _topic_id(topics)
    except DecodeError:
        return None
    return topic_id if topic_id is not None and 0 <= topic_id < _U64_LIMIT else None


def _recognise(topic: Topic, topics: Sequence[bytes], value: Any) -> _Interpreted:
    id_field = topic.id_field
    if id_field is None:
        data, _ = topic.lift(value, None)
        holder = topic.holder
        if holder is not None and holder not in data and len(topics) > 1:
            data[holder] = scval.decode_topic(topics[1])
        topic.check(data)
        return topic.name, None, data
    topic_id = _topic_id(topics)
    data, whole = topic.lift(value, topic_id)
    stream_id = data.get(id_field, topic_id)
    if topic_id is not None and stream_id != topic_id:
        raise DecodeError(f"{topic.name}: {id_field} is not the topic's id")
    if type(stream_id) is not int:
        raise DecodeError(f"{topic.name}: no {id_field}")
    if whole:
        topic.check(data)
    else:
        data[id_field] = stream_id
        topic.check_present(data)
    return topic.name, stream_id if topic.is_stream else None, data


def _topic_id(topics: Sequence[bytes]) -> int | None:
    """The id in the second topic, None where there is none; topics beyond it repeat what the data says."""
    if len(topics) < 2:
        return None
    second = topics[1]
    if len(second) == _U64_TOPIC_BYTES and second.startswith(_U64_ARM):
        return int.from_bytes(second[4:], "big")
    value = scval.decode_topic(second)
    if type(value) is not int:
        raise DecodeError("the second topic is not an id")
    return value


def _interpret_named(name: str, payload: Mapping[str, Any]) -> _Interpreted:
    topic = BY_NAME.get(name)
    if topic is None:
        return UNKNOWN, None, {"topics": [name], "value": dict(payload)}
    data = topic.from_payload(payload)
    id_field = topic.id_field
    return topic.name, data[id_field] if topic.is_stream and id_field is not None else None, data


def _packable(value: Any) -> Any:
    """`value` with what MessagePack cannot hold as extensions: great integers, and maps whose keys are no names."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str | bytes) for key in value):
            return {key: _packable(item) for key, item in value.items()}
        return msgspec.msgpack.Ext(_PAIRS, _encode([(_packable(key), _packable(item)) for key, item in value.items()]))
    if isinstance(value, list | tuple):
        return [_packable(item) for item in value]
    if type(value) is int and not _I64_MIN <= value < _U64_LIMIT:
        return msgspec.msgpack.Ext(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    return value


def _unpack_ext(code: int, data: memoryview) -> Any:
    if code == _BIG_INT:
        return int.from_bytes(data, "big", signed=True)
    if code == _PAIRS:
        return {scval.hashable(key): item for key, item in _decode(data)}
    raise DecodeError(f"raw event holds an unknown extension {code}")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ext_hook=_unpack_ext).decode
