"""The pushed form of a contract event, checked field by field.

Rules
- `eventId` is the network's event id, "%019d-%010d": operation position (TOID), event index. Events are folded in the
  string order of their ids, so another form is refused, and so is one whose ledger (position >> 32) is not `ledger`.
- Each ledger has one hash in a batch; each id stands once in it.
- An event comes decoded (`topic`, `payload`) or raw (`topicXdr`, `valueXdr`), never both. Raw XDR that cannot be read
  is kept as an unknown event; a decoded event whose fields do not fit its topic is refused.
- `txIndex`, `operationIndex` and `eventIndex` must be whole numbers, and nothing is derived from them.
- Members that are not known are ignored.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fluxora.errors import DecodeError
from fluxora.http.fields import EXAMPLE_CONTRACT, Invalid, integer, of_json, of_text, text_that
from fluxora.http.reading import Draft, Problems, read_members
from fluxora.protocol import contract
from fluxora.protocol.addresses import is_contract
from fluxora.protocol.contract import ContractEvent

MAX_EVENTS = 1000
MAX_TOPICS = 16  # the network allows 4; room for what it may allow later
_MAX_U32 = 2**32 - 1
_MAX_LEDGER = 2**31 - 1  # a TOID holds 31 bits of it
_EVENT_ID = re.compile(r"([0-9]{19})-([0-9]{10})")
_HASH = re.compile(r"[0-9A-Fa-f]{64}")
_SYMBOL = re.compile(r"[A-Za-z0-9_]{1,32}")
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_WRONG = "INVALID_FORMAT"
_CLOSE_TIME = "The ledger's close time in RFC 3339"


def _is_event_id(text: str) -> bool:
    match = _EVENT_ID.fullmatch(text)
    return match is not None and int(match[1]) < 2**63 and int(match[2]) <= _MAX_U32


def _seconds(text: str) -> int:
    """Unix seconds of an RFC 3339 time; fractions of a second are cut off, for ledgers close on whole ones."""
    wrong = Invalid(_WRONG, f"{_CLOSE_TIME} is needed")
    if not _RFC3339.fullmatch(text):
        raise wrong
    offset = "+00:00" if text[-1] in "Zz" else text[-6:]
    try:
        seconds = int(datetime.fromisoformat(text[:19].upper() + offset).astimezone(UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise wrong from error
    if seconds < 0:
        raise Invalid("OUT_OF_RANGE", "A time since 1970 is needed")
    return seconds


def _octets(text: Any) -> bytes:
    try:
        if isinstance(text, str):
            return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        pass
    raise Invalid(_WRONG, "A base64 ScVal is needed")


_Hash = Annotated[
    str,
    Meta(
        pattern=f"^{_HASH.pattern}$",
        examples=["ab" * 32],
        extra={"read": text_that(_HASH.fullmatch, _WRONG, "A hash of 64 hex digits")},
    ),
]
_Index = Annotated[
    int,
    Meta(ge=0, le=_MAX_U32, description="Nothing is derived from it.", extra={"read": integer(0, _MAX_U32)}),
]
_BASE64 = {"contentEncoding": "base64", "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}


class PushedEvent(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What both forms of a pushed event have."""

    event_id: Annotated[
        str,
        Meta(
            pattern=f"^{_EVENT_ID.pattern}$",
            description="The network's event id: operation position, event index.",
            examples=["0000000042949677056-0000000000"],
            extra_json_schema={"format": "event-id"},
            extra={
                "read": text_that(_is_event_id, _WRONG, "The network's event id, 19 digits, a hyphen and 10 digits,")
            },
        ),
    ]
    ledger: Annotated[int, Meta(ge=1, le=_MAX_LEDGER, examples=[10], extra={"read": integer(1, _MAX_LEDGER)})]
    ledger_hash: _Hash
    contract_id: Annotated[
        str,
        Meta(
            pattern="^C[A-Z2-7]{55}$",
            examples=[EXAMPLE_CONTRACT],
            extra_json_schema={"format": "stellar-contract"},
            extra={"read": text_that(is_contract, _WRONG, "A contract id (C...) with a valid checksum")},
        ),
    ]
    tx_hash: _Hash
    tx_index: _Index
    operation_index: _Index
    event_index: _Index
    happened_at: Annotated[
        int,
        Meta(
            description=f"{_CLOSE_TIME}.",
            examples=["2026-01-01T00:00:00Z"],
            extra_json_schema={"pattern": f"^{_RFC3339.pattern}$", "format": "date-time"},
            extra={"read": of_text(_seconds, _CLOSE_TIME)},
        ),
    ]


class DecodedEvent(PushedEvent, frozen=True, kw_only=True, rename="camel"):
    """An event whose data is decoded."""

    topic: Annotated[
        str,
        Meta(
            pattern=f"^{_SYMBOL.pattern}$",
            description="The event's name.",
            examples=["created"],
            extra={"read": text_that(_SYMBOL.fullmatch, _WRONG, "The event's name, 1-32 of A-Z a-z 0-9 _,")},
        ),
    ]
    payload: Annotated[
        dict[str, Any],
        Meta(description="The fields of the topic by their names.", extra={"read": of_json(dict, "An object")}),
    ]


