"""Who follows what, and what of a batch of events goes to whom. No waiting in here: the hub decides when to yield.

A batch is dealt out to those who follow something of it at the moment when it begins; the bytes for one subscriber go
out in one piece. Each event is encoded and framed once for each protocol, and those of whose subscriptions the same
ones were hit share one joined piece.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import trio

from fluxora.protocol import frames, sockets
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import Selector

if TYPE_CHECKING:
    from fluxora.actors.catch_up import CatchUp
    from fluxora.actors.lag import Lag

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

    @property
    def caller(self) -> str:
        """Whose it is: those of one caller share the turns at what is scarce."""
        ...

    @property
    def taken(self) -> int:
        """Grows with whatever had to wait and was taken: it says that the peer reads."""
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

    def attend(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin work for it, in a task that ends with it."""
        ...


class Ended:
    """What subscriptions of a member have told that are no more, for those that catch up since before they ended.

    `now` counts what has ended; who asks names what it was when it began.
    """

    __slots__ = ("_spans", "now")

    def __init__(self) -> None:
        self.now = 0
        self._spans: dict[Selector, list[tuple[int, int, int]]] = {}  # number, told above, and up to

    def __len__(self) -> int:
        return sum(map(len, self._spans.values()))

    @property
    def selectors(self) -> Iterable[Selector]:
        """What they followed."""
        return self._spans.keys()

    def add(self, selector: Selector, after: int, through: int) -> None:
        """One has ended, which told what is above `after` and up to `through`."""
        self._spans.setdefault(selector, []).append((self.now, after, through))
        self.now += 1

    def told(self, position: int, selectors: Iterable[Selector], *, since: int) -> bool:
        """Whether one that has ended since then told the event that is followed under `selectors`."""
        return any(
            number >= since and after < position <= through
            for selector in selectors
            for number, after, through in self._spans.get(selector, ())
        )

    def forget(self, before: int) -> None:
        """Nobody will ask for what ended before."""
        kept = {selector: [span for span in spans if span[0] >= before] for selector, spans in self._spans.items()}
        self._spans = {selector: spans for selector, spans in kept.items() if spans}


class Member:
    """What the audience knows of one subscriber.

    `live` are its subscriptions, and for each the position above which everything that matches has been told or will
    be: by the hub, or by the `lag` while there is one. `catching_up` are those that are not live yet, in the order in
    which they were asked for: one at a time, which holds the `turn`, and others that wait.
    """

    __slots__ = ("catching_up", "ended", "lag", "live", "turn")

    def __init__(self) -> None:
        self.live: dict[Selector, int] = {}
        self.turn = trio.Lock()
        self.catching_up: list[CatchUp] = []
        self.ended = Ended()
        self.lag: Lag | None = None

    def told(self, head: int) -> int:
        """The position up to which the live subscriptions have been told, where the hub has come to `head`."""
        return head if self.lag is None else self.lag.told

    def done_with(self, catch_up: CatchUp) -> None:
        """It has caught up, or is not wanted any more."""
        if catch_up in self.catching_up:
            self.catching_up.remove(catch_up)
            self.ended.forget(self.catching_up[0].began if self.catching_up else self.ended.now)


