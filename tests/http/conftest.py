from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import trio
from front import Server, report
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve

from fluxora.actors.dedup import Deduplicator
from fluxora.actors.feed import Feed
from fluxora.actors.guard import Guard
from fluxora.actors.hub import Hub
from fluxora.actors.parcel import Parcel, Rewind
from fluxora.actors.progress import Progress
from fluxora.actors.recorder import Recorder
from fluxora.actors.registrar import Registrar
from fluxora.actors.sources.push import PushSource
from fluxora.actors.stream_cache import StreamCache
from fluxora.config import HttpConfig, LimitConfig, StorageConfig, WebhookConfig
from fluxora.http.app import create_app
from fluxora.http.backend import Backend
from fluxora.http.listener import serve
from fluxora.protocol.chain import KnownChain, LedgerBatch
from fluxora.storage.store import Appended, Store, open_store

Start = Callable[..., Awaitable[Server]]


class Live(NamedTuple):
    """What tells WebSockets of the log."""

    feed: Feed
    hub: Hub


@pytest.fixture(params=["direct", "framework"])
def carrier(request: pytest.FixtureRequest) -> str:
    """What carries the requests: the listener itself, or Quart-Trio over Hypercorn. Answers must not differ.

    A module may ask for a third, "hosted": the application under a Hypercorn that has the port, as embedders run it.
    """
    return request.param


@pytest.fixture
def start(nursery: trio.Nursery, carrier: str) -> Start:
    """Start a front over a backend; options are fields of HttpConfig or of Backend. Nothing is limited by default."""

    async def starter(**options: Any) -> Server:
        of_backend = {
            "store": None,  # for routes that never ask it
            "push": None,
            "hub": Hub(None, None),  # which is told nothing
            "health": report,
            "version": "1.2.3",
            "cache": None,
            "writes": None,
            "webhooks": WebhookConfig(),
            "dispatcher": None,
        }
        of_backend.update((k, options.pop(k)) for k in [*of_backend, "clock"] if k in options)
        if of_backend["store"] is not None and of_backend["cache"] is None:
            of_backend["cache"] = StreamCache(of_backend["store"], trusted=lambda: False)
        of_config = {"port": 0, "direct": carrier == "direct", "limits": LimitConfig(enabled=False), **options}
        backend = Backend(config=HttpConfig(**of_config), **of_backend)
        if carrier == "hosted":
            return Server(backend, await host(backend, nursery))
        listening = await nursery.start(partial(serve, backend))
        return Server(backend, listening.port)

    return starter


async def host(backend: Backend, nursery: trio.Nursery) -> int:
    """Serve the application by Hypercorn, as a stranger would: the port."""
    app, config = create_app(backend), HypercornConfig()
    config.bind, config.errorlog, config.include_server_header = ["127.0.0.1:0"], None, False
    await nursery.start(app.stand_by)
    (bound,) = await nursery.start(partial(hypercorn_serve, app, config))
    return int(bound.rpartition(":")[2])


@pytest.fixture
async def store(storage_config: StorageConfig) -> AsyncIterator[Store]:
    async with open_store(storage_config, decimals={}) as opened:
        await opened.migrate()
        yield opened


@pytest.fixture
def cache(store: Store) -> StreamCache:
    """A read cache that is told of what `record`, `push` and `writes` commit."""
    return StreamCache(store, trusted=lambda: True)


@pytest.fixture
async def live(store: Store, cache: StreamCache, nursery: trio.Nursery) -> Live:
    """A running feed and the hub behind it, which tell of what `live.publish` is given."""
    feed = Feed(store, cache=cache)
    hub = Hub(store, feed)
    await nursery.start(feed.run)
    await nursery.start(hub.run)
    return Live(feed, hub)


@pytest.fixture
async def writes(store: Store, cache: StreamCache, nursery: trio.Nursery) -> Registrar:
    """A running registrar."""
    registrar = Registrar(store, publish=lambda appended: cache.take_over(appended.streams))
    await nursery.start(registrar.run)
    return registrar


@pytest.fixture
async def record(store: Store, cache: StreamCache) -> AsyncIterator[Callable[..., Awaitable[Appended]]]:
    """Append batches to the store, as the recorder does."""
    lease = await store.try_lease()
    assert lease is not None

    async def recorder(*batches: LedgerBatch) -> Appended:
        appended = await store.append(batches, lease=lease.number)
        cache.take_over(appended.streams)
        return appended

    yield recorder
    await lease.aclose()


@pytest.fixture
async def push(store: Store, cache: StreamCache, nursery: trio.Nursery) -> AsyncIterator[PushSource]:
    """A push source with the pipeline behind it: guard, deduplicator, recorder, and the lease."""
    lease = await store.try_lease()
    assert lease is not None
    state = await store.ingest_state()
    source, progress = PushSource(), Progress()
    to_guard, guard_inbox = trio.open_memory_channel[Parcel](4)
    to_dedup, dedup_inbox = trio.open_memory_channel[Parcel](4)
    to_recorder, recorder_inbox = trio.open_memory_channel[Parcel](4)
    chain = KnownChain(state.headers)
    guard = Guard(guard_inbox, to_dedup, chain=chain, rewind=Rewind(), progress=progress, probe=None)
    dedup = Deduplicator(dedup_inbox, to_recorder, epoch=state.epoch)
    recorder = Recorder(
        recorder_inbox,
        store=store,
        lease=lease.number,
        progress=progress,
        publish=lambda appended: cache.take_over(appended.streams),
        events_per_transaction=4000,
    )
    for actor in (recorder, dedup, guard):
        await nursery.start(actor.run)
    source.open(to_guard)
    yield source
    source.close()
    await lease.aclose()
