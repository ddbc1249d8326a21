"""Whom an event of the log concerns: its stream's followers, its parties', and those who follow everything.

A retraction names the parties of the stream as it is restored, and nobody where the stream is gone. Those who were told
what is now taken back are the parties that the stream had before it: they are remembered, and where they are not, the
log is asked. So a follower of an address is told the same of a retraction live, later, and by every replica.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachetools import LRUCache

from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import ALL, Concerned, Selector, concerned
from fluxora.storage.store import EventQuery, Store

STREAMS = 20_000  # whose parties are remembered, some 200 bytes each
_REVERTED = "stream.reverted"
_PAGE = 1_000


class Parties:
    """One reader's way along the log: `selectors` must be asked for events in position order, without a gap.

    (What it remembers of a stream are then the parties that it had last, before the event in question.)
    """

    def __init__(self, store: Store, *, streams: int = STREAMS) -> None:
        self._store = store
        self._last: LRUCache[str, Concerned] = LRUCache(streams)

    def selectors(self, event: LogEvent) -> tuple[Selector, ...]:
        """Everything under which the event is followed, no selector twice.

        Of a retraction whose stream is not remembered (`recall` first) the former parties are missing.
        """
        stream_id = event.stream_id
        if stream_id is None:
            return (ALL,)
        found = [ALL, Selector("stream", stream_id)]
        named = concerned(event)
        if event.event == _REVERTED:
            _add(found, self._last.get(stream_id))
        _add(found, named)
        if named.sender is not None or named.recipient is not None:
            self._last[stream_id] = named
        return tuple(found)

    async def recall(self, events: Sequence[LogEvent]) -> None:
        """Ask the log for the parties of streams that `events` take back and that are not remembered.

        Raises:
            StorageUnavailable: PostgreSQL cannot answer now.
        """
        for stream_id, position in self.unknown(events).items():
            self._last[stream_id] = await self._before(stream_id, position)

    def unknown(self, events: Sequence[LogEvent]) -> dict[str, int]:
        """Streams that `recall` would ask for, and the positions of their retractions."""
        asked: dict[str, int] = {}
        seen: set[str] = set()
        for event in events:
            stream_id = event.stream_id
            if stream_id is not None and stream_id not in seen:
                if event.event == _REVERTED and stream_id not in self._last:
                    asked[stream_id] = event.position
                seen.add(stream_id)
        return asked

    async def _before(self, stream_id: str, position: int) -> Concerned:
        """The parties that the stream had last before `position`."""
        last, after = Concerned(), 0
        while True:
            page = await self._store.events(EventQuery(stream_id=stream_id, after=after, limit=_PAGE))
            for event in page:
                if event.position >= position:
                    return last
                named = concerned(event)
                if named.sender is not None or named.recipient is not None:
                    last = named
            if len(page) < _PAGE:
                return last
            after = page[-1].position


def _add(found: list[Selector], named: Concerned | None) -> None:
    if named is None:
        return
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
