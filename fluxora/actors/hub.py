"""The hub: what the log says, to everyone who follows it over a connection.

It follows the feed by position, so that nothing is told that is not committed, and nothing is left out when it was
overtaken or has crashed: it goes on behind the last batch that it has told.

Promises
- A subscription is a point of the log: once `subscribe` has returned a position, everything above it that matches is
  offered, in order. With `resume`, so is everything behind a position of the client's own, first.
- An event reaches a subscriber once, by however many of its subscriptions it is matched; a subscription that is given
  up and taken again from an older position is told again what lies behind that.
- A batch is offered to all before the next one begins, though others may run in between. A subscription that is made
  while a batch is on its way begins behind it; one that ends then gets its part of it first.
- One that does not take what it is offered costs the others nothing: it is told from the log, and waited for, until it
  is back or dropped (lag.py). One that catches up is waited for.
- What is read from the log for subscribers goes by turns, fair among clients.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec
import trio

from fluxora.actors.audience import Audience, Subscriber, SubscriberProtocol
from fluxora.actors.catch_up import CatchUp
from fluxora.actors.feed import Feed
from fluxora.actors.lag import Lag
from fluxora.actors.parties import Parties
from fluxora.actors.turns import Turns
from fluxora.errors import InvariantError, StorageUnavailable
from fluxora.protocol import frames, sockets
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import Selector, ServiceEvent
from fluxora.storage.store import Store

FAIR_EVERY = 256  # subscribers served between two turns of the event loop
BATCH_EVENTS = 128
BATCH_BYTES = 1 << 17  # of payloads: a piece must fit many times into what a connection may have waiting
REACH = 1_000_000  # positions that are searched for what concerns an address
READERS = 4  # subscribers of different callers that read from the log at a time
_RETRY_S = 0.5

T = TypeVar("T")


class ResumeLost(Exception):
    """What was missed cannot be told whole; `reason` is for the client, `position` is how far the log is known here."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.position = position


class HubStatus(msgspec.Struct, frozen=True):
    """For metrics: how many there are now, and counts since the start (`told`: events times subscribers).

    Of the subscriptions that are `catching_up`, and of the subscribers that are `behind` since they could not take all
    of a commit at once, `reading` have a turn at the log, or wait for one.
    """

    position: int
    subscribers: int
    subscriptions: int
    catching_up: int
    reading: int
    behind: int
    told: int
    dropped: int


