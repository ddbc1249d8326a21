"""Who follows what, and what of a batch of events goes to whom. No waiting in here: the hub decides when to yield.

A batch is dealt out to those who follow something of it at the moment when it begins; the bytes for one subscriber go
out in one piece. Each event is encoded and framed once for each protocol, and those of whose subscriptions the same
ones were hit share one joined piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import trio

from fluxora.protocol import frames, sockets
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import Selector

if TYPE_CHECKING:
    from fluxora.actors.catch_up import CatchUp

Hit = tuple[int, ...]
SubscriberProtocol = Literal["v2", "broadcast", "sse", "sse_chunked"]
DropReason = Literal["slow"]

FRAMED: dict[SubscriberProtocol, Callable[[LogEvent], bytes]] = {
    "v2": lambda event: frames.text(sockets.stream_update(event)),
    "broadcast": lambda event: frames.text(sockets.broadcast(event)),
    "sse": sockets.sse,
    "sse_chunked": lambda event: sockets.chunk(sockets.sse(event)),
}
"""An event as a connection of each protocol carries it."""


class Subscriber(Protocol):
    """A connection as the hub sees it."""

    @property
    def protocol(self) -> SubscriberProtocol:
        """What it speaks; never changes."""
        ...

    def offer(self, data: bytes) -> bool:
        """Take whole frames now, without waiting; False, and nothing of them taken, if it is too slow or gone."""
        ...

    def drop(self, reason: DropReason) -> None:
        """The hub has let it go: it gets nothing any more, and is to be closed. Does not wait."""
        ...

    async def drained(self) -> bool:
        """Wait until all that was offered is written, as long as the peer reads at all; False if it is gone."""
        ...


class Member:
    """What the audience knows of one subscriber.

    `live` are its subscriptions, and for each the position above which everything that matches has been told or will
    be. `catching_up` are those that are not live yet: one at a time, which holds the `turn`, and others that wait.
    """

    __slots__ = ("catching_up", "live", "turn")

    def __init__(self) -> None:
        self.live: dict[Selector, int] = {}
        self.turn = trio.Lock()
        self.catching_up: list[CatchUp] = []


class _Batch:
    """Events on their way out. `due` are those who have not been offered theirs, with the selectors of theirs that were
    hit, as places in `hits`: numbers, since a selector is dear to look up.
    """

    def __init__(self, events: Sequence[LogEvent], hits: dict[Selector, list[int]]) -> None:
        self.due: dict[Subscriber, Hit] = {}
        self._events = events
        self._hits = list(hits.values())
        self._framed: dict[SubscriberProtocol, list[bytes | None]] = {}

    def piece(self, protocol: SubscriberProtocol, hit: Hit) -> tuple[bytes, int]:
        """What matches any of those selectors, in position order and joined, and how many events that is."""
        if len(hit) == 1:
            wanted: Iterable[int] = self._hits[hit[0]]
        else:
            wanted = sorted({at for place in hit for at in self._hits[place]})
        framed = self._framed.get(protocol)
        if framed is None:
            framed = self._framed[protocol] = [None] * len(self._events)
        parts = [framed[at] or self._frame(protocol, framed, at) for at in wanted]
        return b"".join(parts), len(parts)

    def _frame(self, protocol: SubscriberProtocol, framed: list[bytes | None], at: int) -> bytes:
        made = framed[at] = FRAMED[protocol](self._events[at])
        return made


class Audience:
    """Subscribers by what they follow. `drop` is called with whoever does not take what is offered."""

    def __init__(self, drop: Callable[[Subscriber], None]) -> None:
        self.members: dict[Subscriber, Member] = {}
        self.told = 0  # events times those who were offered them
        self._drop = drop
        # Apart by protocol, since those of one are told the same; served in the order in which they came.
        self._followers: dict[Selector, dict[SubscriberProtocol, dict[Subscriber, None]]] = {}
        self._batch: _Batch | None = None

    @property
    def subscriptions(self) -> int:
        """How many there are, over all subscribers."""
        return sum(len(each) for by_protocol in self._followers.values() for each in by_protocol.values())

    def join(self, subscriber: Subscriber) -> None:
        """Take it in. Of whoever has not joined, or has left, nothing is remembered."""
        self.members.setdefault(subscriber, Member())

    def follow(self, subscriber: Subscriber, selector: Selector, after: int) -> None:
        """Deal out to it what matches from the next batch on; everything above `after` is told then, or was before."""
        member = self.members.get(subscriber)
        if member is None:
            return
        member.live[selector] = min(after, member.live.get(selector, after))
        self._followers.setdefault(selector, {}).setdefault(subscriber.protocol, {})[subscriber] = None

    def unfollow(self, subscriber: Subscriber, selector: Selector, head: int) -> None:
        """From the next batch on; what is due of this one, which ends at `head`, is offered now."""
        self.settle(subscriber)
        member = self.members.get(subscriber)
        if member is not None:
            self._remove(subscriber, selector)
            after = member.live.pop(selector, None)
            told = [] if after is None else [(after, head)]
            for one in member.catching_up:
                if one.selector == selector:
                    told.append((one.after, one.told))
                    one.give_up()
            for one in member.catching_up:
                one.leave_out(selector, told)

    def forget(self, subscriber: Subscriber) -> None:
        """It has left; nothing goes to it any more."""
        member = self.members.pop(subscriber, None)
        if member is None:
            return
        if self._batch is not None:
            self._batch.due.pop(subscriber, None)
        for selector in member.live:
            self._remove(subscriber, selector)

    def _remove(self, subscriber: Subscriber, selector: Selector) -> None:
        by_protocol = self._followers.get(selector)
        if by_protocol is None:
            return
        followers = by_protocol.get(subscriber.protocol)
        if followers is None:
            return
        followers.pop(subscriber, None)
        if not followers:
            del by_protocol[subscriber.protocol]
            if not by_protocol:
                del self._followers[selector]

    def deal_out(
        self, events: Sequence[LogEvent], selectors: Sequence[tuple[Selector, ...]], *, at_once: int
    ) -> Iterator[None]:
        """Begin a batch; `selectors` are what each event matches. What was due of the one before goes out first.

        Every step of the iterator offers up to `at_once` subscribers their piece.
        """
        self.finish()
        hits: dict[Selector, list[int]] = {}
        for at, matched in enumerate(selectors):
            for selector in matched:
                if selector in self._followers:
                    hits.setdefault(selector, []).append(at)
        batch = self._batch = _Batch(events, hits)
        groups = self._groups(hits)
        for (_, hit), subscribers in groups.items():
            batch.due.update(dict.fromkeys(subscribers, hit))
        return self._serve(batch, groups, at_once)

    def _groups(self, hits: Iterable[Selector]) -> dict[tuple[SubscriberProtocol, Hit], list[Subscriber]]:
        """Subscribers by what they are to get: their protocol and the selectors of theirs that were hit."""
        followed: dict[SubscriberProtocol, list[tuple[int, dict[Subscriber, None]]]] = {}
        for place, selector in enumerate(hits):
            for protocol, followers in self._followers[selector].items():
                followed.setdefault(protocol, []).append((place, followers))
        groups: dict[tuple[SubscriberProtocol, Hit], list[Subscriber]] = {}
        for protocol, several in followed.items():
            if len(several) == 1:  # as ever so often: then nobody has to be looked at
                ((place, followers),) = several
                groups[protocol, (place,)] = list(followers)
                continue
            hit_of: dict[Subscriber, list[int]] = {}
            for place, followers in several:
                for subscriber in followers:
                    found = hit_of.get(subscriber)
                    if found is None:
                        hit_of[subscriber] = [place]
                    else:
                        found.append(place)
            for subscriber, found in hit_of.items():
                groups.setdefault((protocol, tuple(found)), []).append(subscriber)
        return groups

    def _serve(
        self, batch: _Batch, groups: dict[tuple[SubscriberProtocol, Hit], list[Subscriber]], at_once: int
    ) -> Iterator[None]:
        due, left = batch.due, at_once
        for (protocol, hit), subscribers in groups.items():
            piece: tuple[bytes, int] | None = None
            for subscriber in subscribers:
                if due.pop(subscriber, None) is None:
                    continue  # it left, or had its piece early
                if piece is None:
                    piece = batch.piece(protocol, hit)
                self._give(subscriber, piece)
                left -= 1
                if not left:
                    left = at_once
                    yield

    def settle(self, subscriber: Subscriber) -> None:
        """Offer now what is due to it of the batch that is on its way out."""
        if self._batch is not None:
            hit = self._batch.due.pop(subscriber, None)
            if hit is not None:
                self._give(subscriber, self._batch.piece(subscriber.protocol, hit))

    def finish(self) -> None:
        """Offer now whatever is due."""
        batch = self._batch
        while batch is not None and batch.due:
            subscriber, hit = batch.due.popitem()
            self._give(subscriber, batch.piece(subscriber.protocol, hit))
        self._batch = None

    def _give(self, subscriber: Subscriber, piece: tuple[bytes, int]) -> None:
        data, events = piece
        if subscriber.offer(data):
            self.told += events
        else:
            self._drop(subscriber)
