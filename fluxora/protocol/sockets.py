"""What a WebSocket's client may say, what it and a reader of Server-Sent Events are told, and whom an event concerns.

Two protocols share `/ws/streams`. With `fluxora.v2` a client subscribes, and each event that it follows reaches it as
a `stream_update`. With `fluxora.broadcast.v1` it is sent every event and says nothing. Payloads go out as stored.

Reading of the rules where they leave room
- A member that is null is absent. Unknown members are ignored, but the text must be JSON in the strict sense: a key
  that stands twice, NaN, or nesting deeper than 32 is INVALID_JSON wherever it stands.
- A stream's id is 1 to 128 printable ASCII characters: who asks for a stream that cannot exist hears nothing of it.
- An event concerns the parties that its stream has after it, and those that it had before, where the event says so.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal, NoReturn

import msgspec

from fluxora.protocol.addresses import is_account_or_contract
from fluxora.protocol.messages import LogEvent, encode_event, timestamp_text

MAX_MESSAGE_BYTES: Final = 4_096
"""For the caller, who refuses what is longer with PAYLOAD_TOO_LARGE before it is parsed."""
MAX_REF: Final = 64
MAX_DEPTH: Final = 32
MAX_POSITION: Final = 2**63 - 1
SSE_COMMENT: Final = b":\n\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

# As http/strict_json.py: a string without an end is taken to the end, or each quote in it would start the search anew.
_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_STREAM_ID: Final = re.compile(r"[!-~]{1,128}")
_POSITION: Final = re.compile(r"[0-9]{1,19}")

Kind = Literal["stream", "sender", "recipient", "all"]
ServiceEvent = Literal["service.degraded", "service.recovered"]
ErrorCode = Literal[
    "PAYLOAD_TOO_LARGE",
    "RATE_LIMIT_EXCEEDED",
    "BINARY_NOT_SUPPORTED",
    "INVALID_JSON",
    "INVALID_MESSAGE",
    "UNKNOWN_TYPE",
    "SUBSCRIPTION_LIMIT",
    "FORBIDDEN",
]


class Selector(msgspec.Struct, frozen=True, gc=False):
    """What a subscription follows: a stream by its id, the streams of an address, or everything (`value` is "")."""

    kind: Kind
    value: str


ALL: Final = Selector("all", "")


class Subscribe(msgspec.Struct, frozen=True):
    """Follow `selector`, from now on, or from behind position `after`."""

    selector: Selector
    after: int | None
    ref: str | None


class Unsubscribe(msgspec.Struct, frozen=True):
    """Follow it no longer."""

    selector: Selector
    ref: str | None


class Ping(msgspec.Struct, frozen=True):
    """Asks for a pong."""

    ref: str | None


class MessageError(Exception):
    """A client's message cannot be used; the answer is `error(code, message, ref)`, and the connection stays open."""

    def __init__(self, code: ErrorCode, message: str, ref: str | None = None) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.ref = ref


# -- what a client says ------------------------------------------------------------------------------------------------


def parse(text: bytes) -> Subscribe | Unsubscribe | Ping:
    """Read one message of at most `MAX_MESSAGE_BYTES`.

    Raises:
        MessageError: INVALID_JSON, INVALID_MESSAGE or UNKNOWN_TYPE, with the message's `ref` where it has a usable one.
    """
    members = _members(text)
    ref = _ref(members.get("ref"))
    kind = members.get("type")
    if not isinstance(kind, str):
        raise MessageError("INVALID_MESSAGE", "type is needed: subscribe, unsubscribe or ping", ref)
    if kind == "ping":
        return Ping(ref)
    if kind == "subscribe":
        return Subscribe(_selector(members, ref), _after(members.get("after"), ref), ref)
    if kind == "unsubscribe":
        return Unsubscribe(_selector(members, ref), ref)
    raise MessageError("UNKNOWN_TYPE", "type must be subscribe, unsubscribe or ping", ref)


