"""One subscriber's way from a position of its own to where the hub is: what it missed, in order, at its own pace."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

import trio

from fluxora.actors.audience import FRAMED, Audience, Subscriber
from fluxora.actors.feed import Feed
from fluxora.actors.parties import Parties
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import Selector
from fluxora.storage.store import EventQuery, Store

PAGE = 1_000
PIECE_BYTES = 1 << 16  # offered at a time, so that what is live meanwhile has room beside it
FAIR_EVERY = 256  # events looked at between two turns of the event loop
REFUSALS = 3  # of a piece by a subscriber that had written everything before
ENDED_KEPT = 256
STREAMS = 4 * PAGE

T = TypeVar("T")


class Live(Protocol):
    """The hub, as far as one needs it to catch up with it."""

    @property
    def head(self) -> int:
        """Everything up to it has been told."""
        ...

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the database until it answers."""
        ...

    def drop(self, subscriber: Subscriber) -> None:
        """Let go of one that does not take what it is offered."""
        ...


class CatchUp:
    """Offers what matches `selector` above `after`, as far as the hub has come, and other subscriptions have not told.

    `through` is how far it has come. Where it is looking, the feed still has the log in memory, or else PostgreSQL
    does; by the end it goes without waiting, and so meets the hub however fast that is.
    """

    def __init__(self, hub: Live, audience: Audience, subscriber: Subscriber, selector: Selector, after: int) -> None:
        self.through = after
        self._hub = hub
        self._audience = audience
        self._subscriber = subscriber
        self._selector = selector
        self._member = audience.member(subscriber)
        self._framed = FRAMED[subscriber.protocol]
        self._given_up = False
        self._ended: deque[tuple[Selector, int, int]] = deque(maxlen=ENDED_KEPT)  # selector, after, through

    def on_ended(self, selector: Selector, after: int | None) -> None:
        """The subscriber has given `selector` up, which brought it everything above `after` (None: it was not live)."""
        if selector == self._selector:
            self._given_up = True
        if after is not None:
            self._ended.append((selector, after, self._hub.head))

    @property
    def _over(self) -> bool:
        return self._given_up or self._audience.members.get(self._subscriber) is not self._member

    async def run(self, store: Store, feed: Feed, reading: trio.CapacityLimiter) -> bool:
        """Catch up; True once everything up to the hub's head is offered, and nobody has run since. False if it is over.

        `reading` bounds how many read from the log at a time.
        """
        parties = Parties(store, streams=STREAMS)
        if self._selector.kind == "stream" and not self._over:
            await self._read_stream(parties, store, reading)
        while not self._over and self.through < self._hub.head:
            async with reading, aclosing(feed.follow(self.through)) as batches:
                batch = await anext(batches)
                if parties.unknown(batch):
                    await self._hub.patiently(lambda batch=batch: parties.recall(batch))  # type: ignore[misc]
            await self._tell(parties, batch)
            if self.through < self._hub.head:
                await self._pace()
        return not self._over

    async def _read_stream(self, parties: Parties, store: Store, reading: trio.CapacityLimiter) -> None:
        """The stream's own part of the log, by its index, as far as the hub was when it was last asked for."""
        while not self._over:
            head = self._hub.head
            query = EventQuery(stream_id=self._selector.value, after=self.through, limit=PAGE)
            async with reading:
                page = await self._hub.patiently(lambda query=query: store.events(query))  # type: ignore[misc]
                if parties.unknown(page):
                    await self._hub.patiently(lambda page=page: parties.recall(page))  # type: ignore[misc]
            await self._tell(parties, page)
            if len(page) < PAGE or page[-1].position > head:
                if not self._over:
                    self.through = max(self.through, head)
                return
            await self._pace()

    async def _tell(self, parties: Parties, events: Sequence[LogEvent]) -> None:
        """Offer what matches of `events`, up to the hub's head; waits only where the subscriber has to be waited for."""
        piece: list[bytes] = []
        size = 0
        for looked_at, event in enumerate(events, 1):
            if event.position > self._hub.head:
                break
            selectors = parties.selectors(event)
            if self._selector in selectors and not self._was_told(event.position, selectors):
                frame = self._framed(event)
                piece.append(frame)
                size += len(frame)
            self.through = event.position
            if size >= PIECE_BYTES or looked_at % FAIR_EVERY == 0:
                await self._offer(piece)
                await self._pace()
                piece, size = [], 0
                if self._over:
                    return
        await self._offer(piece)

    def _was_told(self, position: int, selectors: tuple[Selector, ...]) -> bool:
        """Whether another subscription has brought it, or will in this very batch."""
        live = self._member.live
        if any(live.get(selector, position) < position for selector in selectors):
            return True
        return any(after < position <= through and selector in selectors for selector, after, through in self._ended)

    async def _offer(self, piece: list[bytes]) -> None:
        if not piece:
            return
        data = b"".join(piece)
        for _ in range(REFUSALS):
            self._audience.settle(self._subscriber)  # what is live comes first, as it would have without us
            if self._over:
                return
            if self._subscriber.offer(data):
                self._audience.told += len(piece)
                return
            if not await self._subscriber.drained():
                break
        if not self._over:
            self._hub.drop(self._subscriber)

    async def _pace(self) -> None:
        """Let the others run, and the subscriber write what it has."""
        await trio.lowlevel.checkpoint()
        if not self._over and not await self._subscriber.drained() and not self._over:
            self._hub.drop(self._subscriber)