class RawEvent(PushedEvent, frozen=True, kw_only=True, rename="camel"):
    """An event as the network carries it: base64 ScVals. What cannot be read is kept as an unknown event."""

    topic_xdr: Annotated[
        list[Any],
        Meta(
            description="The topics in their order.",
            extra_json_schema={"items": {"type": "string", **_BASE64}, "maxItems": MAX_TOPICS},
            extra={"read": of_json(list, "A list of base64 ScVals")},
        ),
    ]
    value_xdr: Annotated[str, Meta(extra_json_schema=_BASE64, extra={"read": of_text(_octets, "A base64 ScVal")})]


EVENT_FORMS = (DecodedEvent, RawEvent)


class IngestRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A batch of events, decoded or raw each. Members that are not known are ignored."""

    events: Annotated[
        list[Any],
        Meta(
            min_length=1,
            max_length=MAX_EVENTS,
            extra_json_schema={
                "items": {"oneOf": [{"$ref": f"#/components/schemas/{form.__name__}"} for form in EVENT_FORMS]}
            },
        ),
    ]


class Batch(msgspec.Struct, frozen=True):
    """A checked batch: events ascending by id, and the hash of each of their ledgers."""

    events: list[ContractEvent]
    hashes: dict[int, str]


def read_batch(items: Sequence[Any]) -> Batch:
    """Check and decode every event.

    Raises:
        BadRequest: naming every failing field of every event, as `events[3].ledgerHash`.
    """
    problems = Problems()
    seen: set[str] = set()
    hashes: dict[int, str] = {}
    events: list[ContractEvent] = []
    for index, item in enumerate(items):
        where = f"events[{index}]"
        if not isinstance(item, dict):
            problems.add(where, "INVALID_TYPE", "An object is needed")
            continue
        is_raw = "topicXdr" in item or "valueXdr" in item
        draft = read_members(RawEvent if is_raw else DecodedEvent, item)
        _check_id(draft, seen)
        _check_hash(draft, hashes)
        event = _raw_event(draft, item) if is_raw else _decoded_event(draft)
        for name, code, message in draft.problems.found:
            problems.add(f"{where}.{name}", code, message)
        if event is not None and not draft.problems.found:
            events.append(event)
    problems.raise_if_any("The batch is not valid; nothing of it was stored")
    events.sort(key=lambda event: event.id)
    return Batch(events, hashes)


def _check_id(draft: Draft, seen: set[str]) -> None:
    event_id, ledger = draft.get("event_id"), draft.get("ledger")
    if event_id is None:
        return
    if event_id in seen:
        draft.fail("event_id", "DUPLICATE_ID", "The id stands twice in this batch")
        return
    seen.add(event_id)
    of_id = int(event_id[:19]) >> 32
    if ledger is not None and of_id != ledger:
        draft.fail("event_id", "LEDGER_MISMATCH", f"The id belongs to ledger {of_id}, not {ledger}")


def _check_hash(draft: Draft, hashes: dict[int, str]) -> None:
    ledger, ledger_hash = draft.get("ledger"), draft.get("ledger_hash")
    if ledger is None or ledger_hash is None:
        return
    if hashes.setdefault(ledger, ledger_hash.lower()) != ledger_hash.lower():
        draft.fail("ledger_hash", "CONFLICTING_HASH", f"Ledger {ledger} has another hash earlier in this batch")


def _decoded_event(draft: Draft) -> ContractEvent | None:
    topic, payload = draft.get("topic"), draft.get("payload")
    if topic is None or payload is None:
        return None
    try:
        # Fields that failed have stand-ins here: what is wrong with the payload is told in the same answer.
        return contract.decode_named(
            id=draft.get("event_id") or "",
            ledger=draft.get("ledger") or 0,
            closed_at=draft.get("happened_at") or 0,
            contract_id=draft.get("contract_id") or "",
            tx_hash=(draft.get("tx_hash") or "").lower(),
            topic=topic,
            payload=payload,
        )
    except DecodeError as error:
        draft.fail("payload", "INVALID_PAYLOAD", str(error))
        return None


def _raw_event(draft: Draft, item: dict[str, Any]) -> ContractEvent | None:
    for name in ("topic", "payload"):
        if name in item:
            draft.refuse(name, "CONFLICTING_FORM", "An event is decoded (topic, payload) or raw (topicXdr, valueXdr)")
    topics = _topics(draft)
    if draft.problems.found:
        return None
    values = draft.values
    return contract.decode_xdr(
        id=values["event_id"],
        ledger=values["ledger"],
        closed_at=values["happened_at"],
        contract_id=values["contract_id"],
        tx_hash=values["tx_hash"].lower(),
        topics=topics,
        value=values["value_xdr"],
    )


def _topics(draft: Draft) -> list[bytes]:
    listed = draft.get("topic_xdr") or []
    if len(listed) > MAX_TOPICS:
        draft.fail("topic_xdr", "OUT_OF_RANGE", f"At most {MAX_TOPICS} topics are taken")
        return []
    topics = []
    for index, text in enumerate(listed):
        try:
            topics.append(_octets(text))
        except Invalid as error:
            draft.refuse(f"topicXdr[{index}]", error.code, str(error))
    return topics
