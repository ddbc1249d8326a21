"""How far ingest has come: written by the pipeline's actors, read by /health. Plain fields of one trio thread."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Ledgers are sequences; times are Unix seconds. None means not known yet.

    `complete_through` is durable: every event of every ledger up to it is recorded. `ledger` and `ledger_hash` are the
    newest header known to be ours. `reorg_from` is the first ledger of the history that was taken back, while the
    rollback and what replaces it are not yet behind us.
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
    halted: str | None = None
    epoch: int = 1

    @property
    def reorg_detected(self) -> bool:
        """True from the discovery of another history until the new one is past the fork by the safety margin."""
        return self.reorg_from is not None

    @property
    def safe_ledger(self) -> int | None:
        """The newest ledger that counts as safe; a rollback takes it down."""
        return None if self.complete_through is None else max(0, self.complete_through - self.safety_margin)

    def rolled_back(self, first_undone: int, to: int | None) -> None:
        """Another history was found: everything from `first_undone` on is being taken back."""
        self.reorgs += 1
        self.reorg_from = first_undone
        self.complete_through = to

    def recorded(self, complete_through: int | None, at: float) -> None:
        """A commit went through."""
        self.synced_at = at
        if complete_through is None:
            return
        self.complete_through = complete_through
        if self.reorg_from is not None and complete_through >= self.reorg_from + self.safety_margin:
            self.reorg_from = None
