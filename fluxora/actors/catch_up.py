"""One subscriber's way from a position of its own to where the hub is: what it missed, in order, at its own pace."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
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

    `told` is the position up to which that was done. What it reads is in the feed's memory, or else in PostgreSQL; the
    last of it is, and is read without waiting, so it meets the hub however fast that is.
    """

    def __init__(self, hub: Live, audience: Audience, subscriber: Subscriber, selector: Selector, after: int) -> None:
        self.selector = selector
        self.after = after
        self.told = after
        self._through = after  # what was looked at, and may be on its way out
        self._hub = hub
        self._audience = audience
        self._subscriber = subscriber
        self._member = audience.members[subscriber]
        self._framed = FRAMED[subscriber.protocol]
        self._given_up = False
        self._ended: deque[tuple[Selector, int, int]] = deque(maxlen=ENDED_KEPT)  # selector, after, through

    def give_up(self) -> None:
        """The subscriber does not want it any more."""
        self._given_up = True

    def leave_out(self, selector: Selector, told: Iterable[tuple[int, int]]) -> None:
        """A subscription to `selector` has ended, which told what is above the first position and up to the second."""
        self._ended.extend((selector, after, through) for after, through in told)

    @property
    def _over(self) -> bool:
        return self._given_up or self._audience.members.get(self._subscriber) is not self._member

    async def run(self, store: Store, feed: Feed, reading: trio.CapacityLimiter) -> bool:
        """Catch up; True once all up to the hub's head is offered and nobody has run since, False if it is over.

        `reading` bounds how many read from the log at a time.
        """
        parties = Parties(store, streams=STREAMS)
        if self.selector.kind == "stream" and not self._over:
            await self._read_stream(parties, store, reading)
        while not self._over and self._through < self._hub.head:
            async with reading, aclosing(feed.follow(self._through)) as batches:
                batch = await anext(batches)
                await self._recall(parties, batch)
            await self._tell(parties, batch)
            if self._through < self._hub.head:
                await self._pace()
        if not self._over:
            self._audience.settle(self._subscriber)  # what was left to another subscription in the batch on its way
        return not self._over

    async def _read_stream(self, parties: Parties, store: Store, reading: trio.CapacityLimiter) -> None:
        """The stream's own part of the log, by its index, as far as the hub was when it was last asked for."""
        while not self._over:
            head = self._hub.head
            query = EventQuery(stream_id=self.selector.value, after=self._through, limit=PAGE)
            async with reading:
                page = await self._hub.patiently(lambda query=query: store.events(query))  # type: ignore[misc]
                await self._recall(parties, page)
            if await self._tell(parties, page) and (len(page) < PAGE or page[-1].position > head):
                self._through = max(self._through, head)
                return
            await self._pace()

    async def _tell(self, parties: Parties, events: Sequence[LogEvent]) -> bool:
        """Offer what matches of `events`, up to the hub's head; waits only where the subscriber has to be waited for.

        False if it stopped before: it is over, or parties have to be recalled first.
        """
        stream_id = self.selector.value if self.selector.kind == "stream" else None
        piece: list[bytes] = []
        size = 0
        for looked_at, event in enumerate(events, 1):
            if event.position > self._hub.head:
                break
            if stream_id is None or event.stream_id == stream_id:
                if parties.unknown((event,)) and self._by_address:
                    await self._offer(piece)
                    return False  # an address is followed only since `events` were read
                selectors = parties.selectors(event)
                if self.selector in selectors and not self._was_told(event.position, selectors):
                    frame = self._framed(event)
                    piece.append(frame)
                    size += len(frame)
            self._through = event.position
            if size >= PIECE_BYTES or looked_at % FAIR_EVERY == 0:
                await self._offer(piece)
                await self._pace()
                piece, size = [], 0
                if self._over:
                    return False
        await self._offer(piece)
        return not self._over

    @property
    def _by_address(self) -> bool:
        """Whether it matters here which parties an event concerns."""
        followed = (self.selector, *self._member.live, *(ended for ended, _, _ in self._ended))
        return any(selector.kind in {"sender", "recipient"} for selector in followed)

    async def _recall(self, parties: Parties, events: Sequence[LogEvent]) -> None:
        if parties.unknown(events) and self._by_address:
            await self._hub.patiently(lambda: parties.recall(events))

    def _was_told(self, position: int, selectors: tuple[Selector, ...]) -> bool:
        """Whether another subscription has brought it, or will in this very batch."""
        live = self._member.live
        if any(live.get(selector, position) < position for selector in selectors):
            return True
        return any(after < position <= through and selector in selectors for selector, after, through in self._ended)

    async def _offer(self, piece: list[bytes]) -> None:
        if not piece:
            self.told = self._through
            return
        data = b"".join(piece)
        for _ in range(REFUSALS):
            self._audience.settle(self._subscriber)  # what is live comes first, as it would have without us
            if self._over:
                return
            if self._subscriber.offer(data):
                self._audience.told += len(piece)
                self.told = self._through
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
