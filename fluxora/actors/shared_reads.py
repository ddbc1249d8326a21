"""Reads that many ask for at a time, asked of the database together: what waits becomes one question.

A question to the database costs the same crossing from one thread to the other and back for one page as for sixty. So
while one question of a kind is under way, further ones of its kind wait, and then go together. Whoever finds nobody
asking asks, for all that wait; there is no task of its own behind it. Every question is asked after the reads in it
were asked for, so none sees less than what was committed then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

import trio

from fluxora.errors import StorageUnavailable
from fluxora.protocol.messages import StreamRecord
from fluxora.storage.store import Listing, Store, StreamQuery

MOST_AT_ONCE = 64

Asked = TypeVar("Asked")
Found = TypeVar("Found")


class SharedReads:
    """The store's small reads, shared by whoever asks at the same time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._streams = _Lane(self._of_ids)
        self._lanes: dict[Hashable, _Lane[StreamQuery, Listing]] = {}  # by shape, of which there are few

    async def stream(self, stream_id: str) -> StreamRecord | None:
        """One stream, of whatever epoch; None where there is none.

        Raises:
            StorageUnavailable: PostgreSQL cannot answer now.
        """
        return await self._streams.ask(stream_id)

    async def listing(self, query: StreamQuery) -> Listing:
        """Which streams a page has, in creation order.

        Raises:
            StorageUnavailable: PostgreSQL cannot answer now.
        """
        lane = self._lanes.get(query.shape)
        if lane is None:
            lane = self._lanes[query.shape] = _Lane(self._store.listings)
        return await lane.ask(query)

    async def _of_ids(self, stream_ids: Sequence[str]) -> list[StreamRecord | None]:
        found = await self._store.streams_of(stream_ids)
        return [found.get(stream_id) for stream_id in stream_ids]


class _Read(Generic[Asked, Found]):
    """One read that waits. `stirred` is set when there is a result, or when it is this one's turn to ask."""

    __slots__ = ("asked", "error", "found", "settled", "stirred")

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.stirred = trio.Event()
        self.settled = False
        self.found: Found | None = None
        self.error: StorageUnavailable | None = None


class _Lane(Generic[Asked, Found]):
    """Reads of one kind, one question at a time. `question` answers all that it is given, in their order."""

    def __init__(self, question: Callable[[Sequence[Asked]], Awaitable[Sequence[Found]]]) -> None:
        self._question = question
        self._waiting: deque[_Read[Asked, Found]] = deque()
        self._asking = False

    async def ask(self, asked: Asked) -> Found:
        read: _Read[Asked, Found] = _Read(asked)
        self._waiting.append(read)
        try:
            while not read.settled:
                if self._asking:
                    await read.stirred.wait()  # the asking one's deadline is the database's
                    read.stirred = trio.Event()
                else:
                    await self._ask_for_all()
        finally:
            if not read.settled:  # cancelled: whoever is next must not wait for this one
                read.settled = True
                if read in self._waiting:
                    self._waiting.remove(read)
                self._stir_next()
        if read.error is not None:
            raise StorageUnavailable(str(read.error)) from read.error
        return read.found  # type: ignore[return-value]  # settled without an error

    async def _ask_for_all(self) -> None:
        reads = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        self._asking = True
        try:
            found = await self._question([read.asked for read in reads])
        except StorageUnavailable as error:
            # Those behind would only wait as long again to hear the same.
            for read in (*reads, *self._waiting):
                self._settle(read, None, error)
            self._waiting.clear()
        except BaseException:
            # Who was cancelled while it was being asked for is not there to ask in its turn.
            self._waiting.extendleft(read for read in reversed(reads) if not read.settled)
            raise
        else:
            for read, one in zip(reads, found, strict=True):
                self._settle(read, one, None)
        finally:
            self._asking = False
            self._stir_next()

    def _settle(self, read: _Read[Asked, Found], found: Found | None, error: StorageUnavailable | None) -> None:
        read.found, read.error, read.settled = found, error, True
        read.stirred.set()

    def _stir_next(self) -> None:
        if self._waiting and not self._asking:
            self._waiting[0].stirred.set()
