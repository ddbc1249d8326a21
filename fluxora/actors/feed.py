"""The feed: the log as it grows, for everyone in this process who follows it by position.

The recorder's commits come in directly; what other replicas append is read from the log, on a notification or, should
one be lost, at the next poll. Recent events are kept; whoever is further behind reads from the log itself. So a
slow follower costs nobody anything, and nothing is ever skipped or repeated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from itertools import islice
from math import inf

import trio

from fluxora import logs
from fluxora.actors.stream_cache import StreamCache
from fluxora.errors import StorageUnavailable
from fluxora.protocol.messages import LogEvent
from fluxora.storage.store import Appended, EventQuery, Store

POLL_INTERVAL_S = 1.0
TRUST_S = 5.0
_PAGE = 1_000
_PAGE_BYTES = 1 << 20  # of payloads: each that is far behind has a page of its own
_RETRY_S = 0.5
KEEP_BYTES = 32 << 20  # of payloads; 10,000 ordinary events are some 10 MiB


class Feed:
    """Keeps the newest events, at most `keep` of them and `keep_bytes` of payloads.

    Positions are gap-free and in commit order, so `head` alone says what is missing.
    """

    name = "feed"

    def __init__(
        self,
        store: Store,
        *,
        cache: StreamCache | None = None,
        keep: int = 10_000,
        keep_bytes: int = KEEP_BYTES,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._store = store
        self._cache = cache
        self._epoch: int | None = None
        self._in_touch = -inf  # when the log was last asked for its head and answered; trio's clock
        self._recent: deque[LogEvent] = deque()  # contiguous, its last event is at `head`
        self._recent_bytes = 0
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._head: int | None = None
        self._grown = trio.Event()
        self._doorbell = trio.Event()
        self._poll_interval_s = poll_interval_s
        self._stop = trio.CancelScope()
        self._log = logs.get(self.name)

    @property
    def head(self) -> int:
        """The newest position that is known here."""
        return self._head or 0

    def in_touch(self) -> bool:
        """True while this process knows of everything that was committed up to `TRUST_S` ago."""
        return trio.current_time() - self._in_touch < TRUST_S

    @property
    def kept(self) -> int:
        """How many of the newest events are in memory."""
        return len(self._recent)

    def drain(self) -> None:
        """End the actor; followers keep what they have."""
        self._stop.cancel(reason="the feed is stopping")

    def publish(self, appended: Appended) -> None:
        """Take over what the recorder has just committed, where it is next; a gap before it is read from the log."""
        if self._cache is not None:
            self._cache.take_over(appended.streams)
        events = appended.events
        if not events:
            return
        if self._head is not None and events[0].position == self._head + 1:
            self._extend(events)
        else:
            self.ring()

    def ring(self) -> None:
        """Someone has appended to the log."""
        self._doorbell.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep up with the log; the database being away is waited out."""
        task_status.started()
        with trio.CancelScope() as self._stop:  # one for each run, since the supervisor may run it again
            while True:
                doorbell = self._doorbell = trio.Event()
                try:
                    await self._catch_up()
                except StorageUnavailable as error:
                    self._in_touch = -inf
                    self._log.info("feed.database_unavailable", error=str(error))
                    await trio.sleep(_RETRY_S)
                    continue
                with trio.move_on_after(self._poll_interval_s):
                    await doorbell.wait()

    async def follow(self, after: int) -> AsyncGenerator[tuple[LogEvent, ...], None]:
        """Yield everything after position `after`, in order, in batches, then what is appended, for ever.

        Use as ``async with aclosing(feed.follow(position)) as batches``.
        """
        while True:
            grown = self._grown
            batch = self._kept(after)
            if batch is None:
                try:
                    batch = tuple(
                        await self._store.events(EventQuery(after=after, limit=_PAGE, most_bytes=_PAGE_BYTES))
                    )
                except StorageUnavailable:
                    await trio.sleep(_RETRY_S)
                    continue
            if batch:
                yield batch
                after = batch[-1].position
            else:
                await grown.wait()  # until something is appended; cancellation ends it

    def at_hand(self, after: int) -> tuple[LogEvent, ...]:
        """What follows `after`, or its beginning, where that is in memory; () where nothing is."""
        return self._kept(after) or ()

    async def _catch_up(self) -> None:
        asked = trio.current_time()
        head = await self._store.head()
        if self._head is None:
            self._head = head.position
            self._wake()
        while self._head < head.position:
            events = await self._store.events(EventQuery(after=self._head, limit=_PAGE, most_bytes=_PAGE_BYTES))
            if not events:
                break  # a database that was set back; the next look decides
            # The recorder may have published meanwhile.
            fresh = [event for event in events if event.position > self._head]
            if fresh:
                if self._cache is not None:
                    self._cache.forget(event.stream_id for event in fresh)
                self._extend(fresh)
        if head.epoch != self._epoch:
            if self._cache is not None:
                self._cache.forget_everything()
            self._epoch = head.epoch
        self._in_touch = asked

    def _extend(self, events: list[LogEvent]) -> None:
        recent = self._recent
        recent.extend(events)
        self._recent_bytes += sum([len(event.payload) for event in events])
        while len(recent) > self._keep or self._recent_bytes > self._keep_bytes:
            self._recent_bytes -= len(recent.popleft().payload)
        self._head = events[-1].position
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = trio.Event()

    def _kept(self, after: int) -> tuple[LogEvent, ...] | None:
        """What follows `after` from memory, () at the head; None where memory does not reach back that far."""
        if self._head is None:
            return None
        if after >= self._head:
            return ()
        missing = self._head - after
        if missing > len(self._recent):
            return None
        start = len(self._recent) - missing
        return tuple(islice(self._recent, start, min(start + _PAGE, len(self._recent))))
