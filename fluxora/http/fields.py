"""What clients may send, field by field: each type is the one source of its parsing, its errors and its JSON schema.

A type is an inner type with two things said of it: the schema of its form on the wire, and under `extra["read"]` the
`Reader` that turns that form into the inner value. A `format` in a schema names what a pattern cannot say: the
checksum of an address, the greatest position. Models (http/models.py) are made of these types, `reading` reads them,
and the OpenAPI document shows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fluxora.errors import AmountError
from fluxora.protocol.addresses import is_account_or_contract, is_contract
from fluxora.protocol.amounts import DEFAULT_DECIMALS, parse_amount
from fluxora.storage.records import StatusName

MAX_POSITION = 2**63 - 1
MAX_UNIX_S = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that RFC 3339 can write
MAX_LEDGER = 2**32 - 1
MAX_SHOWN = 100  # characters of a client's own text that an error may repeat

STATUSES: tuple[StatusName, ...] = ("active", "paused", "completed", "cancelled")
EVENT_NAMES = ("stream.created", "stream.updated", "stream.cancelled", "stream.reverted", "contract.updated")
STREAM_ID = re.compile(r"stream-[A-Za-z0-9-]{1,100}")
_PRINCIPAL = re.compile(r"anonymous|key:[a-z0-9-]{1,32}|jwt:[^\x00-\x1f]{1,255}")  # as access.py makes them
_CURSOR = re.compile(r"[A-Za-z0-9_-]{2,100}")
_MAX_DIGITS = 19

EXAMPLE_SENDER = "GBTCYEJULCFIW2KAAJA6FHE5D7NZ3SYSYORZNI6MSBGYHT4H3ZPGDWZK"
EXAMPLE_RECIPIENT = "GBFTCKGB37APXZFUXIPZ2GCWIPO3FN5SRGNV5CWZZXVMVRF7EHXPZMHE"
EXAMPLE_CONTRACT = "CCMAOCCY634R6N6QKCRF4GFVJPCR3YQGT2DER4Q5NKJOO3SPPOAR6CDB"
EXAMPLE_STREAM_ID = "stream-ccmaoccy634r-42"


class Invalid(Exception):
    """A value that its field does not take; `code` is for programs, the text for people. It never holds the value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reader(msgspec.Struct, frozen=True):
    """How one type is read: `text` from a query parameter, `json` from a JSON value. Both raise Invalid.

    `json` is given null only where `takes_null`; elsewhere null is an absent member.
    """

    text: Callable[[str], Any]
    json: Callable[[Any], Any]
    takes_null: bool = False


def of_text(read: Callable[[str], Any], expected: str) -> Reader:
    """A reader of what is text in JSON too. `expected` begins a sentence: "A stream id"."""
    message = f"{expected} is needed, as a string"

    def from_json(value: Any) -> Any:
        if not isinstance(value, str):
            raise Invalid("INVALID_TYPE", message)
        return read(value)

    return Reader(read, from_json)


def text_that(is_right: Callable[[str], object], code: str, expected: str) -> Reader:
    """A reader of text that stays as it is; `code` where `is_right` does not hold."""
    message = f"{expected} is needed"

    def read(text: str) -> str:
        if not is_right(text):
            raise Invalid(code, message)
        return text

    return of_text(read, expected)


def one_of(choices: Sequence[str]) -> Reader:
    """A reader of a closed set."""
    return text_that(frozenset(choices).__contains__, "INVALID_VALUE", f"One of {', '.join(choices)}")


def integer_text(low: int, high: int) -> Callable[[str], int]:
    """A function that reads a whole number in ASCII digits, `low` (at least 0) to `high` (at most 19 digits)."""
    message = f"A whole number from {low} to {high} is needed"

    def read(text: str) -> int:
        if not text.isdigit() or not text.isascii() or len(text) > _MAX_DIGITS:
            raise Invalid("INVALID_FORMAT", message)
        number = int(text)
        if not low <= number <= high:
            raise Invalid("OUT_OF_RANGE", message)
        return number

    return read