def _members(octets: bytes) -> dict[str, Any]:
    try:
        text = octets.decode()
        _check_depth(text)
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise MessageError("INVALID_JSON", "The message is not UTF-8") from error
    except ValueError as error:
        raise MessageError("INVALID_JSON", f"The message is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise MessageError("INVALID_MESSAGE", "The message must be a JSON object")
    return value


def _check_depth(text: str) -> None:
    """Count brackets outside strings; a scan, so that hostile nesting costs no stack."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MessageError("INVALID_JSON", f"The message is nested deeper than {MAX_DEPTH}")
        elif first in "]}":
            depth -= 1


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise MessageError("INVALID_JSON", "A key stands twice in one object")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise MessageError("INVALID_JSON", f"{name} is not JSON")


def _ref(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_REF:
        raise MessageError("INVALID_MESSAGE", f"ref must be a string of at most {MAX_REF} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MessageError("INVALID_JSON", "ref holds half of a surrogate pair") from error
    return value


def _selector(members: dict[str, Any], ref: str | None) -> Selector:
    given = [name for name in ("streamId", "sender", "recipient") if members.get(name) is not None]
    if len(given) != 1:
        raise MessageError("INVALID_MESSAGE", "Exactly one of streamId, sender and recipient is needed", ref)
    (name,) = given
    value = members[name]
    if name == "streamId":
        if not isinstance(value, str) or not _STREAM_ID.fullmatch(value):
            raise MessageError("INVALID_MESSAGE", 'streamId must be the id of a stream, or "*" for all', ref)
        return ALL if value == "*" else Selector("stream", value)
    if not isinstance(value, str) or not is_account_or_contract(value):
        raise MessageError(
            "INVALID_MESSAGE", f"{name} must be a Stellar address (G... or C...) with a valid checksum", ref
        )
    return Selector("sender" if name == "sender" else "recipient", value)


def _after(value: Any, ref: str | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _POSITION.fullmatch(value) or int(value) > MAX_POSITION:
        raise MessageError(
            "INVALID_MESSAGE", f"after must be a position: a string of digits, up to {MAX_POSITION}", ref
        )
    return int(value)


# -- what it is told of events -----------------------------------------------------------------------------------------


class _StreamUpdate(msgspec.Struct, frozen=True, gc=False, rename="camel", tag_field="type", tag="stream_update"):
    stream_id: str | None
    event_id: str
    payload: msgspec.Raw
    event: str
    action: str
    position: str
    ledger: int | None
    timestamp: str


class _Broadcast(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    event: str
    stream_id: str | None
    payload: msgspec.Raw
    timestamp: str


_encode = msgspec.json.Encoder().encode


def stream_update(event: LogEvent) -> bytes:
    """The event as `fluxora.v2` carries it. `streamId` and `ledger` are null where the event has none."""
    return _encode(
        _StreamUpdate(
            event.stream_id,
            event.event_id,
            msgspec.Raw(event.payload),
            event.event,
            event.action,
            str(event.position),
            event.ledger,
            timestamp_text(event.timestamp_ms),
        )
    )


def broadcast(event: LogEvent) -> bytes:
    """The event as `fluxora.broadcast.v1` carries it."""
    payload, timestamp = msgspec.Raw(event.payload), timestamp_text(event.timestamp_ms)
    return _encode(_Broadcast(event.event, event.stream_id, payload, timestamp))


def sse_opening(position: int) -> bytes:
    """How a stream of Server-Sent Events begins: how soon to come back, and the position that it begins behind.

    A client whose connection ends before its first event comes back with that, and has missed nothing.
    """
    return b"retry: 3000\nid: %d\n\n" % position


def sse(event: LogEvent) -> bytes:
    """The event as Server-Sent Events carry it: the wire's Event on one line, under its position and its name."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.position, event.event.encode(), _one_line(encode_event(event)))


def chunk(data: bytes) -> bytes:
    """Bytes (at least one) as a chunk of an HTTP/1.1 body (RFC 9112, section 7.1): the same for every connection."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _one_line(encoded: bytes) -> bytes:
    """A payload is stored on one line; were it not, a line break could only stand between its tokens."""
    if b"\n" in encoded or b"\r" in encoded:
        return encoded.replace(b"\r", b" ").replace(b"\n", b" ")
    return encoded


# -- what else it is told ----------------------------------------------------------------------------------------------


def ack(ref: str | None, position: int, *, recovered: bool) -> bytes:
    """A message was carried out. What matches above `position` will come; `recovered`: so has what was missed."""
    return _encode({"type": "ack", "ref": ref, "position": str(position), "recovered": recovered})


def pong(ref: str | None = None) -> bytes:
    """The answer to a ping."""
    return _encode({"type": "pong"} if ref is None else {"type": "pong", "ref": ref})


def reset(position: int, reason: str) -> bytes:
    """A resume point cannot be served whole: what is up to `position`, the log's, is to be read by REST."""
    return _encode({"type": "reset", "position": str(position), "reason": reason})


def sse_reset(position: int, reason: str) -> bytes:
    """`reset` as Server-Sent Events carry it. It has no id: a client's last one stays as it was."""
    return b"event: reset\ndata: %b\n\n" % _encode({"position": str(position), "reason": reason})


def error(code: ErrorCode, message: str, ref: str | None = None) -> bytes:
    """A message could not be carried out."""
    told = {"type": "error", "code": code, "message": message}
    return _encode(told if ref is None else {**told, "ref": ref})


def service(name: ServiceEvent, reason: str, timestamp_ms: int) -> bytes:
    """The state of the service has changed (`timestamp_ms`: Unix milliseconds), as `fluxora.v2` carries it."""
    return _encode({"type": name, "reason": reason, "timestamp": timestamp_text(timestamp_ms)})


def broadcast_service(name: ServiceEvent, reason: str, timestamp_ms: int) -> bytes:
    """`service` as `fluxora.broadcast.v1` carries it."""
    return _encode({"event": name, "reason": reason, "timestamp": timestamp_text(timestamp_ms)})


def sse_service(name: ServiceEvent, reason: str, timestamp_ms: int) -> bytes:
    """`service` as Server-Sent Events carry it. It has no id: a client's last one stays as it was."""
    data = _encode({"reason": reason, "timestamp": timestamp_text(timestamp_ms)})
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


# -- whom it concerns --------------------------------------------------------------------------------------------------


class _Change(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    old_sender: Any = None
    old_recipient: Any = None


class _Shown(msgspec.Struct, frozen=True, gc=False):
    sender: str | None = None
    recipient: str | None = None
    change: _Change | None = None
    stream: _Shown | None = None


class _Retraction(msgspec.Struct, frozen=True, gc=False):
    reverts: list[str]


_shown: Final = msgspec.json.Decoder(_Shown).decode
_retraction: Final = msgspec.json.Decoder(_Retraction).decode


class Concerned(msgspec.Struct, frozen=True, gc=False):
    """The parties that an event names: those that its stream has after it, and others that it had before."""

    sender: str | None = None
    recipient: str | None = None
    old_sender: str | None = None
    old_recipient: str | None = None


NOBODY: Final = Concerned()


def concerned(event: LogEvent) -> Concerned:
    """Whom the event names; a `stream.reverted` those of the stream as it is restored, nobody where it is gone."""
    if event.stream_id is None:
        return NOBODY
    shown = _shown(event.payload)
    if shown.stream is not None:
        shown = shown.stream
    change = shown.change
    if change is None or (change.old_sender is None and change.old_recipient is None):
        return Concerned(shown.sender, shown.recipient)
    return Concerned(shown.sender, shown.recipient, _text(change.old_sender), _text(change.old_recipient))


def reverted_ids(event: LogEvent) -> frozenset[str]:
    """The ids of the events that a `stream.reverted` takes back."""
    return frozenset(_retraction(event.payload).reverts)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def parties(event: LogEvent) -> tuple[str | None, str | None]:
    """Sender and recipient of the event's stream after it, None where it does not say."""
    named = concerned(event)
    return named.sender, named.recipient
