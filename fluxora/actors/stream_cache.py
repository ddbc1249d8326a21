"""Streams and pages of streams that were read lately, kept true by the log.

Promises
- What this process has committed is seen by its next read: commits are taken over before anyone is told of them.
- What another replica has committed is seen as soon as this one is told, which the feed does by notification, and by a
  poll where that is lost. While the feed cannot reach the log, nothing is answered from memory.
- A read that races with a change is not kept: each read from the database is noted, and a change of what it may have
  missed voids the note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
import trio
from cachetools import LRUCache

from fluxora.actors.shared_reads import SharedReads
from fluxora.protocol.messages import StreamRecord, encode_view
from fluxora.storage.store import Store, StreamQuery

STREAMS = 50_000  # about 2 KB each
PAGES = 1_000
SECOND_CHANCES = 64


class Shown:
    """A stream's record, and its JSON at the second for which it was last asked; `used` since the cache last looked."""

    __slots__ = ("_as_of", "_json", "record", "used")

    def __init__(self, record: StreamRecord) -> None:
        self.record = record
        self.used = False
        self._as_of = -1
        self._json = b""

    def json(self, as_of: int) -> bytes:
        """The wire's Stream with its amounts at `as_of` (Unix seconds)."""
        if as_of != self._as_of:
            self._json = encode_view(self.record, as_of)
            self._as_of = as_of
        return self._json


class Page:
    """A page of a list: the streams in order, whether more follow, and the log's position that all of it shows.

    `ending` is what its JSON ends with, which no second changes; b"" until whoever renders it has made it.
    """

    __slots__ = ("_as_of", "_json", "ending", "has_more", "position", "streams")

    def __init__(self, streams: list[Shown], *, has_more: bool, position: int) -> None:
        self.streams = streams
        self.has_more = has_more
        self.position = position
        self.ending = b""
        self._as_of = -1
        self._json = b""

    def json(self, as_of: int) -> bytes:
        """The streams' JSON, joined with commas."""
        if as_of != self._as_of:
            self._json = b",".join([shown.json(as_of) for shown in self.streams])
            self._as_of = as_of
        return self._json


class CacheStatus(msgspec.Struct, frozen=True):
    """Counts since the start, and how much is kept now."""

    hits: int
    misses: int
    streams: int
    pages: int


class _Reading:
    """A read of the database under way; `void` once something changed that it may not have seen."""

    __slots__ = ("done", "found", "generation", "void")

    def __init__(self, generation: int = 0) -> None:
        self.void = False
        self.generation = generation
        self.done = trio.Event()
        self.found: Page | None = None