def integer(low: int, high: int) -> Reader:
    """A reader of what is a number in JSON, written without a fraction."""
    message = f"A whole number from {low} to {high} is needed"

    def from_json(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid("INVALID_TYPE", message)
        if not low <= value <= high:
            raise Invalid("OUT_OF_RANGE", message)
        return value

    return Reader(integer_text(low, high), from_json)


def of_json(kind: type, expected: str) -> Reader:
    """A reader of a JSON value that no query parameter can be (`kind` is dict or list); it stays as it is."""
    message = f"{expected} is needed"

    def from_text(_text: str) -> Any:
        raise Invalid("INVALID_TYPE", message)

    def from_json(value: Any) -> Any:
        if not isinstance(value, kind):
            raise Invalid("INVALID_TYPE", message)
        return value

    return Reader(from_text, from_json)


def reader_of(kind: Any) -> Reader:
    """The reader of one of the types below, for a list of it."""
    reader = kind.__metadata__[0].extra["read"]
    assert isinstance(reader, Reader)
    return reader


def list_of(item: Reader, most: int, expected: str) -> Reader:
    """A reader of a JSON list of up to `most` different values; it becomes a tuple. `expected` names them in plural."""

    def from_text(_text: str) -> Any:
        raise Invalid("INVALID_TYPE", f"A list of {expected} is needed")

    def from_json(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Invalid("INVALID_TYPE", f"A list of {expected} is needed")
        if len(value) > most:
            raise Invalid("OUT_OF_RANGE", f"At most {most} {expected} can be given, got {len(value)}")
        read: dict[Any, None] = {}
        for nth, given in enumerate(value, 1):
            try:
                member = item.json(given)
            except Invalid as error:
                raise Invalid(error.code, f"Item {nth}: {error}") from error
            if member in read:
                raise Invalid("INVALID_VALUE", f"Item {nth} stands there twice")
            read[member] = None
        return tuple(read)

    return Reader(from_text, from_json)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Invalid("INVALID_TYPE", "true or false is needed")
    return value


def _flag_text(text: str) -> bool:
    if text not in {"true", "false"}:
        raise Invalid("INVALID_VALUE", "true or false is needed")
    return text == "true"


def _yes(value: Any) -> bool:
    if value is not True:
        raise Invalid("INVALID_VALUE", "true is needed")
    return True


def _amount(low: int | None, rule: str) -> Reader:
    def read(value: Any) -> int:
        try:
            units = parse_amount(value)
        except AmountError as error:
            text = str(error)
            raise Invalid(error.field_code, text[:1].upper() + text[1:]) from error
        if low is not None and units < low:
            raise Invalid("OUT_OF_RANGE", f"Must {rule}")
        return units

    return Reader(read, read, takes_null=True)


Address = Annotated[
    str,
    Meta(
        pattern="^[GC][A-Z2-7]{55}$",
        description="A Stellar address: an account (G...) or a contract (C...), its checksum verified.",
        examples=[EXAMPLE_SENDER],
        extra_json_schema={"format": "stellar-address"},
        extra={
            "read": text_that(
                is_account_or_contract, "INVALID_ADDRESS", "A Stellar address (G... or C...) with a valid checksum"
            )
        },
    ),
]

ContractId = Annotated[
    str,
    Meta(
        pattern="^C[A-Z2-7]{55}$",
        description="A contract's address (C...), its checksum verified.",
        examples=[EXAMPLE_CONTRACT],
        extra_json_schema={"format": "stellar-contract"},
        extra={"read": text_that(is_contract, "INVALID_ADDRESS", "A contract id (C...) with a valid checksum")},
    ),
]

StreamId = Annotated[
    str,
    Meta(
        pattern=f"^{STREAM_ID.pattern}$",
        description="A stream's id.",
        examples=[EXAMPLE_STREAM_ID],
        extra_json_schema={"format": "stream-id"},
        extra={"read": text_that(STREAM_ID.fullmatch, "INVALID_FORMAT", "A stream id (stream-...)")},
    ),
]

Status = Annotated[
    StatusName,
    Meta(description="A stream's status.", examples=["active"], extra={"read": one_of(STATUSES)}),
]

Order = Annotated[
    Literal["asc", "desc"],
    Meta(description="By the position of the streams' creation.", extra={"read": one_of(("asc", "desc"))}),
]

EventName = Annotated[
    Literal["stream.created", "stream.updated", "stream.cancelled", "stream.reverted", "contract.updated"],
    Meta(description="An event's name.", extra={"read": one_of(EVENT_NAMES)}),
]

UnixSeconds = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_UNIX_S,
        description="Unix seconds.",
        examples=[1_767_225_600],
        extra={"read": integer(0, MAX_UNIX_S)},
    ),
]

