"""Turns at something that is scarce, dealt out fairly among callers: who asks for much waits behind itself.

A caller with a hundred that wait gets on as fast as one with a single one. It costs nothing while nobody waits.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


class Turns:
    """At most `at_once` in all, and `of_one` of one caller; callers that wait come one after the other, in a circle."""

    def __init__(self, at_once: int, *, of_one: int = 1) -> None:
        self._at_once = at_once
        self._free = at_once
        self._of_one = of_one
        self._taken: Counter[str] = Counter()
        self._waiting: dict[str, deque[trio.Event]] = {}  # whoever is next comes first; nobody who could go on waits

    @property
    def engaged(self) -> int:
        """How many have a turn or wait for one."""
        return self._at_once - self._free + sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def taken(self, caller: str) -> AsyncGenerator[None, None]:
        """Have a turn for the block; waits for it only where there is none to be had."""
        if self._may(caller):
            self._take(caller)
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._give_back(caller)

    async def _wait(self, caller: str) -> None:
        mine = trio.Event()
        self._waiting.setdefault(caller, deque()).append(mine)
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():
                self._give_back(caller)
            else:
                self._waiting[caller].remove(mine)
                self._tidy(caller)
            raise

    def _may(self, caller: str) -> bool:
        return self._free > 0 and self._taken[caller] < self._of_one

    def _take(self, caller: str) -> None:
        self._free -= 1
        self._taken[caller] += 1

    def _give_back(self, caller: str) -> None:
        self._free += 1
        self._taken[caller] -= 1
        # Of those who wait, only callers that have turns may not go on, so few are looked at.
        while self._free and (fortunate := next(filter(self._may, self._waiting), None)) is not None:
            self._take(fortunate)
            queue = self._waiting.pop(fortunate)
            queue.popleft().set()
            self._waiting[fortunate] = queue  # behind the others
            self._tidy(fortunate)
        if not self._taken[caller]:
            del self._taken[caller]  # or callers would pile up

    def _tidy(self, caller: str) -> None:
        if not self._waiting[caller]:
            del self._waiting[caller]
