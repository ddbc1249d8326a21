"""What clients get, as models: the schemas of the replies in the OpenAPI document.

Most replies are encoded by other code, faster and verbatim from the store; the tests hold what is sent against these.
A member that may be missing is Unset here, one that may be null is None.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from fluxora.http.fields import EXAMPLE_CONTRACT, EXAMPLE_RECIPIENT, EXAMPLE_SENDER, EXAMPLE_STREAM_ID, MAX_LEDGER

_MAX_U64 = 2**64 - 1

AmountText = Annotated[
    str,
    Meta(
        pattern=r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$",
        description="A decimal string with exactly as many fraction digits as the token has (7 where it has no say).",
        examples=["1000.0000000"],
    ),
]
PositionText = Annotated[
    str,
    Meta(
        pattern="^[0-9]{1,19}$",
        description="A position of the log. It only grows, in commit order.",
        examples=["1042"],
    ),
]
Timestamp = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
        description="RFC 3339, UTC, with milliseconds.",
        examples=["2026-01-01T00:00:00.000Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
Seconds = Annotated[int, Meta(ge=0, description="Unix seconds.", examples=[1_767_225_600])]
ChainSeconds = Annotated[
    int, Meta(ge=0, description=f"Unix seconds, as on the ledger: up to {_MAX_U64}.", examples=[1_767_225_600])
]
LedgerNumber = Annotated[int, Meta(ge=0, le=MAX_LEDGER, description="A ledger's sequence.", examples=[52_000_000])]
Count = Annotated[int, Meta(ge=0)]
StatusText = Literal["active", "paused", "completed", "cancelled"]
Party = Annotated[str | None, Meta(description="A Stellar address; null while it is unknown.")]


class Stream(msgspec.Struct, rename="camel", kw_only=True):
    """A stream. Its computed amounts are for the second `asOf`."""

    id: Annotated[str, Meta(examples=[EXAMPLE_STREAM_ID])]
    origin: Annotated[Literal["chain", "api"], Meta(description="Read from the ledger, or registered with this API.")]
    contract_id: Annotated[str, Meta(description="On the ledger only.", examples=[EXAMPLE_CONTRACT])] | UnsetType = (
        UNSET
    )
    chain_stream_id: (
        Annotated[str, Meta(description="The contract's own number of it.", examples=["42"])] | UnsetType
    ) = UNSET
    sender: Annotated[Party, Meta(examples=[EXAMPLE_SENDER])]
    recipient: Annotated[Party, Meta(examples=[EXAMPLE_RECIPIENT])]
    deposit_amount: AmountText
    rate_per_second: AmountText
    withdrawn_amount: AmountText
    streamed_amount: Annotated[AmountText, Meta(description="What has accrued to the recipient.")]
    withdrawable_amount: Annotated[AmountText, Meta(description="What the recipient could withdraw.")]
    remaining_amount: Annotated[AmountText, Meta(description="What is still to be streamed.")]
    start_time: ChainSeconds
    cliff_time: ChainSeconds
    end_time: Annotated[ChainSeconds, Meta(description="Unix seconds; 0: no end.")]
    kind: Literal["linear", "cliff_only", "cliff_slope"]
    status: StatusText
    cancelled_at: Seconds | UnsetType = UNSET
    paused_at: Seconds | UnsetType = UNSET
    closed_at: Seconds | UnsetType = UNSET
    depletion_time: (
        Annotated[Seconds, Meta(description="When all that it will ever stream has been streamed.")] | UnsetType
    ) = UNSET
    memo: Annotated[str, Meta(description="Text where it is UTF-8, else base64.")] | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    position: Annotated[PositionText, Meta(description="Position of the last event applied to it.")]
    ledger: Annotated[LedgerNumber, Meta(description="The last ledger that changed it.")] | UnsetType = UNSET
    as_of: Annotated[Seconds, Meta(description="Unix seconds that the computed amounts are for.")]
    created_at: Timestamp
    updated_at: Timestamp


class StreamPage(msgspec.Struct, rename="camel", kw_only=True):
    """A page of streams. Everything up to `position` is in what it shows."""

    streams: list[Stream]
    has_more: bool
    next_cursor: Annotated[str | None, Meta(description="Gives the next page; null on the last one.")]
    position: PositionText


class StreamChange(Stream, rename="camel", kw_only=True):
    """The stream after the event, and the event's own data, amounts as decimal strings."""

    change: dict[str, Any]


