"""What /health says, from what the actors know."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from chain_events import header

from fluxora.actors.monitor import Monitor
from fluxora.actors.progress import Progress
from fluxora.actors.sources import SourceStatus
from fluxora.actors.status import ActorStatus, WebhookStatus
from fluxora.config import StorageConfig
from fluxora.storage.store import Store, open_store

THRESHOLD_S = 100.0
RUNNING = ActorStatus(name="one", state="running")


class Bench:
    """A monitor, and the things that it looks at, to be changed."""

    def __init__(self, store: Store | None, source: str = "rpc") -> None:
        self.progress = Progress(safety_margin=3, leading=True)
        self.rpc = SourceStatus(endpoint="node.example")
        self.actors = [RUNNING]
        self.stopping = False
        self.webhooks = WebhookStatus()
        self.monitor = Monitor(
            version="1.2.3",
            store=store,  # type: ignore[arg-type]
            progress=self.progress,
            source=source,
            rpc=None if source in {"none", "push"} else self.rpc,
            stall_threshold_s=THRESHOLD_S,
            actors=lambda: self.actors,
            stopping=lambda: self.stopping,
            webhooks=lambda: self.webhooks,
            backlog_alarm_s=60.0,
        )

    def synced(self, seconds_ago: float) -> None:
        self.progress.synced_at = time.time() - seconds_ago

    @property
    def verdict(self) -> tuple[str, str, str]:
        report = self.monitor.report()
        return report.status, report.indexer.status, report.indexer.summary


@pytest.fixture
async def bench(store: Store) -> Bench:
    """Its database has been probed and is well."""
    made = Bench(store)
    await made.monitor._probe()
    return made


def test_before_the_first_probe_nothing_is_claimed() -> None:
    report = Bench(None).monitor.report()
    assert (report.status, report.dependencies.database.status) == ("unavailable", "unavailable")
    assert report.dependencies.database.latency_ms is None


async def test_without_a_source_there_is_nothing_to_be_late_with(store: Store) -> None:
    bench = Bench(store, source="none")
    await bench.monitor._probe()
    bench.progress.leading = False
    assert bench.verdict[:2] == ("ok", "not_configured")
    assert bench.monitor.report().dependencies.stellar_rpc.status == "not_configured"


async def test_from_the_start_to_a_stall_and_back(bench: Bench) -> None:
    assert bench.verdict == ("degraded", "starting", "no ledger recorded since the start")
    bench.synced(THRESHOLD_S - 5)
    assert bench.verdict == ("ok", "healthy", "following the ledger")
    bench.synced(THRESHOLD_S + 5)
    assert bench.verdict == ("degraded", "stalled", "no ledger for 105 s")
    bench.rpc.failure = "throttled"
    assert bench.verdict[2] == "no ledger for 105 s, throttled"
    bench.synced(0)
    assert bench.verdict[:2] == ("ok", "healthy")


async def test_a_source_that_never_delivered_stalls_too(bench: Bench) -> None:
    bench.monitor._began -= THRESHOLD_S + 1
    assert bench.verdict[:2] == ("degraded", "stalled")


async def test_a_halt_is_a_stall_at_once(bench: Bench) -> None:
    bench.synced(0)
    bench.progress.halted = "history_pruned"
    status, indexer, summary = bench.verdict
    assert (status, indexer) == ("degraded", "stalled")
    assert summary.startswith("halted: history_pruned")


async def test_a_replica_that_stands_by_is_well_whatever_stopped_it_when_it_led(bench: Bench) -> None:
    bench.progress.halted = "history_pruned"
    bench.progress.leading = False
    assert bench.verdict == ("ok", "healthy", "standing by: another replica ingests")


async def test_a_rollback_degrades_until_it_is_behind(bench: Bench) -> None:
    bench.synced(0)
    bench.progress.fork_found(41)
    assert bench.verdict == ("degraded", "healthy", "taking back history from ledger 42 on")
    report = bench.monitor.report().indexer
    assert (report.reorg_detected, report.reorgs) == (True, 1)


async def test_a_restarting_actor_degrades(bench: Bench) -> None:
    bench.synced(0)
    bench.actors = [RUNNING, ActorStatus(name="two", state="restarting", restarts=1)]
    assert bench.verdict[:2] == ("degraded", "healthy")
    assert bench.monitor.report().actors == bench.actors


async def test_deliveries_that_wait_too_long_degrade(bench: Bench) -> None:
    bench.synced(0)
    for waited_ms, verdict in ((None, "ok"), (60_000, "ok"), (60_001, "degraded"), (5, "ok")):
        bench.webhooks = WebhookStatus(pending=9, oldest_pending_ms=waited_ms, dead_lettered=2)
        report = bench.monitor.report()
        assert (report.status, report.webhooks) == (verdict, bench.webhooks)


async def test_stopping_is_unavailable(bench: Bench) -> None:
    bench.synced(0)
    bench.stopping = True
    assert bench.verdict[:2] == ("unavailable", "healthy")


async def test_numbers(bench: Bench) -> None:
    progress = bench.progress
    progress.tip = 50
    progress.resumed(47, header(48))
    progress.closed_at = int(time.time()) - 20
    progress.synced_at = 1_700_000_000.25
    report = bench.monitor.report()
    indexer = report.indexer
    assert (indexer.last_ledger, indexer.lag_ledgers, indexer.last_safe_ledger) == (47, 3, 44)
    assert indexer.last_ledger_hash == header(48).hash
    assert indexer.lag_ms is not None
    assert 20_000 <= indexer.lag_ms < 30_000
    assert indexer.last_successful_sync_at == "2023-11-14T22:13:20.250Z"
    assert report.dependencies.database.latency_ms is not None
    assert report.dependencies.stellar_rpc.endpoint == "node.example"
    progress.tip, progress.closed_at = 40, int(time.time()) + 60  # a node behind, and a clock ahead
    indexer = bench.monitor.report().indexer
    assert (indexer.lag_ledgers, indexer.lag_ms) == (0, 0)


async def test_failures_of_the_node_are_copied(bench: Bench) -> None:
    bench.rpc.failures["throttled"] = 2
    status = bench.monitor.report().dependencies.stellar_rpc
    bench.rpc.failures["throttled"] = 3
    assert status.failures == {"throttled": 2}


async def test_the_probe_sees_the_database_go_and_come(bench: Bench, store: Store, tmp_path: Path) -> None:
    nowhere = StorageConfig(database_url="postgresql://127.0.0.1:1/none", data_dir=tmp_path, read_deadline_s=5)
    async with open_store(nowhere, decimals={}) as away:
        bench.monitor._store = away
        await bench.monitor._probe()
    report = bench.monitor.report()
    assert (report.status, report.dependencies.database.latency_ms) == ("unavailable", None)
    bench.monitor._store = store
    await bench.monitor._probe()
    assert bench.monitor.report().dependencies.database.status == "ok"


async def test_alarms_are_logged_when_they_begin_and_when_they_end_and_it_can_be_run_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxora.actors.monitor._PROBE_EVERY_S", 0.002)
    told, news = trio.open_memory_channel[dict[str, Any]](10)

    def tell(line: dict[str, Any], event: str) -> None:
        told.send_nowait(line | {"event": event})

    class Log:
        def error(self, event: str, **line: Any) -> None:
            tell(line | {"level": "error"}, event)

        def warning(self, event: str, **line: Any) -> None:
            tell(line | {"level": "warning"}, event)

        def info(self, event: str, **line: Any) -> None:
            tell(line | {"level": "info"}, event)

    bench.monitor._log = Log()  # type: ignore[assignment]
    for _ in range(2):
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                bench.synced(0)
                await nursery.start(bench.monitor.run)
                bench.synced(THRESHOLD_S + 5)
                line = await news.receive()
                assert (line["event"], line["level"]) == ("monitor.indexer_stalled", "error")
                assert line["summary"].startswith("no ledger for 105 s")
                bench.synced(0)
                line = await news.receive()
                assert (line["event"], line["level"]) == ("monitor.indexer_recovered", "info")
                bench.webhooks = WebhookStatus(pending=7, oldest_pending_ms=61_000)
                line = await news.receive()
                assert (line["event"], line["level"]) == ("monitor.webhooks_behind", "warning")
                assert (line["pending"], line["oldest_pending_ms"]) == (7, 61_000)
                bench.webhooks = WebhookStatus()
                line = await news.receive()
                assert (line["event"], line["level"]) == ("monitor.webhooks_recovered", "info")
                bench.monitor.drain()
    with pytest.raises(trio.WouldBlock):
        news.receive_nowait()


async def test_what_clients_lack_is_announced_once_each_way(
    bench: Bench, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxora.actors.monitor._PROBE_EVERY_S", 0.002)
    told, news = trio.open_memory_channel[tuple[str, str]](10)
    nowhere = StorageConfig(database_url="postgresql://127.0.0.1:1/none", data_dir=tmp_path, read_deadline_s=5)

    async def announce(name: str, reason: str, timestamp_ms: int) -> None:
        assert abs(timestamp_ms / 1000 - time.time()) < 60
        told.send_nowait((name, reason))

    bench.monitor._announce = announce
    async with open_store(nowhere, decimals={}) as away:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                bench.synced(0)
                await nursery.start(bench.monitor.run)
                bench.synced(THRESHOLD_S + 5)
                assert await news.receive() == (
                    "service.degraded",
                    "the indexer is stalled: no ledger for 105 s",
                )
                bench.monitor._store = away  # another reason for the same: nothing more is said
                while bench.monitor.report().dependencies.database.status == "ok":
                    await trio.lowlevel.checkpoint()
                bench.synced(0)
                bench.monitor._store = store
                assert (await news.receive())[0] == "service.recovered"
                bench.monitor._store = away
                assert await news.receive() == ("service.degraded", "the database does not answer")
                bench.monitor.drain()


def test_open_sockets_are_counted() -> None:
    bench = Bench(None)
    bench.monitor._websockets = lambda: 7
    assert bench.monitor.report().ws_connections == 7
