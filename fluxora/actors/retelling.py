"""Telling one subscriber from the log what the hub does not tell it live: in order, at its own pace, at others' leave.

What is read is in the feed's memory, or else in PostgreSQL; the last of it is, and is read without waiting, so it meets
the hub however fast that is. Asking PostgreSQL and looking through what was read go by turns that are fair among
clients, so that one with a great deal to be told costs the others a short while and no more. While PostgreSQL is away,
those who have to ask it wait, and nobody else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

import trio

from fluxora.actors.audience import FRAMED, Audience, Subscriber
from fluxora.actors.feed import Feed
from fluxora.actors.parties import Parties
from fluxora.actors.turns import Turns
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import Selector
from fluxora.storage.store import Store

PIECE_BYTES = 1 << 16  # offered at a time, so that what is live meanwhile has room beside it
FAIR_EVERY = 256  # events looked at between two turns of the event loop
REFUSALS = 3  # of a piece by a subscriber that had written everything before

T = TypeVar("T")
_Piece = list[tuple[int, tuple[Selector, ...], bytes]]
"""Events that were wanted when they were looked at: position, what each is followed under, and its frame."""


class Live(Protocol):
    """The hub, as far as one needs it to tell what it does not."""

    @property
    def store(self) -> Store:
        """The log."""
        ...

    @property
    def feed(self) -> Feed:
        """What it has of the log in memory, and what comes."""
        ...

    @property
    def reading(self) -> Turns:
        """Turns to ask the database."""
        ...

    @property
    def looking(self) -> Turns:
        """Turns to look through what was read: one lasts until the event loop has come round."""
        ...

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


class Retelling(ABC):
    """Offers one subscriber what it `_wants` of the log above `after`.

    `told` is the position up to which that was done; what is above it and up to `_through` was looked at, and may be on
    its way out.
    """

    __slots__ = ("_audience", "_hub", "_member", "_subscriber", "_through", "told")

    def __init__(self, hub: Live, audience: Audience, subscriber: Subscriber, after: int) -> None:
        self.told = after
        self._through = after
        self._hub = hub
        self._audience = audience
        self._subscriber = subscriber
        self._member = audience.members[subscriber]

    @abstractmethod
    def _wants(self, position: int, selectors: tuple[Selector, ...]) -> bool:
        """Whether the event at `position`, which is followed under `selectors`, is to be told here."""

    @property
    @abstractmethod
    def _by_address(self) -> bool:
        """Whether it matters here which parties an event concerns."""

    @property
    def _over(self) -> bool:
        """Whether there is nobody left to be told."""
        return self._audience.members.get(self._subscriber) is not self._member

    def _concerns(self, _event: LogEvent) -> bool:
        """False where it needs no look at an event's parties to know that it is not wanted."""
        return True

    async def _drained(self) -> bool:
        """Wait until all that was offered is written; False where the subscriber is not to be waited for any more."""
        return await self._subscriber.drained()

    async def _read(self, parties: Parties) -> tuple[LogEvent, ...]:
        """What comes next in the log; there must be something above `_through`."""
        batch = self._hub.feed.at_hand(self._through)
        if batch and not self._must_recall(parties, batch):
            return batch  # whatever waits for the database
        async with self._hub.reading.taken(self._subscriber.caller):
            if not batch:
                async with aclosing(self._hub.feed.follow(self._through)) as batches:
                    batch = await anext(batches)
            await self._recall(parties, batch)
        return batch

    def _must_recall(self, parties: Parties, events: Sequence[LogEvent]) -> bool:
        return bool(parties.unknown(events)) and self._by_address

    async def _recall(self, parties: Parties, events: Sequence[LogEvent]) -> None:
        if self._must_recall(parties, events):
            await self._hub.patiently(lambda: parties.recall(events))

    async def _tell(self, parties: Parties, events: Sequence[LogEvent]) -> bool:
        """Offer what is wanted of `events`, up to the hub's head; where that is reached nobody has run since.

        False if it stopped before the end: it is over, or parties have to be recalled first.
        """
        at = 0
        while not self._over and at < len(events) and events[at].position <= self._hub.head:
            async with self._hub.looking.taken(self._subscriber.caller):
                piece, looked_at = self._look_through(parties, events, at)
                if looked_at == at:
                    return False  # an address is followed only since `events` were read
                at = looked_at
                offered = self._offer(piece)
                if offered and self._through >= self._hub.head:
                    return True
                await trio.lowlevel.checkpoint()  # before anybody else has this turn
            if not offered and not await self._insist(piece):
                return False
            if self._through < self._hub.head and not await self._pace():
                return False
        return not self._over

    def _look_through(self, parties: Parties, events: Sequence[LogEvent], start: int) -> tuple[_Piece, int]:
        """What is wanted from place `start` on, for as long as the others may wait, and the place behind it."""
        framed, head = FRAMED[self._subscriber.protocol], self._hub.head
        piece: _Piece = []
        size, end = 0, min(len(events), start + FAIR_EVERY)
        for at in range(start, end):
            event = events[at]
            if event.position > head or size >= PIECE_BYTES:
                return piece, at
            if self._concerns(event):
                if parties.unknown((event,)) and self._by_address:
                    return piece, at
                selectors = parties.selectors(event)
                if self._wants(event.position, selectors):
                    frame = framed(event)
                    piece.append((event.position, selectors, frame))
                    size += len(frame)
            self._through = event.position
        return piece, end

    def _offer(self, piece: _Piece) -> bool:
        """Offer what is still wanted of it, if it is not over; False where the subscriber does not take it now."""
        self._audience.settle(self._subscriber)  # what is live comes first, as it would have without us
        if self._over:
            return True
        frames = [frame for position, selectors, frame in piece if self._wants(position, selectors)]
        if frames and not self._subscriber.offer(b"".join(frames)):
            return False
        self._audience.events_told += len(frames)
        self.told = self._through
        return True

    async def _insist(self, piece: _Piece) -> bool:
        """Offer what was refused again, behind all that is queued; where that is taken, nobody has run since."""
        for _ in range(REFUSALS):
            if not await self._pace():
                return False
            if self._offer(piece):
                return not self._over
        self._hub.drop(self._subscriber)
        return False

    async def _pace(self) -> bool:
        """Let the others run, and the subscriber write what it has; False where it is over."""
        if not self._over and not await self._drained() and not self._over:
            self._hub.drop(self._subscriber)
        return not self._over
