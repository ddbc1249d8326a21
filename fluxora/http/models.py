"""What clients send, as models: the parameters of each list and the body of each write, with the rules between fields.

`reading` makes them from a request; the OpenAPI document shows them. Attributes hold inner values: amounts in base
units, positions as ints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fluxora.errors import DecodeError
from fluxora.http.fields import (
    EXAMPLE_RECIPIENT,
    Address,
    ContractId,
    Cursor,
    EventLimit,
    EventName,
    Ledger,
    NonNegativeAmount,
    Order,
    Position,
    PositiveAmount,
    PrincipalId,
    Status,
    StreamId,
    StreamLimit,
    UnixSeconds,
    Yes,
)
from fluxora.http.reading import Draft
from fluxora.protocol import cursors
from fluxora.protocol.sockets import ALL, Selector
from fluxora.storage.records import StreamQuery

OUT_OF_RANGE = "OUT_OF_RANGE"


class ListStreams(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The page of streams that is wanted. `cursor` is the `created_position` to go on behind."""

    status: Annotated[Status, Meta(description="Only streams of this status.")] | None = None
    sender: Annotated[Address, Meta(description="Only streams of this sender.")] | None = None
    recipient: Annotated[Address, Meta(description="Only streams of this recipient.")] | None = None
    contract_id: Annotated[ContractId, Meta(description="Only streams of this contract.")] | None = None
    limit: StreamLimit = 20
    cursor: Cursor | None = None
    order: Order = "asc"
    as_of: Annotated[UnixSeconds, Meta(description="Unix seconds that amounts are for; now if absent.")] | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The cursor belongs to these filters; its position takes its place."""
        cursor = draft.get("cursor")
        if cursor is None or draft.failed(*_LIST_FILTERS.values()):
            return
        try:
            draft.values["cursor"] = cursors.decode(cursor, _list_filters(draft.get))
        except DecodeError as error:
            draft.fail("cursor", "INVALID_CURSOR", f"The cursor cannot be used: {error}")

    def stored(self) -> StreamQuery:
        """The page in the store's terms."""
        return StreamQuery(
            status=self.status,
            sender=self.sender,
            recipient=self.recipient,
            contract_id=self.contract_id,
            after=self.cursor,
            descending=self.order == "desc",
            limit=self.limit,
        )

    def next_cursor(self, after: int) -> str:
        """The cursor of the page behind `after`."""
        return cursors.encode(after, _list_filters(lambda name: getattr(self, name)))


# What a cursor is bound to, as wire name -> attribute; a change would break the cursors that clients hold.
_LIST_FILTERS = {
    "status": "status",
    "sender": "sender",
    "recipient": "recipient",
    "contractId": "contract_id",
    "order": "order",
}


def _list_filters(get: Callable[[str], Any]) -> dict[str, str | None]:
    filters = {wire_name: get(name) for wire_name, name in _LIST_FILTERS.items()}
    filters["order"] = filters["order"] or "asc"
    return filters


class NoParameters(msgspec.Struct, frozen=True):
    """A route that takes none refuses them like any other."""


