"""What the runtime says of itself: the body of GET /health as structs, encoded by the HTTP layer as it stands."""

from __future__ import annotations

from typing import Literal

import msgspec


class ActorStatus(msgspec.Struct, rename="camel", kw_only=True):
    """One actor: `inbox` items of at most `inbox_size` wait for it; both None for an actor without an inbox."""

    name: str
    state: Literal["starting", "running", "restarting", "stopped"]
    restarts: int = 0
    inbox: int | None = None
    inbox_size: int | None = None
    last_error: str | None = None


class IndexerStatus(msgspec.Struct, rename="camel", kw_only=True):
    """How fresh the chain-derived state is. Ledgers are sequences, `lag_ms` is wall time since the last known close."""

    status: Literal["not_configured", "starting", "healthy", "stalled"]
    summary: str
    lag_ms: int | None = None
    lag_ledgers: int | None = None
    last_ledger: int | None = None
    last_safe_ledger: int | None = None
    last_ledger_hash: str | None = None
    last_successful_sync_at: str | None = None
    reorg_detected: bool = False
    reorgs: int = 0
    source: str = "none"


class DatabaseStatus(msgspec.Struct, rename="camel", kw_only=True):
    """`latency_ms` is that of the last successful probe."""

    status: Literal["ok", "unavailable"]
    latency_ms: float | None = None


class RpcStatus(msgspec.Struct, rename="camel", kw_only=True):
    """`failure` is the class of the last failure by name while it lasts; `failures` counts them all since the start."""

    status: Literal["not_configured", "ok", "failing", "stalled"]
    failure: str | None = None
    message: str | None = None
    endpoint: str | None = None
    failures: dict[str, int] = {}


class Dependencies(msgspec.Struct, rename="camel", kw_only=True):
    """What the service stands on."""

    database: DatabaseStatus
    stellar_rpc: RpcStatus


class WebhookStatus(msgspec.Struct, rename="camel", kw_only=True):
    """The delivery backlog: deliveries that are pending or dead-lettered, and the age of the oldest pending one."""

    pending: int = 0
    oldest_pending_ms: int | None = None
    dead_lettered: int = 0


class HealthReport(msgspec.Struct, rename="camel", kw_only=True):
    """GET /health. `status` unavailable is answered with 503, the rest with 200."""

    status: Literal["ok", "degraded", "unavailable"]
    service: str = "fluxora-backend"
    version: str
    timestamp: str
    ws_connections: int = 0
    indexer: IndexerStatus
    dependencies: Dependencies
    webhooks: WebhookStatus
    actors: list[ActorStatus]
