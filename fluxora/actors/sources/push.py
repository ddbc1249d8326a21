"""The push source: contract events that an authenticated worker hands in over HTTP.

Each call is one batch through the same pipeline as everything else: checked against the known hashes, deduplicated,
recorded in one transaction, and answered only after its commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import trio
from structlog.contextvars import get_contextvars

from fluxora.actors.parcel import Parcel, Receipt, new_round
from fluxora.errors import StorageError, StorageUnavailable
from fluxora.protocol.chain import LedgerBatch, LedgerHeader
from fluxora.protocol.contract import ContractEvent


class PushOutcome(msgspec.Struct, frozen=True):
    """What one call did: stellar event ids, the log's position after it, and what a contradicting hash took back."""

    inserted: list[str]
    duplicates: list[str]
    position: int
    rolled_back: int = 0
    rolled_back_from: int | None = None


class PushSource:
    """The pipeline's door for pushed events. Outlives the pipeline's incarnations: `open` and `close` mark them."""

    name = "push"

    def __init__(self, *, deadline_s: float = 30.0) -> None:
        self._deadline_s = deadline_s
        self._inbox: trio.MemorySendChannel[Parcel] | None = None
        self._outstanding: set[Receipt] = set()

    def open(self, inbox: trio.MemorySendChannel[Parcel]) -> None:
        """A pipeline is up and takes parcels."""
        self._inbox = inbox

    def close(self) -> None:
        """The pipeline is going down; what it has not answered is refused, to be sent again."""
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
        for receipt in self._outstanding:
            receipt.fail(StorageUnavailable("the pipeline restarted before the batch was recorded; send it again"))

    async def submit(self, events: Sequence[ContractEvent], hashes: Mapping[int, str]) -> PushOutcome:
        """Record `events` (ids unique) whose ledgers have `hashes` (ledger → 64 hex digits).

        Raises:
            StorageUnavailable: nothing is known to be recorded; sending the same batch again is safe.
        """
        inbox = self._inbox
        if inbox is None:
            raise StorageUnavailable("this replica does not ingest now")
        ordered = tuple(sorted(events, key=lambda event: event.id))
        closed = {event.ledger: event.closed_at for event in ordered}
        headers = tuple(LedgerHeader(ledger, hashes[ledger], None, closed[ledger]) for ledger in sorted(closed))
        batch = LedgerBatch(events=ordered, headers=headers)
        receipt = Receipt()
        self._outstanding.add(receipt)
        try:
            with trio.fail_after(self._deadline_s):
                await inbox.send(Parcel(batch, receipt, round=get_contextvars().get("request_id") or new_round()))
                recorded = await receipt.wait()
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StorageUnavailable("the batch was not recorded in time; send it again") from error
        except StorageError as error:
            raise StorageUnavailable(str(error)) from error
        finally:
            self._outstanding.discard(receipt)
        outcome = recorded.outcome
        undone_to = outcome.rolled_back_to
        return PushOutcome(
            inserted=outcome.inserted,
            duplicates=outcome.duplicates,
            position=recorded.position,
            rolled_back=outcome.rolled_back,
            rolled_back_from=None if undone_to is None else undone_to + 1,
        )
