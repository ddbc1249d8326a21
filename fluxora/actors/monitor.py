"""The monitor: probes the database, watches freshness, and puts together what /health answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal

import trio

from fluxora import logs
from fluxora.actors.progress import Progress
from fluxora.actors.sources import SourceStatus
from fluxora.actors.status import (
    ActorStatus,
    DatabaseStatus,
    Dependencies,
    HealthReport,
    IndexerStatus,
    RpcStatus,
    WebhookStatus,
)
from fluxora.errors import StorageUnavailable
from fluxora.protocol.sockets import ServiceEvent
from fluxora.storage.store import Store

_PROBE_EVERY_S = 1.0


class Monitor:
    """Its report costs nothing to make: whatever it says was found out before it was asked."""

    name = "monitor"

    def __init__(
        self,
        *,
        version: str,
        store: Store,
        progress: Progress,
        source: str,
        rpc: SourceStatus | None,
        stall_threshold_s: float,
        actors: Callable[[], list[ActorStatus]],
        stopping: Callable[[], bool],
        websockets: Callable[[], int] = lambda: 0,
        announce: Callable[[ServiceEvent, str, int], Awaitable[None]] | None = None,
        webhooks: Callable[[], WebhookStatus] = WebhookStatus,
        backlog_alarm_s: float = 300.0,
    ) -> None:
        self._version = version
        self._store = store
        self._progress = progress
        self._source = source
        self._rpc = rpc
        self._threshold_s = stall_threshold_s
        self._actors = actors
        self._stopping = stopping
        self._websockets = websockets
        self._announce = announce
        self._webhooks = webhooks
        self._backlog_alarm_s = backlog_alarm_s
        self._database = DatabaseStatus(status="unavailable")
        self._began = time.time()
        self._stop = trio.CancelScope()
        self._log = logs.get(self.name)

    def drain(self) -> None:
        """End the actor."""
        self._stop.cancel(reason="the monitor is stopping")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Probe until stopped.

        A stall and a backlog are logged when they begin and when they end; what clients lack is announced.
        """
        stalled, behind, lacking = False, False, ""
        with trio.CancelScope() as self._stop:  # one for each run, since the supervisor may run it again
            await self._probe()
            task_status.started()
            while True:
                await trio.sleep(_PROBE_EVERY_S)
                await self._probe()
                indexer = self._indexer(time.time())
                if (indexer.status == "stalled") != stalled:
                    stalled = not stalled
                    write = self._log.error if stalled else self._log.info
                    write(
                        "monitor.indexer_stalled" if stalled else "monitor.indexer_recovered", summary=indexer.summary
                    )
                backlog = self._webhooks()
                if self._is_behind(backlog) != behind:
                    behind = not behind
                    told = self._log.warning if behind else self._log.info
                    told(
                        "monitor.webhooks_behind" if behind else "monitor.webhooks_recovered",
                        pending=backlog.pending,
                        oldest_pending_ms=backlog.oldest_pending_ms,
                    )
                lacking = await self._tell(lacking, self._lacking(indexer))

    def _lacking(self, indexer: IndexerStatus) -> str:
        """Why what clients see may be out of date, "" where it is not."""
        if self._database.status != "ok":
            return "the database does not answer"
        return f"the indexer is stalled: {indexer.summary}" if indexer.status == "stalled" else ""

    async def _tell(self, before: str, now: str) -> str:
        """Announce that the service got worse, or is well again: once each way, whatever the reasons in between."""
        if self._announce is not None and bool(now) != bool(before):
            name: ServiceEvent = "service.degraded" if now else "service.recovered"
            await self._announce(name, now or "up to date again", int(time.time() * 1000))
        return now

    async def _probe(self) -> None:
        try:
            latency_s = await self._store.ping()
        except StorageUnavailable as error:
            if self._database.status == "ok":
                self._log.warning("monitor.database_unavailable", error=str(error))
            self._database = DatabaseStatus(status="unavailable")
        else:
            self._database = DatabaseStatus(status="ok", latency_ms=round(latency_s * 1000, 2))

    def report(self) -> HealthReport:
        """The body of GET /health."""
        now = time.time()
        indexer, actors, webhooks = self._indexer(now), self._actors(), self._webhooks()
        return HealthReport(
            status=self._verdict(indexer, actors, webhooks),
            version=self._version,
            timestamp=_rfc3339(now),
            ws_connections=self._websockets(),
            indexer=indexer,
            dependencies=Dependencies(database=self._database, stellar_rpc=self._rpc_status()),
            webhooks=webhooks,
            actors=actors,
        )

    def _is_behind(self, backlog: WebhookStatus) -> bool:
        """The oldest pending delivery has waited too long."""
        return (backlog.oldest_pending_ms or 0) > self._backlog_alarm_s * 1000

    def _verdict(
        self, indexer: IndexerStatus, actors: list[ActorStatus], webhooks: WebhookStatus
    ) -> Literal["ok", "degraded", "unavailable"]:
        if self._stopping() or self._database.status != "ok":
            return "unavailable"
        unwell = (
            indexer.status in {"starting", "stalled"}
            or indexer.reorg_detected
            or self._is_behind(webhooks)
            or any(actor.state == "restarting" for actor in actors)
        )
        return "degraded" if unwell else "ok"

    def _indexer(self, now: float) -> IndexerStatus:
        progress = self._progress
        status, summary = self._freshness(now)
        done, tip = progress.complete_through, progress.tip
        return IndexerStatus(
            status=status,
            summary=summary,
            lag_ms=None if progress.closed_at is None else max(0, round((now - progress.closed_at) * 1000)),
            lag_ledgers=None if done is None or tip is None else max(0, tip - done),
            last_ledger=done,
            last_safe_ledger=progress.safe_ledger,
            last_ledger_hash=progress.ledger_hash,
            last_successful_sync_at=None if progress.synced_at is None else _rfc3339(progress.synced_at),
            reorg_detected=progress.reorg_detected,
            reorgs=progress.reorgs,
            source=self._source,
        )

    def _freshness(self, now: float) -> tuple[Literal["not_configured", "starting", "healthy", "stalled"], str]:
        progress = self._progress
        if self._source == "none":
            return "not_configured", "no source is configured: set STELLAR_RPC_URL and FLUXORA_CONTRACTS"
        if self._database.status == "ok" and not progress.leading:
            return "healthy", "standing by: another replica ingests"
        if progress.halted is not None:
            return "stalled", f"halted: {progress.halted}; nothing is skipped, ingest goes on when a node can serve"
        idle_s = now - (progress.synced_at or self._began)
        if idle_s > self._threshold_s:
            reason = f", {self._rpc.failure}" if self._rpc is not None and self._rpc.failure else ""
            return "stalled", f"no ledger for {idle_s:.0f} s{reason}"
        if progress.synced_at is None:
            return "starting", "no ledger recorded since the start"
        if progress.reorg_detected:
            return "healthy", f"taking back history from ledger {progress.reorg_from} on"
        return "healthy", "following the ledger"

    def _rpc_status(self) -> RpcStatus:
        rpc = self._rpc
        if rpc is None:
            return RpcStatus(status="not_configured")
        return RpcStatus(
            status=rpc.state,
            failure=rpc.failure,
            message=rpc.message or None,
            endpoint=rpc.endpoint or None,
            failures=dict(rpc.failures),
        )


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