class ContractChange(msgspec.Struct, rename="camel", kw_only=True):
    """The data of an event that concerns no stream, or one whose creation was not seen."""

    change: dict[str, Any]


class Reversal(msgspec.Struct, rename="camel", kw_only=True):
    """A rollback took events of the stream back."""

    stream: Annotated[Stream | None, Meta(description="The restored stream; null where it no longer exists.")]
    reverts: Annotated[list[str], Meta(description="The `eventId`s that no longer count.")]


PAYLOADS = (StreamChange, ContractChange, Reversal)


class Event(msgspec.Struct, rename="camel", kw_only=True):
    """One row of the log."""

    event: Literal["stream.created", "stream.updated", "stream.cancelled", "stream.reverted", "contract.updated"]
    event_id: Annotated[str, Meta(description="Stable and unique.")]
    stream_id: Annotated[str | None, Meta(description="Null where the event concerns no stream.")]
    position: PositionText
    action: Annotated[str, Meta(description="The exact cause.", examples=["withdrew"])]
    ledger: LedgerNumber | UnsetType = UNSET
    tx_hash: str | UnsetType = UNSET
    contract_id: str | UnsetType = UNSET
    timestamp: Timestamp
    payload: Annotated[
        dict[str, Any],
        Meta(extra_json_schema={"anyOf": [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in PAYLOADS]}),
    ]


class EventPage(msgspec.Struct, rename="camel", kw_only=True):
    """A page of the log. Without more, it is complete up to `position`."""

    events: list[Event]
    has_more: bool
    next_after: Annotated[PositionText, Meta(description="Give it as `after` for the next page.")]
    position: PositionText


class Detail(msgspec.Struct):
    """One failing field."""

    field: Annotated[str, Meta(description="Its name; empty for the whole body.", examples=["depositAmount"])]
    code: Annotated[str, Meta(description="For programs.", examples=["DECIMAL_INVALID_TYPE"])]
    message: Annotated[str, Meta(description="For people.")]


class Error(msgspec.Struct, rename="camel", kw_only=True):
    """The one shape of every error. `details` names every failing field of the request at once."""

    error: Annotated[str, Meta(description="For programs.", examples=["VALIDATION_ERROR"])]
    message: Annotated[str, Meta(description="For people.")]
    details: list[Detail] | UnsetType = UNSET
    request_id: Annotated[str, Meta(description="That of the x-request-id header.")]


class ServiceIndex(msgspec.Struct, rename="camel", kw_only=True):
    """What this service is. Links with parameters are URI templates (RFC 6570)."""

    name: str
    version: str
    links: dict[str, str]


class Alive(msgspec.Struct):
    """The process serves requests."""

    status: Literal["ok"]


class DatabaseLatency(msgspec.Struct, rename="camel"):
    """The round trip of the probe just made."""

    latency_ms: Annotated[float, Meta(ge=0)]


class ReadyDependencies(msgspec.Struct):
    """What was asked."""

    database: DatabaseLatency


class Ready(msgspec.Struct):
    """The database answers and the service is not stopping."""

    status: Literal["ok"]
    dependencies: ReadyDependencies


class Reorg(msgspec.Struct, rename="camel"):
    """What a contradicting ledger hash undid."""

    from_ledger: LedgerNumber
    rolled_back: Annotated[int, Meta(ge=0, description="Number of events taken back.")]


class IngestReply(msgspec.Struct, rename="camel", kw_only=True):
    """What became of a batch, committed."""

    outcome: Literal["persisted"]
    inserted_count: Count
    duplicate_count: Count
    inserted_event_ids: list[str]
    duplicate_event_ids: list[str]
    position: PositionText
    reorg: Reorg | UnsetType = UNSET
