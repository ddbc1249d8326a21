"""The exchange: what callers spend of their rate limits here counts on the other processes too, a moment later.

No request waits for it. About once a second, and sooner where a caller spends a lot, the process publishes what its
busy callers have spent since, and takes those tokens from its own buckets which were spent elsewhere. A process that
has heard of no other for a minute publishes nothing, and asks once a second whether there is one.

Promises
- A process grants nothing that all of them together, as far as it knows, may not grant. What it does not know is what
  the others granted since their last round, and less than a twentieth of a quota at each of them.
- So N processes may grant a caller more than its quota by N - 1 times what one of them grants between two rounds. It
  is paid back: until then the caller gets nothing anywhere.
- While the database is away each goes on by itself, and tells of the last minute when it is back.
- A process that comes learns what was spent within the last minute; one that goes leaves it behind.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from math import inf
from typing import NamedTuple, Protocol

import trio

from fluxora import logs
from fluxora.errors import StorageUnavailable
from fluxora.storage.shared_limits import COUNTS_S, Round, Tally
from fluxora.storage.store import Store

EVERY_S = 1.0
LEAST_S = 0.2  # between two rounds, however much is spent
MOST_TALLIES = 2_000  # of a round, about two milliseconds of work at each reader; others wait for the next
_SHOW_EVERY_S = COUNTS_S / 4
_LAST_S = 1.0


class Shared(Protocol):
    """Buckets that take part (http/limits.py)."""

    ring: Callable[[], None]

    def begin_sharing(self) -> Iterator[None]:
        """Count what is to be published from now on, and before that what buckets lack. Yields between parts of it."""
        ...

    def end_sharing(self) -> None:
        """Count nothing any more."""
        ...

    def take_spent(self, most: int) -> list[Tally]:
        """What was spent and not published yet; `ring` is called when there begins to be something."""
        ...

    def spend(self, spent: Sequence[Tally], age_s: float) -> None:
        """Take what was spent elsewhere up to `age_s` ago."""
        ...


class _Kept(NamedTuple):
    """A round that is not known to be written."""

    number: int
    at: float
    spent: list[Tally]


class LimitExchange:
    """Takes part in the database's exchange, under a name of its own."""

    name = "limits"

    def __init__(self, store: Store, limiter: Shared) -> None:
        self._store = store
        self._limiter = limiter
        self._process = secrets.token_hex(8)
        self._number = 0
        self._kept: deque[_Kept] = deque()
        self._known: dict[str, int] = {}
        self._sharing = False
        self._shown_at = -inf
        self._others_at = -inf  # when it was heard last that others are there
        self._rung = trio.Event()
        self._stop = trio.CancelScope()
        self._log = logs.get(self.name)
        limiter.ring = self._ring

    def drain(self) -> None:
        """Cease; the actor ends."""
        self._stop.cancel(reason="the limits are no more exchanged")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Exchange until `drain` is called, and then once more."""
        task_status.started()
        with trio.CancelScope() as self._stop:  # one for each run, since the supervisor may run it again
            await self._exchange()
        with suppress(StorageUnavailable), trio.move_on_after(_LAST_S):
            await self.round()

    async def _exchange(self) -> None:
        away = False
        while True:
            self._rung = trio.Event()
            try:
                await self.round()
                away = False
            except StorageUnavailable as error:
                if not away:
                    self._log.info("limits.database_unavailable", error=str(error))
                away = True
            await trio.sleep(EVERY_S if away else LEAST_S)
            with trio.move_on_after(EVERY_S - LEAST_S):
                await self._rung.wait()

    def _ring(self) -> None:
        self._rung.set()

    async def round(self) -> None:
        """Publish, and take over.

        Raises:
            StorageUnavailable: what was to be published is kept for the next round.
        """
        now = trio.current_time()
        spent = self._limiter.take_spent(MOST_TALLIES)
        if spent:
            self._number += 1
            self._kept.append(_Kept(self._number, now, spent))
        while self._kept and now - self._kept[0].at > COUNTS_S:
            self._kept.popleft()
        if now - self._shown_at >= _SHOW_EVERY_S:
            await self._store.show_for_limits(self._process)
            self._shown_at = now
        rounds = [Round(kept.number, now - kept.at, kept.spent) for kept in self._kept]
        heard = await self._store.exchange_limits(self._process, rounds, self._known)
        self._kept.clear()
        self._known = dict(heard.known)
        if heard.others:
            self._others_at = now
        await self._share(sharing=now - self._others_at < COUNTS_S)
        for each in heard.rounds:
            self._limiter.spend(each.spent, each.age_s)
            await trio.lowlevel.checkpoint()

    async def _share(self, *, sharing: bool) -> None:
        """Begin to count, or cease. What buckets lack is published at the beginning, so nothing of it may be others'.

        So it begins before anything is taken over, and ceases where all that was is in again: a server that crashed
        forgets who is there, and they are back a moment later.
        """
        if sharing and not self._sharing:
            for _ in self._limiter.begin_sharing():
                await trio.lowlevel.checkpoint()
        elif self._sharing and not sharing:
            self._limiter.end_sharing()
        self._sharing = sharing