class OneStream(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The second that one stream is wanted for."""

    as_of: Annotated[UnixSeconds, Meta(description="Unix seconds that amounts are for; now if absent.")] | None = None


class StreamEvents(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The page of one stream's log that is wanted."""

    after: Annotated[Position, Meta(description="Only events behind this position.")] = 0
    limit: EventLimit = 100


class AllEvents(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The page of the whole log that is wanted. Ledger bounds are inclusive."""

    after: Annotated[Position, Meta(description="Only events behind this position.")] = 0
    limit: EventLimit = 100
    stream_id: Annotated[StreamId, Meta(description="Only events of this stream.")] | None = None
    event: Annotated[EventName, Meta(description="Only events of this name.")] | None = None
    contract_id: Annotated[ContractId, Meta(description="Only events of this contract.")] | None = None
    ledger_from: Annotated[Ledger, Meta(description="Only events of this ledger or later ones.")] | None = None
    ledger_to: Annotated[Ledger, Meta(description="Only events of this ledger or earlier ones.")] | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The range of ledgers is one."""
        check_ledgers(draft)


class FollowOne(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of one stream's log that is wanted live."""

    after: Annotated[Position, Meta(description="Begin behind this position; with what is new if absent.")] | None = (
        None
    )


class FollowAll(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of the log that is wanted live: of one stream, of the streams of one party, or all of it."""

    after: Annotated[Position, Meta(description="Begin behind this position; with what is new if absent.")] | None = (
        None
    )
    stream_id: Annotated[StreamId, Meta(description="Only events of this stream.")] | None = None
    sender: Annotated[Address, Meta(description="Only events of streams of this sender.")] | None = None
    recipient: Annotated[Address, Meta(description="Only events of streams of this recipient.")] | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """One filter, or none."""
        given = [name for name in ("stream_id", "sender", "recipient") if draft.get(name) is not None]
        for name in given[1:]:
            draft.fail(name, "INVALID_VALUE", "Only one of streamId, sender and recipient can be given")

    @property
    def selector(self) -> Selector:
        """What is wanted in the hub's terms."""
        if self.stream_id is not None:
            return Selector("stream", self.stream_id)
        if self.sender is not None:
            return Selector("sender", self.sender)
        return ALL if self.recipient is None else Selector("recipient", self.recipient)


def check_ledgers(draft: Draft) -> None:
    """`ledger_from` is not above `ledger_to`."""
    first, last = draft.get("ledger_from"), draft.get("ledger_to")
    if first is not None and last is not None and first > last:
        draft.fail("ledger_to", OUT_OF_RANGE, "ledgerTo is below ledgerFrom")


class NewStream(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A stream to register. It runs from `startTime` (now if absent) to `endTime` (0: no end), and pays from
    `cliffTime` on (0 or absent: from the start).
    """

    sender: Annotated[Address, Meta(description="Who pays: G... or C...")]
    recipient: Annotated[
        Address,
        Meta(description="Who is paid: G... or C..., another than the sender.", examples=[EXAMPLE_RECIPIENT]),
    ]
    deposit_amount: PositiveAmount
    rate_per_second: NonNegativeAmount
    start_time: Annotated[UnixSeconds, Meta(description="Unix seconds; now if absent.")] | None = None
    cliff_time: Annotated[UnixSeconds, Meta(description="Unix seconds, from start to end; 0: no cliff.")] | None = None
    end_time: (
        Annotated[UnixSeconds, Meta(description="Unix seconds, after the start; 0: no end.", examples=[1_798_761_600])]
        | None
    ) = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Two parties; times in their order. `start_time` is the effective one where the caller gave it."""
        if draft.get("sender") is not None and draft.get("sender") == draft.get("recipient"):
            draft.fail("recipient", "INVALID_VALUE", "The recipient must not be the sender")
        start, cliff, end = draft.get("start_time"), draft.get("cliff_time"), draft.get("end_time")
        if end and start is not None and end <= start:
            draft.fail("end_time", OUT_OF_RANGE, "endTime must be after startTime; 0 means that there is no end")
        if not cliff:
            return
        if start is not None and cliff < start:
            draft.fail("cliff_time", OUT_OF_RANGE, "cliffTime must not be before startTime; 0 means that there is none")
        elif end and cliff > end and not draft.failed("end_time"):
            draft.fail("cliff_time", OUT_OF_RANGE, "cliffTime must not be after endTime")


class StatusChange(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The status that a stream is to have."""

    status: Status


class Disconnect(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The WebSockets and event streams that are to go: those subscribed to one stream, of one principal, or all."""

    stream_id: Annotated[StreamId, Meta(description="Those subscribed to this stream by its id.")] | None = None
    principal: Annotated[PrincipalId, Meta(description="Those of key:<name>, jwt:<sub> or anonymous.")] | None = None
    all: Annotated[Yes, Meta(description="true: every one.")] | None = None

    @classmethod
    def check(cls, draft: Draft) -> None:
        """One of the three, and no more."""
        given = [name for name in ("stream_id", "principal", "all") if draft.get(name) is not None]
        if len(given) != 1 and not draft.failed("stream_id", "principal", "all"):
            draft.fail(given[1] if given else "all", "INVALID_VALUE", "One of streamId, principal and all is needed")
