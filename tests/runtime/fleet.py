"""Several replicas on one database, for clients that are sent to any of them; they come, go, and stand still."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import trio
from followers import Place
from processes import Served
from truth import Books
from waiting import eventually
from writers import named

LEADER = "SELECT name FROM leases ORDER BY number DESC LIMIT 1"
# One that runs has its answers in less.
HANGS_WRITING = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL
        AND wait_event = 'ClientRead' AND state_change < clock_timestamp() - interval '0.1 s'
"""


class Fleet(Place):
    """Where the replicas are. One that stands still is still there, but nobody new is sent to it."""

    def __init__(self, tasks: trio.Nursery, rng: Random) -> None:
        super().__init__(tasks)
        self._rng = rng
        self._there: dict[str, bool] = {}  # URL, and whether clients are sent to it

    @property
    def urls(self) -> list[str]:
        """Of those to which clients are sent."""
        return [url for url, open_ in self._there.items() if open_]

    def comes(self, url: str) -> None:
        self._there[url] = True
        self._has_moved()

    def goes(self, url: str) -> None:
        """Before it does."""
        del self._there[url]
        self._has_moved()

    def stands_still(self, url: str) -> None:
        self._there[url] = False

    def is_still(self, url: str) -> bool:
        return url in self._there

    async def url(self) -> str:
        while not self.urls:
            await self._moved.wait()
        return self._rng.choice(self.urls)


class Replicas:
    """The processes, each under a name of its own, and the fleet that clients know of."""

    def __init__(
        self, fleet: Fleet, environ: Mapping[str, str], url: str, books: Books, folder: Path, *, rng: Random
    ) -> None:
        self.ever: list[Served] = []
        self.running: dict[str, Served] = {}
        self._fleet = fleet
        self._environ = environ
        self._url = url
        self._books = books
        self._folder = folder
        self._rng = rng

    async def start(self) -> Served:
        name = f"replica-{len(self.ever)}"
        environ = {**self._environ, "DATABASE_URL": named(self._url, name)}
        served = Served(environ, self._folder / f"{name}.log")
        self.ever.append(served)
        self.running[name] = served
        self._fleet.comes(await served.ready())
        return served

    async def leader(self) -> Served:
        """The holder of the newest lease, once that is one of those that run."""

        async def found() -> Served | None:
            rows = await self._books.rows(LEADER)
            return self.running.get(rows[0]["name"]) if rows else None

        held: Served = await eventually(found, "one of them leads", within_s=30)
        return held

    async def leave(self, served: Served) -> None:
        """Take it out of the fleet; it is about to go."""
        self._fleet.goes(await served.ready())
        self.running = {name: one for name, one in self.running.items() if one is not served}

    async def kill(self, served: Served) -> None:
        await self.leave(served)
        await served.kill()

    async def stop(self, served: Served) -> None:
        await self.leave(served)
        assert await served.stop() == 0, served.text[-3000:]

    @asynccontextmanager
    async def standing_still(self, served: Served, *, writing: bool) -> AsyncIterator[float]:
        """It is stopped where it stands for the length of the block; with `writing`, in a transaction that writes.

        Gives when that was, on trio's clock.
        """
        url = await served.ready()
        self._fleet.stands_still(url)
        served.signal(signal.SIGSTOP)
        stopped = trio.current_time()
        try:
            while writing and not await self._hangs_writing():
                served.signal(signal.SIGCONT)
                await trio.sleep(self._rng.random() / 10)
                served.signal(signal.SIGSTOP)
                stopped = trio.current_time()
            yield stopped
        finally:
            served.signal(signal.SIGCONT)
        self._fleet.comes(url)

    async def _hangs_writing(self) -> bool:
        await trio.sleep(0.15)
        return int(await self._books.value(HANGS_WRITING)) > 0

    def end_now(self) -> None:
        """For the end of a test, whatever state they are in."""
        for served in self.ever:
            served.end_now()
