"""Whom an event of the log concerns: its stream's followers, its parties', and those who follow everything.

A retraction concerns whoever was told of what it takes back, and the parties of the stream as it is restored. Mostly
they are the same, since few streams ever change hands: that is remembered, and where it is not so, or not known, the
log is asked. So a follower of an address is told the same of a retraction live, later, and by every replica.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from cachetools import LRUCache

from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import ALL, Concerned, Selector, concerned, reverted_ids
from fluxora.storage.store import EventQuery, Store

STREAMS = 20_000  # of which it is remembered whose they are, some 400 bytes each
_CREATED = "stream.created"
_REVERTED = "stream.reverted"
_PAGE = 1_000
_PAGE_BYTES = 1 << 20  # of payloads


class _Known(msgspec.Struct, frozen=True, gc=False):
    """Whose a stream is; `always`: and was in each of its events that stand."""

    parties: Concerned
    always: bool


class Parties:
    """One reader's way along the log: `selectors` must be asked for events in position order, without a gap.

    (What it remembers of a stream is then what was so before the event in question.)
    """

    def __init__(self, store: Store, *, streams: int = STREAMS) -> None:
        self._store = store
        self._known: LRUCache[str, _Known] = LRUCache(streams)
        self._recalled: dict[int, tuple[Concerned, ...]] = {}  # by the position of a retraction

    def selectors(self, event: LogEvent) -> tuple[Selector, ...]:
        """Everything under which the event is followed, no selector twice.

        Of a retraction that is `unknown` (`recall` first) some may be missing.
        """
        stream_id = event.stream_id
        if stream_id is None:
            return (ALL,)
        found = [ALL, Selector("stream", stream_id)]
        before, named = self._known.get(stream_id), concerned(event)
        if event.event == _REVERTED:
            for one in self._recalled.pop(event.position, () if before is None else (before.parties,)):
                _add(found, one)
        _add(found, named)
        after = _after(before, event, named)
        if after is not None:
            self._known[stream_id] = after
        elif before is not None:
            del self._known[stream_id]
        return tuple(found)

    async def recall(self, events: Sequence[LogEvent]) -> None:
        """Ask the log for those who were told of what `events` take back, where they are not remembered.

        Raises:
            StorageUnavailable: PostgreSQL cannot answer now.
        """
        for event in self.unknown(events):
            self._recalled[event.position] = await self._told(event)

    def unknown(self, events: Sequence[LogEvent]) -> list[LogEvent]:
        """The retractions that `recall` would ask about."""
        if not any(event.event == _REVERTED for event in events):
            return []
        asked: list[LogEvent] = []
        known: dict[str, _Known | None] = {}
        for event in events:
            stream_id = event.stream_id
            if stream_id is not None:
                before = known[stream_id] if stream_id in known else self._known.get(stream_id)
                sure = before is not None and before.always
                if event.event == _REVERTED and not sure and event.position not in self._recalled:
                    asked.append(event)
                known[stream_id] = _after(before, event, concerned(event))
        return asked

    async def _told(self, retraction: LogEvent) -> tuple[Concerned, ...]:
        """Whom the events named that it takes back."""
        undone = reverted_ids(retraction)
        told: dict[str, Concerned] = {}  # an id may have come before, been taken back, and come again
        after = 0
        while True:
            query = EventQuery(stream_id=retraction.stream_id, after=after, limit=_PAGE, most_bytes=_PAGE_BYTES)
            page = await self._store.events(query)
            for event in page:
                if event.position >= retraction.position:
                    return tuple(set(told.values()))
                if event.event_id in undone:
                    told[event.event_id] = concerned(event)
            if not query.is_full(page):
                return tuple(set(told.values()))
            after = page[-1].position


def _after(before: _Known | None, event: LogEvent, named: Concerned) -> _Known | None:
    """What is known of a stream after an event of it."""
    if named.sender is None and named.recipient is None:
        return None if event.event == _REVERTED else before  # it is gone, or nobody knows yet whose it is
    if event.event == _CREATED:
        return _Known(named, always=True)
    always = before is not None and before.always and before.parties == named
    return _Known(named, always)


def _add(found: list[Selector], named: Concerned) -> None:
    if named.sender is not None:
        _add_one(found, Selector("sender", named.sender))
    if named.recipient is not None:
        _add_one(found, Selector("recipient", named.recipient))
    if named.old_sender is not None:
        _add_one(found, Selector("sender", named.old_sender))
    if named.old_recipient is not None:
        _add_one(found, Selector("recipient", named.old_recipient))


def _add_one(found: list[Selector], selector: Selector) -> None:
    if selector not in found:
        found.append(selector)