class StreamCache:
    """Reads through to the store. `trusted` says whether the log's growth is being followed right now."""

    def __init__(
        self, store: Store, *, trusted: Callable[[], bool], streams: int = STREAMS, pages: int = PAGES
    ) -> None:
        self._store = store
        self._reads = SharedReads(store)
        self._trusted = trusted
        self._streams: dict[str, Shown] = {}  # the one that was looked at longest ago comes first
        self._most_streams = streams
        self._pages: LRUCache[StreamQuery, Page] = LRUCache(pages)
        self._reading: dict[str, list[_Reading]] = {}
        self._paging: dict[StreamQuery, _Reading] = {}
        self._generation = 0  # of all pages: any change may move a stream into any of them
        self._hits = 0
        self._misses = 0

    @property
    def status(self) -> CacheStatus:
        """For metrics."""
        return CacheStatus(self._hits, self._misses, len(self._streams), len(self._pages))

    # -- one stream ------------------------------------------------------------------------------------------------

    def at_once(self, stream_id: str) -> Shown | None:
        """The stream from memory; None where it is not there or memory cannot be trusted."""
        shown = self._streams.get(stream_id)
        if shown is None or not self._trusted():
            return None
        self._hits += 1
        shown.used = True
        return shown

    async def stream(self, stream_id: str) -> Shown | None:
        """One stream of whatever epoch; None where there is none.

        Raises:
            StorageUnavailable: PostgreSQL cannot answer now.
        """
        shown = self.at_once(stream_id)
        if shown is not None:
            return shown
        self._misses += 1
        reading = _Reading()
        self._reading.setdefault(stream_id, []).append(reading)
        try:
            record = await self._reads.stream(stream_id)
        finally:
            waiting = self._reading[stream_id]
            waiting.remove(reading)
            if not waiting:
                del self._reading[stream_id]
        if record is None:
            return None
        shown = Shown(record)
        if not reading.void:
            self._keep(shown)
        return shown

    def _keep(self, shown: Shown) -> None:
        """Take a stream in; where there is no place, the first one that was not used since it was last looked at goes.

        (The clock algorithm: as good as least-recently-used, and a hit costs nothing but a mark.)
        """
        self._streams[shown.record.id] = shown
        chances = SECOND_CHANCES  # at a time, so that taking in one never takes long
        while len(self._streams) > self._most_streams:
            stream_id = next(iter(self._streams))
            oldest = self._streams.pop(stream_id)
            if oldest.used and chances:
                oldest.used = False
                self._streams[stream_id] = oldest
                chances -= 1

    # -- pages -----------------------------------------------------------------------------------------------------

    def page_at_once(self, query: StreamQuery) -> Page | None:
        """The page from memory; None where it is not there, something changed since, or memory cannot be trusted."""
        page: Page | None = self._pages.get(query)
        if page is None or not self._trusted():
            return None
        self._hits += 1
        return page

    async def page(self, query: StreamQuery) -> Page:
        """A page of `query.limit` streams. Who asks for the page that is being read just now waits for that read.

        Raises:
            StorageUnavailable: PostgreSQL cannot answer now.
        """
        while True:
            if (page := self.page_at_once(query)) is not None:
                return page
            reading = self._paging.get(query)
            if reading is None or reading.generation != self._generation or not self._trusted():
                return await self._read_page(query)
            await reading.done.wait()  # the reader's deadline is this one's too
            if reading.found is not None:
                self._hits += 1
                return reading.found

    async def _read_page(self, query: StreamQuery) -> Page:
        self._misses += 1
        reading = self._paging[query] = _Reading(self._generation)
        try:
            position, shown, has_more = await self._listed(query)
            page = Page(shown, has_more=has_more, position=position)
            reading.found = page
            if reading.generation == self._generation:
                self._pages[query] = page
                for one in shown:
                    if one.record.id not in self._streams:
                        self._keep(one)
            return page
        finally:
            if self._paging.get(query) is reading:
                del self._paging[query]
            reading.done.set()

    async def _listed(self, query: StreamQuery) -> tuple[int, list[Shown], bool]:
        """The log's position, the page's streams and whether more follow: which they are from the database, and what
        they are from memory, where the same version is there.
        """
        wanted = msgspec.structs.replace(query, limit=query.limit + 1)
        listing = await self._reads.listing(wanted)
        listed = listing.streams[: query.limit]
        kept = [self._streams.get(one.id) for one in listed]
        missing = [
            one.id
            for one, shown in zip(listed, kept, strict=True)
            if shown is None or shown.record.position != one.position
        ]
        if missing:
            found = await self._store.streams_of(missing)
            for at, one in enumerate(listed):
                if one.id in found:
                    kept[at] = Shown(found[one.id])
        shown = [
            shown
            for one, shown in zip(listed, kept, strict=True)
            if shown is not None and shown.record.position == one.position
        ]
        if len(shown) == len(listed):
            return listing.position, shown, len(listing.streams) > query.limit
        # Some of them changed between the two questions, and may belong to other pages now: one snapshot tells.
        position, records = await self._store.page(wanted)
        return position, [Shown(record) for record in records[: query.limit]], len(records) > query.limit

    # -- what the log says -----------------------------------------------------------------------------------------

    def take_over(self, streams: Mapping[str, StreamRecord | None]) -> None:
        """Streams as this process has just committed them (None: taken away)."""
        for stream_id, record in streams.items():
            self._void(stream_id)
            shown = self._streams.get(stream_id)
            if shown is None:
                continue
            if record is None:
                del self._streams[stream_id]
            elif record.position > shown.record.position:  # else another replica's newer change was read already
                self._streams[stream_id] = Shown(record)
        self._forget_pages()

    def forget(self, stream_ids: Iterable[str | None]) -> None:
        """Streams that another replica has changed."""
        for stream_id in stream_ids:
            if stream_id is not None:
                self._void(stream_id)
                self._streams.pop(stream_id, None)
        self._forget_pages()

    def forget_everything(self) -> None:
        """A new network epoch has begun, or nobody can say what has changed."""
        for stream_id in self._reading:
            self._void(stream_id)
        self._streams.clear()
        self._forget_pages()

    def _void(self, stream_id: str) -> None:
        for reading in self._reading.get(stream_id, ()):
            reading.void = True

    def _forget_pages(self) -> None:
        self._generation += 1
        self._pages.clear()
