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
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from fluxora.errors import DecodeError
from fluxora.http.validation import Problems
from fluxora.protocol import contract
from fluxora.protocol.addresses import is_contract
from fluxora.protocol.contract import ContractEvent

MAX_EVENTS = 1000
MAX_TOPICS = 16  # the network allows 4; room for what it may allow later
_MAX_U32 = 2**32 - 1
_EVENT_ID = re.compile(r"([0-9]{19})-([0-9]{10})")
_HASH = re.compile(r"[0-9A-Fa-f]{64}")
_SYMBOL = re.compile(r"[A-Za-z0-9_]{1,32}")
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


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
        fields = _Fields(f"events[{index}]", item, problems)
        event = _read_event(fields, seen, hashes)
        if event is not None:
            events.append(event)
    problems.raise_if_any("The batch is not valid; nothing of it was stored")
    events.sort(key=lambda event: event.id)
    return Batch(events, hashes)


class _Fields:
    """The members of one event; each reader notes what is wrong and returns None."""

    def __init__(self, where: str, item: Any, problems: Problems) -> None:
        self._where = where
        self._problems = problems
        self._before = len(problems.found)
        self.members: dict[str, Any] = {}
        if isinstance(item, dict):
            self.members = item
            self.is_object = True
        else:
            problems.add(where, "INVALID_TYPE", "An object is needed")
            self.is_object = False

    @property
    def sound(self) -> bool:
        """True while nothing was noted for this event."""
        return len(self._problems.found) == self._before

    def fail(self, name: str, code: str, message: str) -> None:
        self._problems.add(f"{self._where}.{name}", code, message)

    def member(self, name: str, kind: type, expected: str) -> Any:
        """The member if it is there and of its JSON type (a boolean is no number)."""
        value = self.members.get(name)
        if value is None:
            self.fail(name, "REQUIRED", f"{expected} is needed")
            return None
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(name, "INVALID_TYPE", f"{expected} is needed")
            return None
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value: int | None = self.member(name, int, f"A whole number from {low} to {high}")
        if value is not None and not low <= value <= high:
            self.fail(name, "OUT_OF_RANGE", f"A whole number from {low} to {high} is needed")
            return None
        return value

    def text(self, name: str, is_right: Callable[[str], object], expected: str) -> str | None:
        value: str | None = self.member(name, str, expected)
        if value is not None and not is_right(value):
            self.fail(name, "INVALID_FORMAT", f"{expected} is needed")
            return None
        return value


def _read_event(fields: _Fields, seen: set[str], hashes: dict[int, str]) -> ContractEvent | None:
    if not fields.is_object:
        return None
    ledger = fields.integer("ledger", 1, 2**31 - 1)  # a TOID holds 31 bits of it
    event_id = _event_id(fields, ledger, seen)
    _ledger_hash(fields, ledger, hashes)
    contract_id = fields.text("contractId", is_contract, "A contract id (C...) with a valid checksum")
    tx_hash = fields.text("txHash", _HASH.fullmatch, "A transaction hash of 64 hex digits")
    for name in ("txIndex", "operationIndex", "eventIndex"):
        fields.integer(name, 0, _MAX_U32)
    closed_at = _happened_at(fields)
    if "topicXdr" in fields.members or "valueXdr" in fields.members:
        topics, value = _raw_form(fields)
        if event_id is None or ledger is None or contract_id is None or tx_hash is None or closed_at is None:
            return None
        if topics is None or value is None or not fields.sound:
            return None
        return contract.decode_xdr(
            id=event_id,
            ledger=ledger,
            closed_at=closed_at,
            contract_id=contract_id,
            tx_hash=tx_hash.lower(),
            topics=topics,
            value=value,
        )
    topic = fields.text("topic", _SYMBOL.fullmatch, "The event's name, 1-32 of A-Z a-z 0-9 _,")
    payload = fields.member("payload", dict, "An object")
    if topic is None or payload is None:
        return None
    try:
        # Fields that failed above have stand-ins here: what is wrong with the payload is told in the same answer.
        event = contract.decode_named(
            id=event_id or "",
            ledger=ledger or 0,
            closed_at=closed_at or 0,
            contract_id=contract_id or "",
            tx_hash=(tx_hash or "").lower(),
            topic=topic,
            payload=payload,
        )
    except DecodeError as error:
        fields.fail("payload", "INVALID_PAYLOAD", str(error))
        return None
    return event if fields.sound else None


def _event_id(fields: _Fields, ledger: int | None, seen: set[str]) -> str | None:
    event_id = fields.text("eventId", _is_event_id, "The network's event id, 19 digits, a hyphen and 10 digits,")
    if event_id is None:
        return None
    if event_id in seen:
        fields.fail("eventId", "DUPLICATE_ID", "The id stands twice in this batch")
        return None
    seen.add(event_id)
    if ledger is not None and int(event_id[:19]) >> 32 != ledger:
        fields.fail("eventId", "LEDGER_MISMATCH", f"The id belongs to ledger {int(event_id[:19]) >> 32}, not {ledger}")
        return None
    return event_id


def _is_event_id(text: str) -> bool:
    match = _EVENT_ID.fullmatch(text)
    return match is not None and int(match[1]) < 2**63 and int(match[2]) <= _MAX_U32


def _ledger_hash(fields: _Fields, ledger: int | None, hashes: dict[int, str]) -> None:
    ledger_hash = fields.text("ledgerHash", _HASH.fullmatch, "A ledger hash of 64 hex digits")
    if ledger_hash is None or ledger is None:
        return
    if hashes.setdefault(ledger, ledger_hash.lower()) != ledger_hash.lower():
        fields.fail("ledgerHash", "CONFLICTING_HASH", f"Ledger {ledger} has another hash earlier in this batch")


def _happened_at(fields: _Fields) -> int | None:
    expected = "The ledger's close time in RFC 3339"
    text = fields.text("happenedAt", _RFC3339.fullmatch, expected)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text[:19].upper() + _offset(text))
        seconds = int(moment.astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        fields.fail("happenedAt", "INVALID_FORMAT", f"{expected} is needed")
        return None
    if seconds < 0:
        fields.fail("happenedAt", "OUT_OF_RANGE", "A time since 1970 is needed")
        return None
    return seconds


def _offset(text: str) -> str:
    """The zone designator; fractions of a second are cut off, for ledgers close on whole ones."""
    return "+00:00" if text[-1] in "Zz" else text[-6:]


def _raw_form(fields: _Fields) -> tuple[list[bytes] | None, bytes | None]:
    for name in ("topic", "payload"):
        if name in fields.members:
            fields.fail(name, "CONFLICTING_FORM", "An event is decoded (topic, payload) or raw (topicXdr, valueXdr)")
    listed = fields.member("topicXdr", list, "A list of base64 ScVals")
    value_text = fields.member("valueXdr", str, "A base64 ScVal")
    value = None if value_text is None else _base64(fields, "valueXdr", value_text)
    if listed is None:
        return None, value
    if len(listed) > MAX_TOPICS:
        fields.fail("topicXdr", "OUT_OF_RANGE", f"At most {MAX_TOPICS} topics are taken")
        return None, value
    topics = [_base64(fields, f"topicXdr[{index}]", text) for index, text in enumerate(listed)]
    present = [topic for topic in topics if topic is not None]
    return (present if len(present) == len(topics) else None), value


def _base64(fields: _Fields, name: str, text: Any) -> bytes | None:
    try:
        if isinstance(text, str):
            return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        pass
    fields.fail(name, "INVALID_FORMAT", "A base64 ScVal is needed")
    return None
