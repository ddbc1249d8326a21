"""What travels between the actors of the ingest pipeline, and the count of rewinds that keeps stale parcels out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import trio

from fluxora.protocol.chain import LedgerBatch
from fluxora.storage.store import BatchOutcome
from fluxora.tracing import Mark, here


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of one parcel: `position` is the log's after the commit."""

    outcome: BatchOutcome
    position: int


class Receipt:
    """One answer for one waiter: the commit of a parcel, or the error that kept it from being recorded."""

    def __init__(self) -> None:
        self._settled = trio.Event()
        self._result: Recorded | Exception | None = None

    def resolve(self, recorded: Recorded) -> None:
        """The parcel is durable."""
        if self._result is None:
            self._result = recorded
            self._settled.set()

    def fail(self, error: Exception) -> None:
        """The parcel is not recorded, or nobody can say whether it is; sending it again is always safe."""
        if self._result is None:
            self._result = error
            self._settled.set()

    async def wait(self) -> Recorded:
        """Wait for the commit. The caller brings the deadline.

        Raises:
            Exception: what the pipeline failed with.
        """
        await self._settled.wait()
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result


def new_round() -> str:
    """An id for one round of whoever fetches: log lines of all who handle what it brings carry it."""
    return os.urandom(6).hex()


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch on its way; `duplicates` are the ids that the deduplicator took out.

    `round` is the id of what it came by: a round of the ingester or the corrector, or the request that pushed it;
    `cause` is where in a trace it set out.
    """

    batch: LedgerBatch
    receipt: Receipt | None = None
    duplicates: tuple[str, ...] = ()
    round: str = field(default_factory=new_round, compare=False)
    cause: Mark | None = field(default_factory=here)


@dataclass(slots=True)
class Rewind:
    """Set by the guard, read by whoever fetches: history above `to` is void, and parcels of older generations go.

    `to` is the last ledger that still holds; None means that nothing does (a new epoch). `complete_through` is the last
    ledger of which every event had been let through and still holds (None: no ledger). It may be below `to`: headers
    run ahead of events, and events that were on their way behind those headers are void with their generation.
    """

    generation: int = 0
    to: int | None = None
    complete_through: int | None = None
    changed: trio.Event = field(default_factory=trio.Event)

    def back_to(self, ledger: int | None, *, complete_through: int | None) -> None:
        """Begin a new generation of the history up to `ledger`, of which the events go on after `complete_through`."""
        self.generation += 1
        self.to = ledger
        self.complete_through = complete_through
        self.changed.set()
        self.changed = trio.Event()
