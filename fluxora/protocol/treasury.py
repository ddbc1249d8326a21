"""What one address has in streams: totals for each contract, as sender and as recipient, at one second.

Amounts are ints in base units, so only streams of one contract and of the same decimals are added up together. The
worth of each stream is the one that every other answer shows (`messages.worth`); nothing is computed anew here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fluxora.protocol.messages import StreamRecord, shown_depletion, worth
from fluxora.protocol.streams import StreamKind, StreamState, StreamStatus

_COMPLETED, _CANCELLED = StreamStatus.COMPLETED, StreamStatus.CANCELLED
_CLIFF_ONLY, _CLIFF_SLOPE = StreamKind.CLIFF_ONLY, StreamKind.CLIFF_SLOPE
_STATUSES: Final = len(StreamStatus)


class Totals(msgspec.Struct):
    """Sums over streams, in base units; `rate` is in base units per second, `streams` counts them by status number.

    `next_depletion` (Unix seconds) is the earliest second after `as_of` at which a live stream is streamed out.
    """

    deposited: int = 0
    streamed: int = 0
    withdrawn: int = 0
    withdrawable: int = 0
    remaining: int = 0
    rate: int = 0
    next_depletion: int | None = None
    streams: list[int] = msgspec.field(default_factory=lambda: [0] * _STATUSES)

    def add(self, record: StreamRecord, as_of: int) -> None:
        """Add a stream, valued at `as_of` (Unix seconds)."""
        state, value = record.state, worth(record, as_of)
        self.deposited += state.deposit_amount
        self.streamed += value.streamed
        self.withdrawn += state.withdrawn_amount
        self.withdrawable += value.withdrawable
        self.remaining += value.remaining
        self.streams[state.status] += 1
        depletion = value.depletion_time
        if depletion is None or depletion <= as_of or state.status in (_COMPLETED, _CANCELLED):
            return
        shown = shown_depletion(record, value)
        if shown is not None and (self.next_depletion is None or shown < self.next_depletion):
            self.next_depletion = shown
        if _flows(state, as_of):
            self.rate += state.rate_per_second


class Holding(msgspec.Struct):
    """One address in one contract's streams; `contract_id` is None for those registered over the API."""

    contract_id: str | None
    decimals: int
    as_sender: Totals
    as_recipient: Totals


class Treasury:
    """Totals that grow stream by stream, valued at `as_of` (Unix seconds)."""

    def __init__(self, as_of: int) -> None:
        self._as_of = as_of
        self._holdings: dict[tuple[str | None, int], Holding] = {}

    def add_sent(self, record: StreamRecord) -> None:
        """Add a stream that the address sends."""
        self._holding(record).as_sender.add(record, self._as_of)

    def add_received(self, record: StreamRecord) -> None:
        """Add a stream that the address receives."""
        self._holding(record).as_recipient.add(record, self._as_of)

    def holdings(self) -> list[Holding]:
        """One for each contract, sorted by its id; those registered over the API come last.

        A contract whose decimals were configured anew between two of its streams has one for each.
        """
        return sorted(self._holdings.values(), key=_place)

    def _holding(self, record: StreamRecord) -> Holding:
        key = record.contract_id, record.decimals
        holding = self._holdings.get(key)
        if holding is None:
            holding = self._holdings[key] = Holding(record.contract_id, record.decimals, Totals(), Totals())
        return holding


def _place(holding: Holding) -> tuple[bool, str, int]:
    return holding.contract_id is None, holding.contract_id or "", holding.decimals


def _flows(state: StreamState, at: int) -> bool:
    """Whether the rate of a stream that is not streamed out yet counts at the second `at`.

    What lies before the last checkpoint flowed at another rate, which is not known any more.
    """
    if state.kind == _CLIFF_ONLY or at < state.start_time or at < state.cliff_time:
        return False
    return state.kind == _CLIFF_SLOPE or at >= state.checkpointed_at
