"""The composition root: builds the tree of actors from a Config, and owns the order in which it starts and stops.

Start: database, migrations, source, then monitor, feed, hub, registrar, dispatcher, the exchange of rate limits, front
end, backups and the ingest pipeline.
Stop: the reverse, so that ingest drains into the log before the front end goes, webhooks that are on their way arrive,
and the database goes last.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from fluxora import __version__, logs, tracing
from fluxora.actors.backups import Backups
from fluxora.actors.dispatcher import Dispatcher
from fluxora.actors.feed import Feed
from fluxora.actors.hub import Hub
from fluxora.actors.limit_exchange import LimitExchange
from fluxora.actors.monitor import Monitor
from fluxora.actors.pipeline import Pipeline
from fluxora.actors.registrar import Registrar
from fluxora.actors.sources import Source
from fluxora.actors.sources.local import LocalSource
from fluxora.actors.sources.push import PushSource
from fluxora.actors.sources.stellar_rpc import StellarRpcSource
from fluxora.actors.status import HealthReport, WebhookStatus
from fluxora.actors.stream_cache import StreamCache
from fluxora.actors.supervisor import ChildSpec, Group, Supervisor
from fluxora.actors.webhook_sender import WebhookSender
from fluxora.collector import open_tracing
from fluxora.config import Config
from fluxora.errors import ConfigError, FluxoraError
from fluxora.http.app import Application, create_app
from fluxora.http.backend import Backend, Listening
from fluxora.http.listener import serve
from fluxora.protocol.messages import LogEvent, StreamView, view
from fluxora.storage.migrate import migrate
from fluxora.storage.store import Store, open_store

WEBHOOK_DRAIN_S = 5.0  # for deliveries on their way at the stop; what is cut off then is sent again later

_log = logs.get("runtime")


class Runtime:
    """A running Fluxora. Made by `open_runtime`; everything ends when its block does.

    `push` takes contract events where the source is "push", and is None otherwise. `app` is an ASGI application, for a
    server on trio that runs inside the block: all routes, live ones among them.
    """

    app: Application

    def __init__(self, config: Config, store: Store, feed: Feed, cache: StreamCache, *, limit_salt: bytes) -> None:
        self.config = config
        self._limit_salt = limit_salt
        self.push: PushSource | None = PushSource() if config.source.kind == "push" else None
        self._store = store
        self._feed = feed
        self._cache = cache
        self._hub = Hub(store, feed)
        self._dispatcher = Dispatcher(store, WebhookSender(config.webhooks), config.webhooks)
        self._backups = None if config.backups.target is None else Backups(store.url, config.backups)
        self._listening: Listening | None = None
        self._monitor: Monitor | None = None
        self._supervisor: Supervisor | None = None

    @property
    def port(self) -> int:
        """The port that accepts connections.

        Raises:
            ConfigError: there is none, since `HttpConfig.listen` is False.
        """
        return self._where().port

    @property
    def url(self) -> str:
        """Where REST answers, without a trailing slash.

        Raises:
            ConfigError: as `port`.
        """
        host = self._where().host
        if host in {"0.0.0.0", "::"}:  # noqa: S104 (compared, not bound)
            host = "127.0.0.1"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def _where(self) -> Listening:
        if not self.config.http.listen:
            raise ConfigError(
                "HttpConfig.listen is False: there is no port here; ask the server that serves Runtime.app"
            )
        assert self._listening is not None
        return self._listening

    def health(self) -> HealthReport:
        """What GET /health says."""
        assert self._monitor is not None
        return self._monitor.report()

    async def stream(self, stream_id: str, *, as_of: int | None = None) -> StreamView | None:
        """One stream with its amounts at `as_of` (Unix seconds, past or future; now by default).

        Raises:
            StorageUnavailable: PostgreSQL cannot answer now.
        """
        shown = await self._cache.stream(stream_id)
        return None if shown is None else view(shown.record, int(time.time()) if as_of is None else as_of)

    def events(self, after: int = 0) -> AsyncGenerator[tuple[LogEvent, ...], None]:
        """The log after position `after` in batches, then live, for ever: nothing lost, nothing twice.

        Use as ``async with aclosing(rt.events()) as batches``.
        """
        return self._feed.follow(after)

    def stop(self) -> None:
        """Begin the orderly stop; the block that `open_runtime` opened is cancelled when it is complete."""
        assert self._supervisor is not None
        self._supervisor.stop()

    def _build(self, source: Source | None, entries: Source | None) -> Supervisor:
        config = self.config
        registrar = Registrar(self._store, publish=self._feed.publish)
        pipeline = Pipeline(
            config=config,
            store=self._store,
            source=source,
            push=self.push,
            entries=entries,
            publish=self._feed.publish,
        )
        rpc = source or entries
        backend = Backend(
            config=config.http,
            store=self._store,
            push=self.push,
            hub=self._hub,
            health=self.health,
            version=__version__,
            cache=self._cache,
            writes=registrar,
            webhooks=config.webhooks,
            dispatcher=self._dispatcher,
            backups=self._backups,
            feed=self._feed,
            progress=pipeline.progress,
            calls=None if rpc is None else rpc.status.calls,
            write_tally=registrar.tally,
            limit_salt=self._limit_salt,
        )
        self.app = create_app(backend)
        self._monitor = Monitor(
            version=__version__,
            store=self._store,
            progress=pipeline.progress,
            source=config.source.kind,
            rpc=None if rpc is None else rpc.status,
            stall_threshold_s=config.pipeline.stall_threshold_s,
            actors=lambda: [] if self._supervisor is None else self._supervisor.statuses(),
            stopping=backend.stopping.is_set,
            websockets=lambda: backend.sockets.count,
            announce=self._hub.announce,
            webhooks=self._webhook_status,
            backlog_alarm_s=config.webhooks.backlog_alarm_s,
        )
        children: list[ChildSpec | Group] = [
            ChildSpec(self._monitor.name, self._monitor.run, drain=self._monitor.drain),
            ChildSpec(self._feed.name, self._feed.run, drain=self._feed.drain),
            ChildSpec(self._hub.name, self._hub.run, drain=self._hub.drain),
            ChildSpec(
                registrar.name,
                registrar.run,
                drain=registrar.drain,
                inbox=lambda: registrar.waiting,
                inbox_size=registrar.room,
            ),
            ChildSpec(
                self._dispatcher.name,
                self._dispatcher.run,
                drain=self._dispatcher.drain,
                drain_s=WEBHOOK_DRAIN_S,
            ),
            *self._limits(backend),
            ChildSpec(
                "http",
                partial(self._front, backend),
                drain=backend.stopping.set,
                drain_s=config.http.drain_s + 1,
            ),
        ]
        if self._backups is not None:
            children.append(ChildSpec(self._backups.name, self._backups.run, drain=self._backups.drain))
        if source is not None or self.push is not None:
            children.append(Group("ingest", pipeline.children))
        return Supervisor("fluxora", children)

    def _limits(self, backend: Backend) -> list[ChildSpec]:
        if not backend.config.limits.enabled:
            return []
        exchange = LimitExchange(self._store, backend.limiter)
        return [ChildSpec(exchange.name, exchange.run, drain=exchange.drain)]

    def _webhook_status(self) -> WebhookStatus:
        status = self._dispatcher.status
        return WebhookStatus(
            pending=status.pending, oldest_pending_ms=status.oldest_pending_ms, dead_lettered=status.dead_lettered
        )

    async def _front(self, backend: Backend, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.app.stand_by)
            if backend.config.listen:
                self._listening = await nursery.start(partial(serve, backend))
                backend.config = replace(backend.config, port=self._listening.port)  # a restart keeps the port
            task_status.started()


@asynccontextmanager
async def open_runtime(config: Config) -> AsyncIterator[Runtime]:
    """Start everything; inside the block it serves and follows the ledger, at its end it has stopped in order.

    What the block itself raises comes out as it is, after the stop.

    Raises:
        ConfigError: the configuration cannot work here.
        StorageUnavailable: PostgreSQL cannot be reached at the start.
        MigrationMismatch: the database belongs to another version.
        RestartIntensityExceeded: an actor keeps crashing; the block is cancelled.
    """
    logs.configure_unless_done(config.log_level)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_tracing(on=config.tracing, version=__version__))
        feed: Feed | None = None
        runtime: Runtime | None = None

        def ring() -> None:
            if feed is not None:
                feed.ring()

        def ring_for_webhooks() -> None:
            if runtime is not None:
                runtime._dispatcher.ring()  # noqa: SLF001 (its own module)

        store = await stack.enter_async_context(
            open_store(config.storage, decimals=config.decimals, wakeup=ring, webhook_wakeup=ring_for_webhooks)
        )
        await migrate(store)
        webhooks = config.webhooks
        if webhooks.url is not None and webhooks.secret is not None:
            await store.webhooks.ensure_default(webhooks.url, webhooks.secret)
        cache = StreamCache(store, trusted=lambda: feed is not None and feed.in_touch())
        feed = Feed(store, cache=cache)
        source, entries = await _open_sources(config, stack)
        runtime = Runtime(config, store, feed, cache, limit_salt=await store.limit_salt())
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                supervisor = runtime._supervisor = runtime._build(source, entries)  # noqa: SLF001 (its own module)
                with tracing.apart():
                    await nursery.start(_supervise, supervisor, nursery.cancel_scope)
                _log.info(
                    "runtime.started",
                    url=runtime.url if config.http.listen else None,
                    source=config.source.kind,
                    version=__version__,
                )
                try:
                    yield runtime
                except Exception as error:  # noqa: BLE001 - raised below: the nursery would wrap it in a group
                    failure = error
                finally:
                    supervisor.stop()
        except* FluxoraError as group:
            # One clear error for the caller; a crash is already in the log with its traceback.
            raise _leaf(group) from None
        _log.info("runtime.stopped")
        if failure is not None:
            raise failure


async def _supervise(supervisor: Supervisor, body: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    """Run the tree shielded from the block's own cancellation, which would cut the drain; its budgets bound it."""
    with trio.CancelScope(shield=True):
        await supervisor.run(task_status=task_status)
    body.cancel(reason="the runtime has stopped")


async def _open_sources(config: Config, stack: AsyncExitStack) -> tuple[Source | None, Source | None]:
    """What is pulled from, and what ledger entries are read from (the RPC also beside the push source)."""
    contracts = [contract.id for contract in config.contracts]
    if config.source.kind == "local":
        local = await stack.enter_async_context(LocalSource.open(config.source, contracts))
        return local, local
    if not config.source.rpc_urls or not contracts or config.source.kind == "none":
        return None, None
    rpc = await stack.enter_async_context(StellarRpcSource.open(config.source, contracts))
    return (rpc, rpc) if config.source.kind == "rpc" else (None, rpc)


def _leaf(group: BaseExceptionGroup[FluxoraError]) -> FluxoraError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, FluxoraError)
    return error
