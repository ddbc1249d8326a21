"""The seam between the ledger and the pipeline: what every pulled source of contract events can be asked.

A source never skips: what it cannot hand over completely it refuses with an error whose `failure` names the class.
It holds no durable state; where to go on is the ingester's to say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, Protocol

import msgspec

from fluxora.actors.sources.call_tally import CallTally
from fluxora.protocol.chain import LedgerHeader
from fluxora.protocol.contract import ContractEvent

__all__ = ["LedgerEntry", "Page", "Source", "SourceStatus", "Tip"]


class Tip(msgspec.Struct, frozen=True):
    """What a node has now: ledgers `oldest`..`latest`, and when `latest` closed (Unix seconds) if it says so."""

    latest: int
    oldest: int
    closed_at: int | None = None


class Page(msgspec.Struct, frozen=True):
    """One step of a source: `events` ascend by id and never repeat within one call of `events()`.

    `complete_through` never goes down within one call: every event of ledgers up to it has been handed over, with this
    page or before. A page can end inside a ledger; that ledger is then above `complete_through`.
    """

    events: tuple[ContractEvent, ...]
    complete_through: int


class LedgerEntry(msgspec.Struct, frozen=True):
    """A stream as the contract stores it: `entry` maps the storage field names to native values.

    It is None where the stored value is nothing that can be read. `last_modified` is the ledger of the last change.
    """

    contract_id: str
    stream_id: int
    entry: dict[str, Any] | None
    last_modified: int


class SourceStatus(msgspec.Struct):
    """How a source is doing, for /health. Mutable, always up to date; holds no secret.

    `failure` is the class of the failure that lasts now (None when well), `failures` counts every failure by class,
    `endpoint` is the host (and port) in use, `last_success_at` is Unix seconds, `calls` counts the calls of all.
    """

    state: Literal["ok", "failing", "stalled"] = "ok"
    failure: str | None = None
    message: str = ""
    endpoint: str = ""
    failures: dict[str, int] = msgspec.field(default_factory=dict)
    last_success_at: float | None = None
    calls: CallTally = msgspec.field(default_factory=CallTally)


class Source(Protocol):
    """A ledger that can be pulled from. Every call may raise SourceUnavailable, HistoryLost or ChainDiverged."""

    @property
    def status(self) -> SourceStatus:
        """How the source is doing; the same object at every call."""
        ...

    async def tip(self) -> Tip:
        """Return the newest and oldest ledger that the node in use can serve."""
        ...

    async def headers(self, first: int, last: int) -> list[LedgerHeader]:
        """Return the headers of `first`..`last` (inclusive), ascending, hashes proven; those that the node has."""
        ...

    def events(self, first: int, last: int) -> AsyncGenerator[Page, None]:
        """Yield every event of ledgers `first`..`last` (inclusive) once, in order; the last page completes `last`.

        Use as ``async with aclosing(source.events(a, b)) as pages``.
        """
        ...

    async def entries(self, keys: Sequence[tuple[str, int]]) -> tuple[list[LedgerEntry], int]:
        """Read the ledger entries of (contract id, stream id); what is missing was closed, archived or never existed.

        Returns the found ones and the ledger as of which the node answered.
        """
        ...
