"""A walk over getEvents from one ledger to another: what to ask next, and what an answer proves. No I/O.

Rules of the wire (getEvents v1)
- The first request names startLedger and endLedger (exclusive); each later one only the cursor, so that the end bounds
  the first page alone and later ones are cut here.
- A full page ends at its last event, whose id is the cursor, and may split that ledger: ledgers below it are complete.
  A page that is not full ends at the end of the window that was scanned, which its cursor names (the greatest position
  of a ledger): that ledger is complete too. Pages may be empty and still advance by up to 10,000 ledgers.
- Full or not is told by the cursor and not by the number of events, for a provider may cap the limit silently.
- A cursor beyond the node's latest ledger would skip what closes later; it is drawn back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fluxora.actors.sources.failures import Failure, HistoryPruned, NodeRange
from fluxora.actors.sources.rpc_replies import EventsReply, RpcEvent
from fluxora.errors import SourceUnavailable

CONTRACTS_PER_FILTER = 5
FILTERS = 5
_CURSOR = re.compile(r"(\d{19})-(\d{10})", re.ASCII)
_WITHIN_LEDGER = 0xFFFF_FFFF  # transaction and operation of a position: the low half of its number
_LAST_EVENT = "4294967295"


class EventWalk:
    """The state of one walk over `first`..`last`, both inclusive.

    `complete_through` is the ledger up to which every event has been returned by `absorb`, `first` - 1 at the start.
    """

    def __init__(self, contracts: Sequence[str], first: int, last: int, limit: int) -> None:
        # One shape for all filters: nodes before v27.1.1 lose events where filters of several shapes meet.
        self._filters = [
            {"contractIds": list(contracts[index : index + CONTRACTS_PER_FILTER])}
            for index in range(0, len(contracts), CONTRACTS_PER_FILTER)
        ]
        self._contracts = frozenset(contracts)
        self._first = first
        self._last = last
        self._limit = limit
        self._cursor: str | None = None
        self._position = f"{first << 32:019d}"  # below every id of `first`
        self.complete_through = first - 1

    @property
    def finished(self) -> bool:
        """Whether every ledger up to `last` is complete."""
        return self.complete_through >= self._last

    @property
    def next_ledger(self) -> int:
        """The ledger that the next request starts from: what the node's range check is about."""
        return self._first if self._cursor is None else int(self._cursor[:19]) >> 32

    def request(self) -> dict[str, Any]:
        """Params of the next getEvents."""
        if self._cursor is None:
            ledgers: dict[str, Any] = {"startLedger": self._first, "endLedger": self._last + 1}
            return {**ledgers, "filters": self._filters, "pagination": {"limit": self._limit}}
        return {"filters": self._filters, "pagination": {"cursor": self._cursor, "limit": self._limit}}

    def shrink(self, limit: int) -> bool:
        """Ask for at most `limit` events from now on; False where that is no fewer than before, or none at all."""
        if not 0 < limit < self._limit:
            return False
        self._limit = limit
        return True

    @property
    def limit(self) -> int:
        """How many events are asked for at once."""
        return self._limit

    def absorb(self, reply: EventsReply) -> list[RpcEvent]:
        """Take the answer to `request`: return its events that are ours and new, ascending, and move on.

        Nothing moves where it raises.

        Raises:
            HistoryPruned: the node dropped the ledger while it looked for its events.
            NodeRange: the node ends before `last`, so that the walk cannot go on there.
            SourceUnavailable: the answer contradicts itself or does not advance.
        """
        started_at = self.next_ledger
        if reply.oldest_ledger > started_at:
            raise HistoryPruned(started_at, reply.oldest_ledger, reply.latest_ledger)
        events = _in_order(reply.events)
        cursor, through = self._end_of(reply, events)
        if cursor < (self._cursor or self._position):
            raise SourceUnavailable(Failure.MALFORMED_RESPONSE, "getEvents: the cursor went back")
        through = max(self.complete_through, min(through, self._last))
        if cursor == self._cursor and through == self.complete_through:
            if reply.latest_ledger <= through:
                raise NodeRange(Failure.NODE_BEHIND, "lagging", through + 1, reply.oldest_ledger, reply.latest_ledger)
            raise SourceUnavailable(Failure.MALFORMED_RESPONSE, "getEvents: the page does not advance")
        if events and events[-1].ledger > self._last:
            through = self._last
        fresh = [
            event
            for event in events
            if event.id > self._position
            and event.ledger <= self._last
            and event.type == "contract"
            and event.contract_id in self._contracts
        ]
        if events:
            self._position = max(self._position, events[-1].id)
        self._cursor = cursor
        self.complete_through = through
        return fresh

    def _end_of(self, reply: EventsReply, events: list[RpcEvent]) -> tuple[str, int]:
        """The cursor to go on with and the ledger that it completes."""
        cursor = reply.cursor or (events[-1].id if events else "")
        parts = _CURSOR.fullmatch(cursor)
        if parts is None:
            raise SourceUnavailable(Failure.MALFORMED_RESPONSE, f"getEvents: unreadable cursor {cursor[:40]!r}")
        position = int(parts[1])
        ledger = position >> 32
        is_window_end = position & _WITHIN_LEDGER == _WITHIN_LEDGER and parts[2] == _LAST_EVENT
        if ledger > reply.latest_ledger:
            ledger, is_window_end = reply.latest_ledger, True
            cursor = f"{ledger << 32 | _WITHIN_LEDGER:019d}-{_LAST_EVENT}"
        if events and cursor < events[-1].id:
            raise SourceUnavailable(Failure.MALFORMED_RESPONSE, "getEvents: an event lies beyond the cursor")
        return cursor, ledger if is_window_end else ledger - 1


def _in_order(events: list[RpcEvent]) -> list[RpcEvent]:
    """The events by id, which is the chain's order, each once; every id must name the event's ledger."""
    previous = ""
    ordered = True
    for event in events:
        if _CURSOR.fullmatch(event.id) is None or int(event.id[:19]) >> 32 != event.ledger:
            raise SourceUnavailable(
                Failure.MALFORMED_RESPONSE, f"getEvents: id {event.id[:40]!r} is not of ledger {event.ledger}"
            )
        ordered = ordered and event.id > previous
        previous = event.id
    if ordered:
        return events
    return sorted({event.id: event for event in events}.values(), key=lambda event: event.id)
