"""What the HTTP front stands on: the store, the ways in, the health report, and who may do how much."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import trio

from fluxora.actors.backups import Backups
from fluxora.actors.dispatcher import Dispatcher
from fluxora.actors.feed import Feed
from fluxora.actors.hub import Hub
from fluxora.actors.progress import Progress
from fluxora.actors.registrar import WriteTally
from fluxora.actors.sources.call_tally import CallTally
from fluxora.actors.status import HealthReport
from fluxora.actors.stream_cache import StreamCache
from fluxora.config import HttpConfig, WebhookConfig
from fluxora.http import metric_families as families
from fluxora.http.access import Access
from fluxora.http.access_log import AccessLog
from fluxora.http.client_address import ClientAddress
from fluxora.http.cors import Cors
from fluxora.http.health import HealthReply
from fluxora.http.limits import Limiter
from fluxora.http.metrics import Exposition, HttpMetrics
from fluxora.http.sockets import Sockets
from fluxora.protocol.contract import ContractEvent
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.messages import StreamRecord
from fluxora.storage.records import IdempotencyKey, Registered, StatusName
from fluxora.storage.store import Store


class Pushed(Protocol):
    """What became of a pushed batch. Ids are the network's event ids."""

    @property
    def inserted(self) -> Sequence[str]:
        """Recorded by this call."""
        ...

    @property
    def duplicates(self) -> Sequence[str]:
        """Recorded before."""
        ...

    @property
    def position(self) -> int:
        """Position of the log after it."""
        ...

    @property
    def rolled_back_from(self) -> int | None:
        """First ledger that a contradicting hash undid, if any."""
        ...

    @property
    def rolled_back(self) -> int:
        """Number of events undone."""
        ...


class Push(Protocol):
    """The way into the pipeline for events that arrive over HTTP."""

    async def submit(self, events: Sequence[ContractEvent], hashes: Mapping[int, str]) -> Pushed:
        """Record the events (ascending by id) of the ledgers whose hashes are given; returns once they are committed.

        Raises:
            StorageUnavailable: the database is away; nothing was half stored.
            LeaseLost, Unavailable: this replica does not ingest now.
        """
        ...


class Listening(msgspec.Struct, frozen=True):
    """Where the front accepts connections."""

    host: str
    port: int


class Writes(Protocol):
    """The way into the log for what clients register (actors/registrar.py)."""

    async def create(self, new: NewStream, key: IdempotencyKey | None) -> Registered:
        """A new stream of origin "api"; returns once it is committed."""
        ...

    async def change(self, stream_id: str, to: StatusName) -> StreamRecord:
        """Move a stream of origin "api" to another status; returns once that is committed."""
        ...


@dataclass
class Backend:
    """Handed to every handler. `clock` returns Unix seconds; setting `stopping` starts the graceful stop.

    `feed`, `progress`, `calls` and `write_tally` are for metrics alone.

    What stands below `stopping` is made from `config`, once: it is the same for every carrier of one front.
    """

    config: HttpConfig
    store: Store
    push: Push | None
    hub: Hub
    health: Callable[[], HealthReport]
    version: str
    cache: StreamCache
    writes: Writes
    webhooks: WebhookConfig = field(default_factory=WebhookConfig)
    dispatcher: Dispatcher | None = None
    backups: Backups | None = None
    feed: Feed | None = None
    progress: Progress | None = None
    calls: CallTally | None = None
    write_tally: WriteTally | None = None
    limit_salt: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    clock: Callable[[], float] = time.time
    stopping: trio.Event = field(default_factory=trio.Event)
    access: Access = field(init=False)
    limiter: Limiter = field(init=False)
    addresses: ClientAddress = field(init=False)
    cors: Cors = field(init=False)
    access_log: AccessLog = field(init=False)
    metrics: HttpMetrics = field(default_factory=HttpMetrics, init=False)
    sockets: Sockets = field(init=False)
    exposition: Exposition = field(init=False)
    health_reply: HealthReply = field(init=False)

    def __post_init__(self) -> None:
        """Make what the configuration says."""
        config = self.config
        self.access_log = AccessLog(config.access_log_sample)
        self.access = Access(config.access, clock=self.clock)
        self.limiter = Limiter(config.limits, salt=self.limit_salt, wall=self.clock)
        self.addresses = ClientAddress(config.trusted_proxies)
        self.cors = Cors(config.cors_origins)
        self.health_reply = HealthReply(self.health)
        self.sockets = Sockets(
            self.hub,
            ping_s=config.ws_ping_s,
            comment_s=config.sse_comment_s,
            flush_s=config.write_timeout_s,
            clock=self.clock,
        )
        self.exposition = Exposition(
            self.metrics.collect,
            lambda: families.of_sockets(self.sockets, config.max_websockets),
            lambda: families.of_health(self.health()),
            lambda: families.of_cache(self.cache),
            lambda: families.of_webhooks(None if self.dispatcher is None else self.dispatcher.status),
            lambda: families.of_backups(None if self.backups is None else self.backups.status),
            lambda: families.of_storage(self.store),
            lambda: families.of_ingest(self.progress),
            lambda: families.of_calls(self.calls),
            lambda: families.of_feed(self.feed),
            lambda: families.of_writes(self.write_tally),
            lambda: families.of_limits(self.limiter),
        )
