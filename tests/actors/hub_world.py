"""A hub over a log in memory, subscribers that read or do not, and what each of them must have been told.

The judge knows nothing of how the hub goes about it: for each subscriber it has the spans in which something was
followed, and for each event everything under which it can be followed, written down when the event was made.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import trio
from wsproto.frame_protocol import FrameProtocol, Opcode

from fluxora.actors.audience import DropReason, SubscriberProtocol
from fluxora.actors.feed import Feed
from fluxora.actors.hub import Hub
from fluxora.errors import StorageUnavailable
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import ALL, Kind, Selector
from fluxora.storage.store import EventQuery, Store

TURNS = 100_000  # of the event loop, in which all must happen that can: no clock has a part in it
PEOPLE = ["anna", "ben", "cleo"]
STREAMS = ["s0", "s1", "s2"]
SELECTORS = [
    ALL,
    *(Selector("stream", one) for one in STREAMS),
    *(Selector("sender", one) for one in PEOPLE),
    *(Selector("recipient", one) for one in PEOPLE),
]


_Standing = tuple[str, frozenset[Selector], tuple[str, str]]


def _view(standing: list[_Standing]) -> dict[str, str] | None:
    """The stream as the last event that stands has left it."""
    if not standing:
        return None
    sender, recipient = standing[-1][2]
    return {"sender": sender, "recipient": recipient}


def _followed(standing: list[_Standing]) -> set[Selector]:
    view = _view(standing) or {}
    return {Selector(cast("Kind", name), value) for name, value in view.items()}


class Log:
    """What is committed, as the store and the feed show it; each page takes a turn of the event loop."""

    def __init__(self, page: int = 3) -> None:
        self.events: list[LogEvent] = []
        self.matched: list[frozenset[Selector]] = []  # under what each can be followed
        self.away = False
        self.asked = 0
        self.remembered = 0  # of the newest, those that are in memory
        self._page = page
        # Of each stream the events that stand: id, under what each was told, sender and recipient after it.
        self._standing: dict[str, list[_Standing]] = {}
        self._grown = trio.Event()

    def write(self, what: str, number: int) -> LogEvent:
        """Append an event: "create", "update", "transfer", "revert" (one or two), "remove" (all) or "contract"."""
        stream = STREAMS[number % len(STREAMS)]
        standing = self._standing.setdefault(stream, [])
        selectors = {ALL} if what == "contract" else {ALL, Selector("stream", stream)}
        event_id, name = f"e{len(self.events) + 1}", "stream.updated"
        payload: dict[str, Any] = {"change": {"paused": True}}
        if what in {"remove", "revert"}:
            name = "stream.reverted"
            stays = 0 if what == "remove" else max(0, len(standing) - 1 - number // 3 % 2)
            undone, standing[:] = standing[stays:], standing[:stays]
            selectors = selectors.union(*(told for _, told, _ in undone))
            payload = {"stream": _view(standing), "reverts": [one for one, _, _ in undone]}
            selectors |= _followed(standing)
        elif what != "contract":
            name = "stream.updated" if standing else "stream.created"
            sender, recipient = standing[-1][2] if standing else (PEOPLE[number % 3], PEOPLE[number // 3 % 3])
            change = {}
            if what == "transfer" and standing:
                change = {"oldRecipient": recipient}
                recipient = PEOPLE[(PEOPLE.index(recipient) + 1) % 3]
                selectors.add(Selector("recipient", change["oldRecipient"]))
            payload = {"sender": sender, "recipient": recipient, "change": change}
            selectors |= {Selector("sender", sender), Selector("recipient", recipient)}
            standing.append((event_id, frozenset(selectors), (sender, recipient)))
        event = LogEvent(
            position=len(self.events) + 1,
            event_id=event_id,
            event=name,
            action=what,
            stream_id=None if what == "contract" else stream,
            ledger=None,
            tx_hash=None,
            contract_id=None,
            timestamp_ms=0,
            payload=json.dumps(payload).encode(),
        )
        self.events.append(event)
        self.matched.append(frozenset(selectors))
        return event

    def grow(self) -> None:
        """The feed hears of what was written."""
        self._grown.set()
        self._grown = trio.Event()

    async def position(self) -> int:
        await self._answer()
        return len(self.events)

    async def events_of(self, query: EventQuery) -> list[LogEvent]:
        await self._answer()
        found = [one for one in self.events if query.stream_id in {None, one.stream_id} and one.position > query.after]
        await trio.lowlevel.checkpoint()  # the answer is on its way, and the log grows
        return found[: min(query.limit, self._page)]

    async def _answer(self) -> None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StorageUnavailable("connection refused")

    def at_hand(self, after: int) -> tuple[LogEvent, ...]:
        return tuple(self.events[after : after + self._page]) if after >= len(self.events) - self.remembered else ()

    async def follow(self, after: int) -> AsyncGenerator[tuple[LogEvent, ...], None]:
        while True:
            grown = self._grown
            batch = tuple(self.events[after : after + self._page])
            if batch:
                yield batch
                after = batch[-1].position
            else:
                await grown.wait()

    def hub(self, **options: Any) -> Hub:
        store = type("InMemory", (), {"position": self.position, "events": self.events_of, "log": self})()
        return Hub(cast("Store", store), cast("Feed", self), **options)


@dataclass(eq=False)
class Span:
    """Something was followed from behind `after` to `end`, and all of that was promised, or only allowed.

    `again` are positions that it may tell although they were told before it began.
    """

    selector: Selector
    after: int
    end: int | None = None
    live: bool = True
    promised: bool = True
    again: frozenset[int] = frozenset()


@dataclass(eq=False)
class Reader:
    """A connection: what it is offered goes into a buffer of `room` bytes, which is empty unless it is stalled."""

    protocol: SubscriberProtocol
    room: int = 3_000
    stalled: bool = False
    gone: bool = False
    dropped: list[str] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    notices: list[dict[str, Any]] = field(default_factory=list)
    offers: int = 0
    spans: list[Span] = field(default_factory=list)
    resumed: int = 0
    caller: str = "anyone"
    nursery: trio.Nursery | None = None
    stuck: bool = False
    taken: int = 0
    lagged: int = 0
    _waiting: int = 0
    _read: trio.Event = field(default_factory=trio.Event)

    def offer(self, data: bytes) -> bool:
        assert not self.dropped, "what was dropped is left alone"
        self.offers += 1
        if self.gone or (self.stalled and self._waiting + len(data) > self.room):
            return False
        if self.stalled:
            self._waiting += len(data)
        for one in unframed(self.protocol, data):
            if "position" in one:
                self.told.append(int(one["position"]))
            else:
                self.notices.append(one)
        return True

    def drop(self, reason: DropReason) -> None:
        self.dropped.append(reason)

    def attend(self, work: Callable[[], Awaitable[None]]) -> None:
        assert self.nursery is not None
        self.lagged += 1
        self.nursery.start_soon(work)

    async def drained(self) -> bool:
        await trio.lowlevel.checkpoint()
        while self._waiting and not self.gone and not self.stuck:
            await self._read.wait()
        return not self.gone and not self.stuck

    def stall(self, *, stalled: bool) -> None:
        self.stalled = stalled
        if not stalled:
            self.taken += self._waiting
            self._waiting = 0
            self._stir()

    def take(self, size: int) -> None:
        """It reads so much of what waits."""
        self.taken += min(size, self._waiting)
        self._waiting -= min(size, self._waiting)
        self._stir()

    def go(self) -> None:
        self.gone = True
        self._stir()

    def stick(self) -> None:
        """It has read nothing for as long as anybody waits for that."""
        self.stuck = True
        self._stir()

    def _stir(self) -> None:
        self._read.set()
        self._read = trio.Event()


def unframed(protocol: SubscriberProtocol, data: bytes) -> list[dict[str, Any]]:
    """Read back by parsers that are not ours. The first protocol has no positions: its payload brings one here."""
    if protocol == "sse":
        parts = [dict(line.split(": ", 1) for line in one.split("\n")) for one in data.decode().split("\n\n") if one]
        return [
            {"event": one["event"], **json.loads(one["data"]), **({"position": one["id"]} if "id" in one else {})}
            for one in parts
        ]
    client = FrameProtocol(client=True, extensions=[])
    client.receive_bytes(data)
    found = []
    for frame in client.received_frames():
        assert frame.opcode is Opcode.TEXT
        assert frame.message_finished
        found.append(json.loads(frame.payload))
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, for a number of turns in which whatever can happen without time must have."""
    for _ in range(TURNS):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("it does not come about")


