"""What the front counts, and GET /metrics: the Prometheus text of it and of what the runtime says of itself.

Counting is on the path of every request, so it is a few additions here; prometheus_client only renders. Labels are
bounded: a route's pattern, never a path; a known method; a status or close code; an actor's name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxora.actors.backups import BackupStatus
from fluxora.actors.deliveries import LATENCY_BOUNDS_S, DispatcherStatus
from fluxora.actors.status import HealthReport
from fluxora.actors.stream_cache import StreamCache
from fluxora.http.exchange import Reply, Request
from fluxora.protocol.close_codes import CLOSE_CODES

if TYPE_CHECKING:
    from fluxora.http.backend import Backend
    from fluxora.http.sockets import Sockets

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CODES = frozenset((*range(1000, 1016), *(one.code for one in CLOSE_CODES)))  # those of RFC 6455 7.4, and ours
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class _Durations:
    """One histogram; `counts` has a place for each bound and one for what is above them."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0


class HttpMetrics:
    """Counts since the start. `connections` is the number of those that are open now."""

    def __init__(self) -> None:
        self.connections = 0
        self._served: dict[tuple[str, str, int], _Durations] = {}
        self._refused: dict[int, int] = {}

    def served(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        durations = self._served.get((method, route, status))
        if durations is None:
            key = (method if method in _METHODS else "OTHER", route, status)
            durations = self._served.setdefault(key, _Durations())
        durations.counts[bisect_left(BOUNDS_S, seconds)] += 1
        durations.seconds += seconds

    def refused(self, status: int) -> None:
        """What never became a request was answered."""
        self._refused[status] = self._refused.get(status, 0) + 1

    def collect(self) -> Iterable[Metric]:
        """The families of the front."""
        histogram = HistogramMetricFamily(
            "fluxora_http_request_duration_seconds",
            "Time from a request's head to its reply, in seconds.",
            labels=["method", "route", "status"],
        )
        for (method, route, status), durations in self._served.items():
            buckets = _buckets(BOUNDS_S, durations.counts)
            histogram.add_metric([method, route, str(status)], buckets, durations.seconds)
        yield histogram
        refused = CounterMetricFamily(
            "fluxora_http_refused", "Heads that were no request, and connections over the limit.", labels=["status"]
        )
        for status, count in self._refused.items():
            refused.add_metric([str(status)], count)
        yield refused
        yield GaugeMetricFamily("fluxora_http_connections", "Open connections.", value=self.connections)


class _Families(Collector):
    """Everything of ours, made when it is asked for."""

    def __init__(self, sources: tuple[Callable[[], Iterable[Metric]], ...]) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        for source in self._sources:
            yield from source()

    def describe(self) -> Iterable[Metric]:
        return ()  # or the registry would collect once just to learn the names


class Exposition:
    """Renders the registry of one runtime."""

    def __init__(
        self,
        http: HttpMetrics,
        sockets: Sockets,
        *,
        health: Callable[[], HealthReport],
        cache: Callable[[], StreamCache | None],
        webhooks: Callable[[], DispatcherStatus | None],
        backups: Callable[[], BackupStatus | None],
    ) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(
            _Families(
                (
                    http.collect,
                    lambda: _of_sockets(sockets),
                    lambda: _of_health(health()),
                    lambda: _of_cache(cache()),
                    lambda: _of_webhooks(webhooks()),
                    lambda: _of_backups(backups()),
                )
            )
        )

    def render(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)


def _of_health(report: HealthReport) -> Iterable[Metric]:
    indexer, database = report.indexer, report.dependencies.database
    yield _state("fluxora_status", "The verdict of /health.", report.status, ("ok", "degraded", "unavailable"))
    yield _state(
        "fluxora_indexer_status",
        "How the ledger is being followed.",
        indexer.status,
        ("not_configured", "starting", "healthy", "stalled"),
    )
    for name, text, value in (
        ("fluxora_indexer_last_ledger", "The ledger through which everything is recorded.", indexer.last_ledger),
        ("fluxora_indexer_safe_ledger", "The last ledger that counts as safe.", indexer.last_safe_ledger),
        ("fluxora_indexer_lag_ledgers", "Ledgers between the network's tip and the last one.", indexer.lag_ledgers),
        ("fluxora_indexer_lag_seconds", "Time since the last recorded ledger closed.", _seconds(indexer.lag_ms)),
        ("fluxora_database_latency_seconds", "The last probe's round trip.", _seconds(database.latency_ms)),
    ):
        if value is not None:
            yield GaugeMetricFamily(name, text, value=value)
    yield CounterMetricFamily("fluxora_indexer_reorgs", "Histories that were taken back.", value=indexer.reorgs)
    yield GaugeMetricFamily(
        "fluxora_indexer_reorg_running", "1 while a history is being taken back.", value=int(indexer.reorg_detected)
    )
    yield GaugeMetricFamily("fluxora_database_up", "1 while PostgreSQL answers.", value=int(database.status == "ok"))
    running = GaugeMetricFamily("fluxora_actor_running", "1 while the actor runs.", labels=["actor"])
    restarts = CounterMetricFamily("fluxora_actor_restarts", "Restarts after a failure.", labels=["actor"])
    inbox = GaugeMetricFamily("fluxora_actor_inbox", "Items that wait for the actor.", labels=["actor"])
    for actor in report.actors:
        running.add_metric([actor.name], int(actor.state == "running"))
        restarts.add_metric([actor.name], actor.restarts)
        if actor.inbox is not None:
            inbox.add_metric([actor.name], actor.inbox)
    yield from (running, restarts, inbox)
    failures = CounterMetricFamily("fluxora_rpc_failures", "Failures of RPC endpoints by class.", labels=["failure"])
    for failure, count in report.dependencies.stellar_rpc.failures.items():
        failures.add_metric([failure], count)
    yield failures
    info = GaugeMetricFamily("fluxora_build_info", "The version, as a label.", labels=["version"])
    info.add_metric([report.version], 1)
    yield info


def _of_sockets(sockets: Sockets) -> Iterable[Metric]:
    yield GaugeMetricFamily("fluxora_websocket_connections", "Open WebSockets.", value=sockets.count)
    yield GaugeMetricFamily("fluxora_event_stream_connections", "Open event streams.", value=sockets.streams)
    yield CounterMetricFamily(
        "fluxora_websocket_messages", "Messages that clients sent, refused ones too.", value=sockets.messages
    )
    errors = CounterMetricFamily(
        "fluxora_websocket_errors", "Messages that were answered with an error.", labels=["code"]
    )
    for error, count in sockets.errors.items():
        errors.add_metric([error], count)
    yield errors
    yield _by_code("fluxora_websocket_closed", "WebSockets that ended.", sockets.closed)
    yield _by_code(
        "fluxora_event_stream_closed",
        "Event streams that ended, by the code that a WebSocket would have had.",
        sockets.streams_ended,
    )
    hub = sockets.hub.status
    yield GaugeMetricFamily("fluxora_hub_position", "The position up to which everything was told.", value=hub.position)
    yield GaugeMetricFamily("fluxora_hub_subscriptions", "Subscriptions of all subscribers.", value=hub.subscriptions)
    yield GaugeMetricFamily("fluxora_hub_catching_up", "Subscriptions that catch up.", value=hub.catching_up)
    yield GaugeMetricFamily("fluxora_hub_behind", "Subscribers told from the log as they read.", value=hub.behind)
    yield CounterMetricFamily("fluxora_hub_told", "Events told, for each subscriber.", value=hub.told)
    yield CounterMetricFamily("fluxora_hub_dropped", "Subscribers that took nothing, or too little.", value=hub.dropped)


def _by_code(name: str, text: str, counts: Counter[int]) -> Metric:
    """Counts by close code; those that are for clients to make up are one, or they could make as many labels."""
    told: Counter[str] = Counter()
    for code, count in counts.items():
        told[str(code) if code in _CODES else "other"] += count
    family = CounterMetricFamily(name, text, labels=["code"])
    for label, count in told.items():
        family.add_metric([label], count)
    return family


def _of_cache(cache: StreamCache | None) -> Iterable[Metric]:
    if cache is None:
        return
    status = cache.status
    yield CounterMetricFamily("fluxora_read_cache_hits", "Reads answered from memory.", value=status.hits)
    yield CounterMetricFamily("fluxora_read_cache_misses", "Reads that asked the database.", value=status.misses)
    kept = GaugeMetricFamily("fluxora_read_cache_entries", "What is kept in memory.", labels=["kind"])
    kept.add_metric(["stream"], status.streams)
    kept.add_metric(["page"], status.pages)
    yield kept


def _of_webhooks(status: DispatcherStatus | None) -> Iterable[Metric]:
    if status is None:
        return
    yield GaugeMetricFamily("fluxora_webhook_pending", "Deliveries that wait.", value=status.pending)
    yield GaugeMetricFamily(
        "fluxora_webhook_oldest_pending_seconds",
        "How long the oldest of them has waited; 0 where none waits.",
        value=_seconds(status.oldest_pending_ms) or 0.0,
    )
    yield GaugeMetricFamily("fluxora_webhook_dead_lettered", "Deliveries given up.", value=status.dead_lettered)
    yield GaugeMetricFamily("fluxora_webhook_in_flight", "Deliveries on their way from here.", value=status.in_flight)
    yield GaugeMetricFamily(
        "fluxora_webhook_breakers_open", "Endpoints that are left alone for a while.", value=status.breakers_open
    )
    attempts = CounterMetricFamily("fluxora_webhook_attempts", "Attempts made from here.", labels=["outcome"])
    for outcome, count in status.attempts.items():
        attempts.add_metric([outcome], count)
    yield attempts
    durations = HistogramMetricFamily("fluxora_webhook_attempt_duration_seconds", "Time that an attempt took.")
    durations.add_metric([], _buckets(LATENCY_BOUNDS_S, status.latency_counts), status.latency_s)
    yield durations


def _of_backups(status: BackupStatus | None) -> Iterable[Metric]:
    if status is None:
        return
    if status.newest_s is not None:
        yield GaugeMetricFamily(
            "fluxora_backup_newest_timestamp_seconds", "When the newest archive was made.", value=status.newest_s
        )
    yield CounterMetricFamily("fluxora_backup_failures", "Backups that failed.", value=status.failures)


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, int]]:
    """Cumulative counts by their upper bounds; `counts` has one more, for what is above all bounds."""
    return list(zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True))


def _state(name: str, text: str, now: str, states: tuple[str, ...]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state], int(state == now))
    return family


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def metrics(_request: Request, backend: Backend) -> Reply:
    """The Prometheus text format."""
    return Reply(200, (("content-type", CONTENT_TYPE),), backend.exposition.render())