Ledger = Annotated[
    int,
    Meta(
        ge=0,
        le=MAX_LEDGER,
        description="A ledger's sequence.",
        examples=[52_000_000],
        extra={"read": integer(0, MAX_LEDGER)},
    ),
]

# A number inside and a string of digits outside: it outgrows what most readers of JSON can hold.
Position = Annotated[
    int,
    Meta(
        description=f"A position of the log, 0 to {MAX_POSITION}.",
        examples=["1042"],
        extra_json_schema={"type": "string", "pattern": "^[0-9]{1,19}$", "format": "position"},
        extra={"read": of_text(integer_text(0, MAX_POSITION), "A position (a string of digits)")},
    ),
]

PrincipalId = Annotated[
    str,
    Meta(
        pattern=f"^({_PRINCIPAL.pattern})$",
        description="Whom a credential names: key:<name> or jwt:<sub>; anonymous is who has none.",
        examples=["jwt:alice"],
        extra={"read": text_that(_PRINCIPAL.fullmatch, "INVALID_FORMAT", "anonymous, key:<name> or jwt:<sub>")},
    ),
]

Yes = Annotated[
    bool,
    Meta(extra_json_schema={"const": True}, extra={"read": Reader(_yes, _yes)}),
]

Flag = Annotated[bool, Meta(extra={"read": Reader(_flag_text, _flag)})]

# The text is all that its reader sees: the model that has the filters puts the position in its place.
Cursor = Annotated[
    int,
    Meta(
        description="The `nextCursor` of the page before. It goes on in the list with the same filters and order only.",
        extra_json_schema={"type": "string", "pattern": f"^{_CURSOR.pattern}$", "format": "cursor"},
        extra={"read": text_that(_CURSOR.fullmatch, "INVALID_CURSOR", "A cursor of this list")},
    ),
]

StreamLimit = Annotated[
    int,
    Meta(ge=1, le=100, description="The greatest number of streams in the page.", extra={"read": integer(1, 100)}),
]

EventLimit = Annotated[
    int,
    Meta(ge=1, le=1000, description="The greatest number of events in the page.", extra={"read": integer(1, 1000)}),
]

# Amounts are ints in base units inside. The patterns say the sign and the digits, the format what the digits may be.
_FRACTION = rf"(\.[0-9]{{1,{DEFAULT_DECIMALS}}})?"
_AMOUNT = f"A decimal string with at most {DEFAULT_DECIMALS} fraction digits and an integer part up to {MAX_POSITION}"

Amount = Annotated[
    int,
    Meta(
        description=f"{_AMOUNT}.",
        examples=["1000.0000000"],
        extra_json_schema={"type": "string", "pattern": f"^[+-]?[0-9]+{_FRACTION}$", "format": "decimal-amount"},
        extra={"read": _amount(None, "")},
    ),
]

PositiveAmount = Annotated[
    int,
    Meta(
        description=f"{_AMOUNT}, above 0.",
        examples=["1000.0000000"],
        extra_json_schema={
            "type": "string",
            "pattern": rf"^\+?(?=[0-9.]*[1-9])[0-9]+{_FRACTION}$",
            "format": "decimal-amount",
        },
        extra={"read": _amount(1, "be above 0")},
    ),
]

NonNegativeAmount = Annotated[
    int,
    Meta(
        description=f"{_AMOUNT}, not below 0.",
        examples=["0.0000116"],
        extra_json_schema={
            "type": "string",
            "pattern": rf"^(\+?[0-9]+{_FRACTION}|-0+(\.0{{1,{DEFAULT_DECIMALS}}})?)$",
            "format": "decimal-amount",
        },
        extra={"read": _amount(0, "not be below 0")},
    ),
]
