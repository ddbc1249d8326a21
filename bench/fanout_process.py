"""The server of the fan-out benchmarks: front, hub, feed and store, as the runtime puts them together, and commits on
demand, each appended to PostgreSQL and published as the recorder does it.

Says where it serves, and an event of its log as a sample. Then, for each line of input:
  {"prepare": [[stream id, ...], ...]}  make the events of the next commits ready, one for each id
  {"everyMs": N}                        commit them, so far apart; says the position before, and when each was published
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import trio

from bench.child import say
from bench.server_process import CONTRACT, GENESIS_S, LEDGER_S, PEOPLE, UNREACHED, account, preload
from fluxora import __version__, logs
from fluxora.actors.feed import Feed
from fluxora.actors.hub import Hub
from fluxora.actors.registrar import Registrar
from fluxora.actors.status import (
    DatabaseStatus,
    Dependencies,
    HealthReport,
    IndexerStatus,
    RpcStatus,
    WebhookStatus,
)
from fluxora.actors.stream_cache import StreamCache
from fluxora.config import HttpConfig, LimitConfig, StorageConfig
from fluxora.http.backend import Backend
from fluxora.http.listener import serve
from fluxora.protocol import contract
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.contract import ContractEvent
from fluxora.protocol.messages import encode_event
from fluxora.storage.store import EventQuery, Store, open_store

FIRST_LEDGER = 1_000  # of the commits, above those of the preload
PREFIX = f"stream-{CONTRACT[:12].lower()}-"


class Task(msgspec.Struct, kw_only=True):
    """What to serve: streams 1 to `streams`, to any number of sockets up to `sockets`."""

    database_url: str
    streams: int
    sockets: int
    ping_s: float
    log_level: str = "info"


class Serving(msgspec.Struct, kw_only=True):
    """Where it serves; `sample` is an event as the log shows it."""

    port: int
    position: int
    sample: msgspec.Raw


class _NotingCache(StreamCache):
    """The read cache, which is told of what was committed just before anyone else is.

    (Mostly by the committer, and at times by the feed, where PostgreSQL's notification has overtaken the answer to the
    commit itself.)
    """

    noted_at = math.inf

    def forget(self, stream_ids: Iterable[str | None]) -> None:
        """The feed has read from the log that these have changed."""
        self.noted_at = min(self.noted_at, time.monotonic())
        super().forget(stream_ids)


class _Committer:
    """Makes commits ready, and carries them out."""

    def __init__(self, store: Store, feed: Feed, cache: _NotingCache, lease: int) -> None:
        self._store = store
        self._feed = feed
        self._cache = cache
        self._lease = lease
        self._ledger = FIRST_LEDGER
        self._prepared: list[LedgerBatch] = []

    def prepare(self, commits: list[list[str]]) -> dict[str, int]:
        """Each a ledger of its own."""
        self._prepared.clear()
        for streams in commits:
            self._ledger += 1
            events = tuple(_withdrew(self._ledger, nth, stream_id) for nth, stream_id in enumerate(streams))
            self._prepared.append(LedgerBatch(events=events, headers=(), complete_through=self._ledger))
        return {"commits": len(commits)}

    async def commit(self, every_s: float) -> dict[str, Any]:
        """One after the other, `every_s` apart where that is possible."""
        began, before = trio.current_time(), await self._store.position()
        published: list[float] = []
        for nth, batch in enumerate(self._prepared):
            await trio.sleep_until(began + nth * every_s)
            self._cache.noted_at = math.inf
            appended = await self._store.append([batch], lease=self._lease)
            published.append(min(time.monotonic(), self._cache.noted_at))
            self._feed.publish(appended)
        return {"before": before, "published": published}


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure(task.log_level, human=False)
    trio.run(_serve, task)


async def _serve(task: Task) -> None:
    async with _served(task) as (store, feed, cache, port):
        lease = await store.try_lease()
        assert lease is not None  # nobody else knows the database
        committer = _Committer(store, feed, cache, lease.number)
        committer.prepare([[stream_id(1)]])
        await committer.commit(0.0)
        position = await store.position()
        (sample,) = await store.events(EventQuery(after=position - 1, limit=1))
        say(Serving(port=port, position=position, sample=msgspec.Raw(encode_event(sample))))
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            asked: dict[str, Any] = json.loads(line)
            if "prepare" in asked:
                say(committer.prepare(asked["prepare"]))
            else:
                say(await committer.commit(asked["everyMs"] / 1e3))
        await lease.aclose()


@asynccontextmanager
async def _served(task: Task) -> AsyncIterator[tuple[Store, Feed, _NotingCache, int]]:
    storage = StorageConfig(database_url=task.database_url)
    await preload(storage, task.streams)
    feed: Feed | None = None
    async with (
        open_store(storage, decimals={}, wakeup=lambda: feed.ring() if feed else None) as store,
        trio.open_nursery() as nursery,
    ):
        cache = _NotingCache(store, trusted=lambda: feed is not None and feed.in_touch())
        feed = Feed(store, cache=cache)
        hub = Hub(store, feed)
        most = 2 * task.sockets + 100  # those of the case before may not all have been seen off
        http = HttpConfig(
            port=0,
            limits=LimitConfig(anonymous_read=UNREACHED, anonymous_write=UNREACHED),
            max_connections=most,
            max_websockets=most,
            max_websockets_per_client=most,
            ws_ping_s=task.ping_s,
            sse_comment_s=task.ping_s,
        )
        backend = Backend(
            config=http,
            store=store,
            push=None,
            hub=hub,
            health=_health,
            version=__version__,
            cache=cache,
            writes=Registrar(store, publish=feed.publish),
        )
        await nursery.start(feed.run)
        await nursery.start(hub.run)
        listening = await nursery.start(partial(serve, backend))
        yield store, feed, cache, listening.port
        nursery.cancel_scope.cancel()


def _health() -> HealthReport:
    return HealthReport(
        status="ok",
        version=__version__,
        timestamp="",
        indexer=IndexerStatus(status="not_configured", summary="commits come from the benchmark"),
        dependencies=Dependencies(database=DatabaseStatus(status="ok"), stellar_rpc=RpcStatus(status="not_configured")),
        webhooks=WebhookStatus(),
        actors=[],
    )


def stream_id(number: int) -> str:
    """The id of stream `number` of the preload."""
    return f"{PREFIX}{number}"


def _withdrew(ledger: int, nth: int, stream_id: str) -> ContractEvent:
    number = int(stream_id.removeprefix(PREFIX))
    return contract.decode_named(
        id=f"{(ledger << 32) + (1 << 12):019d}-{nth:010d}",
        ledger=ledger,
        closed_at=GENESIS_S + ledger * LEDGER_S,
        contract_id=CONTRACT,
        tx_hash=f"{ledger:064x}",
        topic="withdrew",
        payload={"stream_id": number, "recipient": account(PEOPLE + number % PEOPLE), "amount": "1"},
    )


if __name__ == "__main__":
    main()
