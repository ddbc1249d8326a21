"""How far ingest has come: written by the pipeline's actors, read by /health. Plain fields of one trio thread."""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxora.protocol.chain import LedgerHeader
from fluxora.tallies import Histogram

_EVENTS = (1, 10, 100, 500, 1_000, 2_500, 5_000, 10_000)


@dataclass(slots=True)
class IngestCounts:
    """What became of events since the start: one that comes is dropped, sifted out, known or recorded.

    `dropped` belonged to a history that was taken back while they were on their way, `sifted` had passed a moment
    before, `known` were in the log already. `undone` were recorded, and taken back by one of the `rollbacks`.
    `events` and `seconds` are of the recorder's transactions.
    """

    received: int = 0
    dropped: int = 0
    sifted: int = 0
    known: int = 0
    recorded: int = 0
    undone: int = 0
    rollbacks: int = 0
    events: Histogram = field(default_factory=lambda: Histogram(_EVENTS))
    seconds: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Progress:
    """Ledgers are sequences; times are Unix seconds. None means not known yet.

    `complete_through` is durable: every event of every ledger up to it is recorded. `ledger` and `ledger_hash` are the
    newest header known to be ours. `reorg_from` is the first ledger of the history that is taken back, while the
    rollback and what replaces it are not yet behind us; `rollbacks` counts those found and not yet committed. `lease`
    is the number of the lease that is held here.
    """

    safety_margin: int = 1
    leading: bool = False
    tip: int | None = None
    complete_through: int | None = None
    ledger: int | None = None
    ledger_hash: str | None = None
    closed_at: int | None = None
    synced_at: float | None = None
    reorgs: int = 0
    reorg_from: int | None = None
    rollbacks: int = 0
    halted: str | None = None
    lease: int | None = None
    counts: IngestCounts = field(default_factory=IngestCounts)

    @property
    def reorg_detected(self) -> bool:
        """True from the discovery of another history until the new one is past the fork by the safety margin."""
        return self.reorg_from is not None

    @property
    def safe_ledger(self) -> int | None:
        """The newest ledger that counts as safe; a rollback takes it down."""
        return None if self.complete_through is None else max(0, self.complete_through - self.safety_margin)

    def fork_found(self, common: int | None) -> None:
        """Another history was found: everything above ledger `common` is to be taken back (None: everything)."""
        self.reorgs += 1
        self.rollbacks += 1
        self.reorg_from = 0 if common is None else common + 1

    def taken_back(self, to: int | None) -> None:
        """The rollback to ledger `to` is committed; only now, for what was on its way before it was recorded too."""
        self.rollbacks = max(0, self.rollbacks - 1)
        if to is None:
            self.complete_through = None
        elif self.complete_through is not None:
            self.complete_through = min(self.complete_through, to)
        if to is None or (self.ledger is not None and self.ledger > to):
            self.ledger = self.ledger_hash = None

    def checked(self, header: LedgerHeader) -> None:
        """A header is recorded as ours; a second look at an older one changes nothing."""
        if self.ledger is None or header.sequence >= self.ledger:
            self.ledger, self.ledger_hash, self.closed_at = header.sequence, header.hash, header.closed_at

    def recorded(self, complete_through: int | None, at: float, *, events: bool = True) -> None:
        """A commit went through. Without a source that completes ledgers (push), its headers tell how far it went.

        Only news count as a sync, or a node that stands still would seem alive for as long as it can be asked.
        """
        advanced = complete_through is not None and complete_through > (self.complete_through or -1)
        if advanced or events or self.synced_at is None:
            self.synced_at = at
        if complete_through is not None:
            self.complete_through = complete_through
        reached = self.ledger if self.complete_through is None else self.complete_through
        if self.reorg_from is None or self.rollbacks or reached is None:
            return
        if reached >= self.reorg_from + self.safety_margin:
            self.reorg_from = None

    def resumed(self, complete_through: int | None, newest: LedgerHeader | None) -> None:
        """A new incarnation goes on from what is stored; what the one before had under way is not."""
        self.complete_through = complete_through
        self.rollbacks, self.halted = 0, None
        self.ledger = self.ledger_hash = None
        if newest is not None:
            self.checked(newest)