class _Batch:
    """Events on their way out. `due` are those who have not been offered theirs, with the selectors of theirs that were
    hit, as places in `hits`: numbers, since a selector is dear to look up.
    """

    def __init__(self, events: Sequence[LogEvent], hits: dict[Selector, list[int]]) -> None:
        self.due: dict[Subscriber, Hit] = {}
        self.after = events[0].position - 1
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
    """Subscribers by what they follow. `refused` is called with whoever does not take what it is offered, and the
    position up to which it was told: it is then to be set aside, or forgotten.
    """

    def __init__(self, refused: Callable[[Subscriber, int], object]) -> None:
        self.members: dict[Subscriber, Member] = {}
        self.events_told = 0  # events times those who were offered them
        self._refused = refused
        # Apart by protocol, since those of one are told the same; served in the order in which they came.
        self._followers: dict[Selector, dict[SubscriberProtocol, dict[Subscriber, None]]] = {}
        self._batch: _Batch | None = None

    @property
    def subscriptions(self) -> int:
        """How many there are, over all subscribers."""
        return sum(len(member.live) for member in self.members.values())

    def join(self, subscriber: Subscriber) -> None:
        """Take it in. Of whoever has not joined, or has left, nothing is remembered."""
        self.members.setdefault(subscriber, Member())

    def follow(self, subscriber: Subscriber, selector: Selector, after: int) -> None:
        """Deal out to it what matches from the next batch on; everything above `after` is told then, or was before."""
        member = self.members.get(subscriber)
        if member is None:
            return
        member.live[selector] = min(after, member.live.get(selector, after))
        if member.lag is None:
            self._add(subscriber, selector)

    def unfollow(self, subscriber: Subscriber, selector: Selector, head: int) -> int:
        """From the next batch on; what is due of this one, which ends at `head`, is offered now.

        Returns the position up to which live subscriptions have been told.
        """
        self.settle(subscriber)
        member = self.members.get(subscriber)
        if member is None:
            return head
        through = member.told(head)
        self._remove(subscriber, selector)
        ended = [(member.live.pop(selector, through), through)]
        for one in [one for one in member.catching_up if one.selector == selector]:
            ended.append((one.after, one.told))
            one.give_up()
            member.done_with(one)
        if member.catching_up:
            for after, told in ended:
                if after < told:
                    member.ended.add(selector, after, told)
        return through

    def set_aside(self, subscriber: Subscriber, lag: Lag) -> None:
        """Deal out nothing to it until it is back: `lag` tells it what is live."""
        if self._batch is not None:
            self._batch.due.pop(subscriber, None)
        member = self.members[subscriber]
        member.lag = lag
        for selector in member.live:
            self._remove(subscriber, selector)

    def rejoin(self, subscriber: Subscriber) -> None:
        """Deal out to it again from the next batch on: it was told all of this one."""
        member = self.members[subscriber]
        member.lag = None
        for selector in member.live:
            self._add(subscriber, selector)

    def told(self, subscriber: Subscriber, head: int) -> int:
        """The position up to which a member was offered everything live, where the hub has come to `head`."""
        if self._batch is not None and subscriber in self._batch.due:
            return self._batch.after
        return self.members[subscriber].told(head)

    def forget(self, subscriber: Subscriber) -> None:
        """It has left; nothing goes to it any more."""
        member = self.members.pop(subscriber, None)
        if member is None:
            return
        if self._batch is not None:
            self._batch.due.pop(subscriber, None)
        for selector in member.live:
            self._remove(subscriber, selector)

    def _add(self, subscriber: Subscriber, selector: Selector) -> None:
        self._followers.setdefault(selector, {}).setdefault(subscriber.protocol, {})[subscriber] = None

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
                self._give(subscriber, piece, batch)
                left -= 1
                if not left:
                    left = at_once
                    yield

    def settle(self, subscriber: Subscriber) -> None:
        """Offer now what is due to it of the batch that is on its way out."""
        if self._batch is not None:
            hit = self._batch.due.pop(subscriber, None)
            if hit is not None:
                self._give(subscriber, self._batch.piece(subscriber.protocol, hit), self._batch)

    def finish(self) -> None:
        """Offer now whatever is due."""
        batch = self._batch
        while batch is not None and batch.due:
            subscriber, hit = batch.due.popitem()
            self._give(subscriber, batch.piece(subscriber.protocol, hit), batch)
        self._batch = None

    def _give(self, subscriber: Subscriber, piece: tuple[bytes, int], batch: _Batch) -> None:
        data, events = piece
        if subscriber.offer(data):
            self.events_told += events
        else:
            self._refused(subscriber, batch.after)