class World:
    """The hub running over the log, and everyone who has subscribed."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.log = Log()
        self.hub = self.log.hub()
        self.readers: list[Reader] = []
        self.nursery = nursery
        self.resuming = 0

    async def begin(self, early: Iterable[tuple[str, int]] = ()) -> None:
        """Start the hub; `early` is in the log before."""
        for what, number in early:
            self.log.write(what, number)
        await self.nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """As the supervisor does: again after each crash."""
        while True:
            with trio.CancelScope() as self._running:
                await self.hub.run(task_status=task_status)
                return  # it was drained
            task_status = trio.TASK_STATUS_IGNORED

    async def crash(self) -> None:
        """The actor is cut off wherever it is, and begins again."""
        self._running.cancel()
        await trio.lowlevel.checkpoint()

    def leave(self, reader: Reader) -> None:
        reader.go()
        reader.dropped.append("left")
        self.hub.leave(reader)

    def connect(self, number: int) -> None:
        self.readers.append(self.joined(Reader(("v2", "sse")[number % 2])))

    def joined(self, reader: Reader) -> Reader:
        reader.nursery = self.nursery
        self.hub.join(reader)
        return reader

    def subscribe(self, reader: Reader, selector: Selector) -> None:
        at = self.hub.subscribe(reader, selector)
        assert at == self.hub.head
        if not any(span.selector == selector and span.end is None and span.live for span in reader.spans):
            reader.spans.append(Span(selector, at))

    def unsubscribe(self, reader: Reader, selector: Selector) -> None:
        at = self.hub.unsubscribe(reader, selector)
        for span in reader.spans:
            if span.selector == selector and span.end is None:
                span.end = at

    def resume(self, reader: Reader, selector: Selector, after: int) -> None:
        self.resuming += 1
        reader.resumed += 1
        self.nursery.start_soon(self._resume, reader, selector, after)

    async def _resume(self, reader: Reader, selector: Selector, after: int) -> None:
        again = frozenset(at for at in reader.told if not any(self._brought(span, at) for span in reader.spans))
        reader.spans.append(span := Span(selector, after, live=False, again=again))
        at = await self.hub.resume(reader, selector, after)
        self.resuming -= 1
        if at is None:
            assert span.end is not None or reader.dropped
            span.promised = False
            span.end = self.hub.head if span.end is None else span.end
            return
        span.live = True
        assert at == self.hub.head
        assert set(self._matching(selector, after, at)) <= set(reader.told), "the acknowledgement says that it was told"

    def _brought(self, span: Span, at: int) -> bool:
        """True if the span, which has not ended, has told this position or is about to."""
        if span.end is not None or span.selector not in self.log.matched[at - 1] or at <= span.after:
            return False
        return span.live or at not in span.again

    def _matching(self, selector: Selector, after: int, end: int) -> list[int]:
        return [at for at in range(after + 1, end + 1) if selector in self.log.matched[at - 1]]

    async def finish(self) -> None:
        """Everyone reads, everything that is committed is heard of, and everything ends that can."""
        self.log.away = False
        for reader in self.readers:
            reader.stall(stalled=False)
        self.log.grow()
        await until(lambda: not self.resuming and self.hub.head == len(self.log.events) and not self.hub.status.behind)

    # -- the judge -------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        for reader in self.readers:
            self._judge(reader)

    def _judge(self, reader: Reader) -> None:
        due: set[int] = set()
        allowed: set[int] = set()
        for span in reader.spans:
            matching = self._matching(span.selector, span.after, self.hub.head if span.end is None else span.end)
            allowed.update(matching)
            if span.promised:
                due.update(matching)
        told = set(reader.told)
        assert told <= allowed
        if not reader.dropped:
            assert due <= told
        for at in told:
            assert reader.told.count(at) <= 1 + sum(at in span.again for span in reader.spans)
        self._judge_order(reader)

    def _judge_order(self, reader: Reader) -> None:
        """All in the order of the log where nobody caught up, else what only one subscription can have brought."""
        if reader.resumed == 0:
            assert reader.told == sorted(reader.told)
            if reader.dropped:  # a whole beginning of what was due
                assert len(reader.told) == len([at for at in self._due(reader) if at <= max(reader.told, default=0)])
        for span in reader.spans:
            others = {one.selector for one in reader.spans if one is not span}
            own = [
                at for at in reader.told if span.selector in (here := self.log.matched[at - 1]) and not others & here
            ]
            assert own == sorted(own)

    def _due(self, reader: Reader) -> set[int]:
        return {
            at
            for span in reader.spans
            for at in self._matching(span.selector, span.after, self.hub.head if span.end is None else span.end)
        }