class Hub:
    """Subscribers are told apart by identity. Everything but `run` may be called once `run` has reported its start."""

    name = "hub"

    def __init__(self, store: Store, feed: Feed, *, reach: int = REACH) -> None:
        self.store = store
        self.feed = feed
        self.reading = Turns(READERS)
        self.looking = Turns(1)
        self._reach = reach
        self._parties = Parties(store)
        self._audience = Audience(self._fall_behind)
        self._head: int | None = None  # everything up to it has been dealt out
        self._moved = trio.Event()
        self._dropped = 0
        self._stop = trio.CancelScope()

    @property
    def head(self) -> int:
        """The position up to which everything has been told to whom it concerns."""
        return self._head or 0

    @property
    def status(self) -> HubStatus:
        """For metrics."""
        audience = self._audience
        members = audience.members.values()
        return HubStatus(
            position=self.head,
            subscribers=len(members),
            subscriptions=audience.subscriptions,
            catching_up=sum(len(member.catching_up) for member in members),
            behind=sum(member.lag is not None for member in members),
            reading=self.reading.engaged,
            told=audience.events_told,
            dropped=self._dropped,
        )

    # -- the actor -------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """End the actor; the batch that is on its way is offered to everyone first."""
        self._stop.cancel(reason="the hub is stopping")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the log, from its end at the first start; the database being away is waited out."""
        with trio.CancelScope() as self._stop:  # one for each run, since the supervisor may run it again
            if self._head is None:
                self._head = await self.patiently(self.store.position)
            task_status.started()
            async with aclosing(self.feed.follow(self._head)) as batches:
                async for batch in batches:
                    await self.patiently(lambda batch=batch: self._parties.recall(batch))  # type: ignore[misc]
                    await self.publish(batch)

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the database until it answers; the caller's scope is the deadline."""
        while True:
            try:
                return await ask()
            except StorageUnavailable:
                await trio.sleep(_RETRY_S)  # the feed says so in the log, once for everyone

    async def publish(self, events: Sequence[LogEvent]) -> None:
        """Tell committed events, which follow on the head without a gap. Others may run in between, for fairness.

        What is cancelled leaves whole batches: those up to `head` have been offered to everyone.

        Raises:
            InvariantError: there is a gap before them, or between them.
        """
        for part in _parts(events):
            selectors = [self._parties.selectors(event) for event in part]
            self._advance(part)
            try:
                for _ in self._audience.deal_out(part, selectors, at_once=FAIR_EVERY):
                    await trio.lowlevel.checkpoint()
            finally:
                self._audience.finish()
            await trio.lowlevel.checkpoint()

    def _advance(self, part: Sequence[LogEvent]) -> None:
        for expected, event in enumerate(part, self.head + 1):
            if event.position != expected:
                raise InvariantError(f"position {event.position} came where {expected} comes next")
        self._head = part[-1].position
        self._moved.set()
        self._moved = trio.Event()

    async def announce(self, name: ServiceEvent, reason: str, timestamp_ms: int) -> None:
        """Tell every subscriber of the state of the service (`timestamp_ms`: Unix milliseconds)."""
        of_sse = sockets.sse_service(name, reason, timestamp_ms)
        told: dict[SubscriberProtocol, bytes] = {
            "v2": frames.text(sockets.service(name, reason, timestamp_ms)),
            "broadcast": frames.text(sockets.broadcast_service(name, reason, timestamp_ms)),
            "sse": of_sse,
            "sse_chunked": sockets.chunk(of_sse),
        }
        for served, subscriber in enumerate(list(self._audience.members), 1):
            if subscriber in self._audience.members and not subscriber.offer(told[subscriber.protocol]):
                self._remember(subscriber, told[subscriber.protocol])
            if served % FAIR_EVERY == 0:
                await trio.lowlevel.checkpoint()

    # -- subscribers -----------------------------------------------------------------------------------------------

    def join(self, subscriber: Subscriber) -> None:
        """Take it in: it is told what is announced, and may follow something. Who has not joined may not."""
        self._audience.join(subscriber)

    def subscribe(self, subscriber: Subscriber, selector: Selector) -> int:
        """Follow `selector` from now on: every event above the returned position that matches will be offered.

        A selector that it follows already stays as it is, and so does a subscriber that has been dropped.
        """
        self._audience.settle(subscriber)
        self._audience.follow(subscriber, selector, self.head)
        return self.head

    def unsubscribe(self, subscriber: Subscriber, selector: Selector) -> int:
        """Follow it no longer, nor catch up with it: nothing above the returned position is offered for it.

        That is below the head where the subscriber is behind, and never above what it was told of the others.
        """
        return self._audience.unfollow(subscriber, selector, self.head)

    def follows(self, subscriber: Subscriber, selector: Selector) -> bool:
        """Whether it is told of `selector` as it comes; while it catches up with it, it is not yet."""
        member = self._audience.members.get(subscriber)
        return member is not None and selector in member.live

    def leave(self, subscriber: Subscriber) -> None:
        """It has gone. Called at the end of every connection, also of one that was dropped."""
        self._audience.forget(subscriber)

    def is_behind(self, subscriber: Subscriber) -> bool:
        """Whether it could not take all of a commit at once, and is not back yet: what is live comes late."""
        member = self._audience.members.get(subscriber)
        return member is not None and member.lag is not None

    def remembered(self, subscriber: Subscriber) -> int:
        """How many of its subscriptions have ended of which is remembered what they told, for those that catch up."""
        member = self._audience.members.get(subscriber)
        return 0 if member is None else len(member.ended)

    async def resume(self, subscriber: Subscriber, selector: Selector, after: int) -> int | None:
        """Ask to catch up, and do so: `ask` and `catch_up` in one."""
        asked = self.ask(subscriber, selector, after)
        return None if asked is None else await self.catch_up(asked)

    def ask(self, subscriber: Subscriber, selector: Selector, after: int) -> CatchUp | None:
        """Note that everything above `after` that matches is wanted, for `catch_up`; None from who is no subscriber.

        What other subscriptions tell until they end is left out from now on.
        """
        member = self._audience.members.get(subscriber)
        if member is None:
            return None
        asked = CatchUp(self, self._audience, subscriber, selector, after)
        member.catching_up.append(asked)
        return asked

    async def catch_up(self, asked: CatchUp) -> int | None:
        """Offer everything above `asked.after` that matches, in order, and follow the selector from there on.

        Returns the position of the acknowledgement: everything up to it has been offered, everything above it will be.
        None where nobody waits for that any more: the subscriber has left, was dropped, or has unsubscribed meanwhile.
        What other subscriptions bring meanwhile is offered in between. Of one subscriber, one catches up at a time.

        Raises:
            ResumeLost: `after` is above the log, or too far below its end to search for an address.
        """
        subscriber = asked.subscriber
        member = self._audience.members.get(subscriber)
        if member is None:
            return None
        try:
            async with member.turn:
                await self._reachable(asked)
                if not await asked.run():
                    return None
                # Nobody has run since it was at the head.
                self._audience.follow(subscriber, asked.selector, asked.after)
                return self.head
        finally:
            member.done_with(asked)

    async def _reachable(self, asked: CatchUp) -> None:
        """Wait until the hub has come to `after`, which the client may have from another replica."""
        after = asked.after
        if after > self.head:
            async with self.reading.taken(asked.subscriber.caller):
                newest = await self.patiently(self.store.position)
            if after > newest:
                raise ResumeLost("The position is above the newest one of the log", self.head)
        while self.head < after:
            await self._moved.wait()  # it is committed, so the feed brings it; the caller's scope ends the wait
        if asked.selector.kind in {"sender", "recipient"} and self.head - after > self._reach:
            raise ResumeLost("The position is too far below the newest one of the log", self.head)

    def _fall_behind(self, subscriber: Subscriber, told: int) -> Lag:
        """Tell one from the log, above `told`, that does not take what it is offered, until it is back or dropped."""
        lag = Lag(self, self._audience, subscriber, told)
        self._audience.set_aside(subscriber, lag)
        subscriber.attend(lag.run)
        return lag

    def _remember(self, subscriber: Subscriber, notice: bytes) -> None:
        """An announcement was not taken: it comes when there is room."""
        lag = self._audience.members[subscriber].lag
        if lag is None:
            lag = self._fall_behind(subscriber, self._audience.told(subscriber, self.head))
        lag.remember(notice)

    def drop(self, subscriber: Subscriber) -> None:
        """Let go of one that does not take what it is offered, or is gone."""
        self._dropped += 1
        self._audience.forget(subscriber)
        subscriber.drop("slow")


def _parts(events: Sequence[LogEvent]) -> Iterator[Sequence[LogEvent]]:
    """The events in batches, each small enough to be offered in one piece."""
    start = size = 0
    for at, event in enumerate(events):
        if at > start and (at - start >= BATCH_EVENTS or size + len(event.payload) > BATCH_BYTES):
            yield events[start:at]
            start, size = at, 0
        size += len(event.payload)
    if start < len(events):
        yield events[start:]
