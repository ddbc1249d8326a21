"""One stream's place in an append: the state at hand and what its row will say."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from fluxora.protocol.contract import CORRECTED, ContractEvent
from fluxora.protocol.messages import StreamRecord
from fluxora.protocol.streams import StreamState, unpack_state


class Slot:
    """A stream as it stands in the transaction. `state` is None while nothing is known of it, and then it has no row.

    `last_event_id` is the newest event applied, in chain order ("" when unknown); `exists`: the table has a row;
    `dirty`: the row is to be written.
    """

    __slots__ = (
        "chain_id",
        "contract_id",
        "created_ms",
        "created_position",
        "decimals",
        "dirty",
        "epoch",
        "exists",
        "id",
        "last_event_id",
        "ledger",
        "position",
        "state",
        "updated_ms",
    )

    def __init__(self, key: str, epoch: int, contract_id: str, chain_id: int, decimals: int) -> None:
        self.id = key
        self.epoch = epoch
        self.contract_id = contract_id
        self.chain_id = chain_id
        self.decimals = decimals
        self.state: StreamState | None = None
        self.position = 0
        self.created_position = 0
        self.ledger = 0
        self.created_ms = 0
        self.updated_ms = 0
        self.last_event_id = ""
        self.exists = False
        self.dirty = False

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Slot:
        """From a row of the table."""
        state = unpack_state(row["state"])
        slot = cls(row["id"], row["epoch"], row["contract_id"], state.stream_id, row["decimals"])
        slot.state = state
        slot.position = row["position"]
        slot.created_position = row["created_position"]
        slot.ledger = row["ledger"]
        slot.created_ms = row["created_ms"]
        slot.updated_ms = row["updated_ms"]
        slot.last_event_id = row["last_event_id"]
        slot.exists = True
        return slot

    def apply(self, state: StreamState | None, event: ContractEvent, position: int, event_id: str) -> None:
        """Take the state after `event`, whose log row is `position` and whose id there is `event_id`."""
        self.last_event_id = event_id
        if state is None:
            return
        known = self.state is not None
        if not known:
            self.created_position = position
            self.created_ms = event.closed_at * 1000
        self.state = state
        self.position = position
        self.dirty = True
        if known and event.action == CORRECTED:
            return  # it tells what an earlier ledger did
        self.ledger = event.ledger
        self.updated_ms = event.closed_at * 1000

    def restore(self, other: Slot) -> None:
        """Take what a refold made of the stream; where it stands in the log stays."""
        self.state = other.state
        self.ledger = other.ledger
        self.created_ms = other.created_ms
        self.updated_ms = other.updated_ms
        self.last_event_id = other.last_event_id
        if other.state is None:
            self.created_position = 0
        self.dirty = True

    def touch(self, position: int) -> None:
        """Take the log row `position` as the stream's newest, after a refold."""
        if self.state is not None:
            self.created_position = self.created_position or position
            self.position = position
            self.dirty = True

    def record(self) -> StreamRecord | None:
        """As clients see it; None while nothing is known of it."""
        if self.state is None:
            return None
        return StreamRecord(
            self.id,
            "chain",
            self.epoch,
            self.contract_id,
            self.decimals,
            self.state,
            self.position,
            self.created_position,
            self.ledger,
            self.created_ms,
            self.updated_ms,
        )


class SlotCache:
    """Slots of committed appends, the least recently used going first; valid for one lease and one epoch."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots: dict[str, Slot] = {}  # in order of use
        self._owner = (0, 0)

    def use(self, lease: int, epoch: int) -> None:
        """Begin an append under `lease`: what another lease or epoch left is dropped."""
        if self._owner != (lease, epoch):
            self._slots.clear()
            self._owner = (lease, epoch)

    def take(self, key: str) -> Slot | None:
        """The slot, which leaves the cache until the append gives it back: a failed one leaves nothing wrong behind."""
        return self._slots.pop(key, None)

    def keep(self, slots: Mapping[str, Slot]) -> None:
        """Take the slots of an append that is committed."""
        self._slots.update(slots)
        for key in list(islice(self._slots, max(0, len(self._slots) - self._size))):
            del self._slots[key]

    def clear(self) -> None:
        """Forget everything: what the database holds is not known."""
        self._slots.clear()
