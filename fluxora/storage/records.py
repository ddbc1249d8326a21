"""What goes into the store and what comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from fluxora.errors import RequestError
from fluxora.protocol.chain import LedgerHeader
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.messages import LogEvent, StreamRecord
from fluxora.protocol.streams import StreamStatus

StatusName = Literal["active", "paused", "completed", "cancelled"]


class IngestState(msgspec.Struct, frozen=True):
    """Where ingest stands: every event of ledgers up to `complete_through` is recorded (None: nothing yet).

    `headers` are the newest 4,096 stored ones of the epoch, ascending by sequence.
    """

    epoch: int
    complete_through: int | None
    headers: list[LedgerHeader]
    position: int


class LogHead(msgspec.Struct, frozen=True):
    """The newest position (0 while there is none), and the network epoch."""

    position: int
    epoch: int


class BatchOutcome(msgspec.Struct):
    """What became of one batch: its events' own ids, and how many recorded events its rollback took back."""

    inserted: list[str]
    duplicates: list[str]
    rolled_back: int
    rolled_back_to: int | None


class Appended(msgspec.Struct, frozen=True):
    """A committed append: the head's position after it, its log rows in order, and one outcome for each batch.

    `streams` are the rows of streams that it wrote, as they are now; None where one was taken away.
    """

    position: int
    epoch: int
    events: list[LogEvent]
    outcomes: list[BatchOutcome]
    streams: dict[str, StreamRecord | None]


class IdempotencyKey(msgspec.Struct, frozen=True):
    """A client's key for one write; `scope` is the caller and the route, `fingerprint` the raw body's sha256."""

    scope: str
    key: str
    fingerprint: bytes

    @classmethod
    def of(cls, scope: str, key: str, body: bytes) -> IdempotencyKey:
        """The key of a request with this raw body."""
        return cls(scope, key, hashlib.sha256(body).digest())


class Create(msgspec.Struct, frozen=True):
    """Register a stream under ids that nobody has used."""

    stream_id: str
    event_id: str
    new: NewStream
    key: IdempotencyKey | None


class Change(msgspec.Struct, frozen=True):
    """Take a registered stream to another status; `event_id` is that of the log's row, used by nobody."""

    stream_id: str
    event_id: str
    to: StreamStatus


Command: TypeAlias = Create | Change


class Registered(msgspec.Struct, frozen=True):
    """A stream that is registered: `body` is the JSON of the first answer, of which `replayed` says that it is not."""

    stream_id: str
    body: bytes
    replayed: bool


Outcome: TypeAlias = Registered | StreamRecord | RequestError
"""What became of a command: a registration, the stream after its change, or why there was neither."""


class Committed(msgspec.Struct, frozen=True):
    """A committed group of commands: what it appended, and one outcome for each command."""

    appended: Appended
    outcomes: list[Outcome]


class EntryWant(msgspec.Struct, frozen=True):
    """A stream whose ledger entry is to be read; `ledger` is that of the newest event that left it in doubt."""

    stream_id: str
    contract_id: str
    chain_stream_id: int
    ledger: int


class StreamQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of streams in creation order, those of the current epoch and API ones; `after` is a `created_position`."""

    status: StatusName | None = None
    sender: str | None = None
    recipient: str | None = None
    contract_id: str | None = None
    after: int | None = None
    descending: bool = False
    limit: int = 20

    @property
    def shape(self) -> tuple[object, ...]:
        """What the page's SQL depends on; pages of one shape can be read together."""
        return (
            self.status,
            self.sender is None,
            self.recipient is None,
            self.contract_id is None,
            self.descending,
            self.limit,
        )


class Listed(msgspec.Struct, frozen=True, gc=False):
    """A stream's place in a list, and its version."""

    id: str
    position: int
    created_position: int


class Listing(msgspec.Struct, frozen=True):
    """The streams of one page, in order, and the position of the log that it shows."""

    position: int
    streams: list[Listed]


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the log in position order, behind `after`; ledger bounds are inclusive.

    With `most_bytes`, which has to be above 0, a page ends behind the event that follows on the one with which its
    payloads come to so much: so it is seen whether there is more, and no more is in memory.
    """

    after: int = 0
    limit: int = 100
    stream_id: str | None = None
    event: str | None = None
    contract_id: str | None = None
    ledger_from: int | None = None
    ledger_to: int | None = None
    most_bytes: int | None = None

    def is_full(self, page: Sequence[LogEvent]) -> bool:
        """Whether a page of this query has as much as it may have, so that there may be more."""
        if len(page) >= self.limit:
            return True
        return self.most_bytes is not None and sum(len(event.payload) for event in page[:-1]) >= self.most_bytes
