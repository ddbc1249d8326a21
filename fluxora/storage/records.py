"""What goes into the store and what comes out of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from fluxora.protocol.chain import LedgerHeader
from fluxora.protocol.messages import LogEvent

StatusName = Literal["active", "paused", "completed", "cancelled"]


class IngestState(msgspec.Struct, frozen=True):
    """Where ingest stands: every event of ledgers up to `complete_through` is recorded (None: nothing yet).

    `headers` are the newest 4,096 stored ones of the epoch, ascending by sequence.
    """

    epoch: int
    complete_through: int | None
    headers: list[LedgerHeader]
    position: int


class BatchOutcome(msgspec.Struct):
    """What became of one batch: its events' own ids, and how many recorded events its rollback took back."""

    inserted: list[str]
    duplicates: list[str]
    rolled_back: int
    rolled_back_to: int | None


class Appended(msgspec.Struct, frozen=True):
    """A committed append: the head's position after it, its log rows in order, and one outcome for each batch."""

    position: int
    epoch: int
    events: list[LogEvent]
    outcomes: list[BatchOutcome]


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


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the log in position order, behind `after`; ledger bounds are inclusive."""

    after: int = 0
    limit: int = 100
    stream_id: str | None = None
    event: str | None = None
    contract_id: str | None = None
    ledger_from: int | None = None
    ledger_to: int | None = None
