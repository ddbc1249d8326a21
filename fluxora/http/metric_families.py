"""What /metrics says of the runtime: each family is made from what an actor or a pool says of itself when it is asked.

Labels are bounded: an actor's name and state, a close code, an RPC method of ours and the name of a failure, a policy
of the rate limits, an outcome. None comes from a client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from fluxora.actors.backups import BackupStatus
from fluxora.actors.deliveries import DispatcherStatus
from fluxora.actors.feed import Feed
from fluxora.actors.progress import Progress
from fluxora.actors.registrar import WriteTally
from fluxora.actors.sources.call_tally import CallTally
from fluxora.actors.status import ActorStatus, HealthReport
from fluxora.actors.stream_cache import StreamCache
from fluxora.http.limits import Limiter
from fluxora.protocol.close_codes import CLOSE_CODES
from fluxora.storage.store import Store
from fluxora.tallies import Histogram

if TYPE_CHECKING:
    from fluxora.http.sockets import Sockets

_CODES = frozenset((*range(1000, 1016), *(one.code for one in CLOSE_CODES)))  # those of RFC 6455 7.4, and ours
_STATES = ("starting", "running", "restarting", "stopped")


def of_health(report: HealthReport) -> Iterable[Metric]:
    """The verdicts, the actors, and what the service stands on."""
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
    yield from _of_actors(report.actors)
    failures = report.dependencies.stellar_rpc.failures
    yield _by_label("fluxora_rpc_failures", "Failures of RPC endpoints by class.", "failure", failures)
    info = GaugeMetricFamily("fluxora_build_info", "The version, as a label.", labels=["version"])
    info.add_metric([report.version], 1)
    yield info


def _of_actors(actors: Sequence[ActorStatus]) -> Iterable[Metric]:
    states = GaugeMetricFamily(
        "fluxora_actor_state", "1 for the state that the actor is in.", labels=["actor", "state"]
    )
    restarts = CounterMetricFamily("fluxora_actor_restarts", "Restarts after a failure.", labels=["actor"])
    inbox = GaugeMetricFamily("fluxora_actor_inbox", "Items that wait for the actor.", labels=["actor"])
    room = GaugeMetricFamily("fluxora_actor_inbox_limit", "Items that may wait for the actor.", labels=["actor"])
    for actor in actors:
        for state in _STATES:
            states.add_metric([actor.name, state], int(state == actor.state))
        restarts.add_metric([actor.name], actor.restarts)
        if actor.inbox is not None:
            inbox.add_metric([actor.name], actor.inbox)
        if actor.inbox_size is not None:
            room.add_metric([actor.name], actor.inbox_size)
    yield from (states, restarts, inbox, room)


def of_sockets(sockets: Sockets, most: int) -> Iterable[Metric]:
    """What is live, and the hub behind it."""
    yield GaugeMetricFamily("fluxora_websocket_connections", "Open WebSockets.", value=sockets.count)
    yield GaugeMetricFamily("fluxora_event_stream_connections", "Open event streams.", value=sockets.streams)
    yield GaugeMetricFamily("fluxora_live_connections_limit", "Of both, how many may be open.", value=most)
    waiting, queued = sockets.queued
    yield GaugeMetricFamily("fluxora_live_queued_connections", "Of both, those that bytes wait for.", value=waiting)
    yield GaugeMetricFamily("fluxora_live_queued_bytes", "Bytes that wait for the clients of both.", value=queued)
    yield CounterMetricFamily(
        "fluxora_websocket_messages", "Messages that clients sent, refused ones too.", value=sockets.messages
    )
    text = "Messages that were answered with an error."
    yield _by_label("fluxora_websocket_errors", text, "code", sockets.errors)
    yield _by_code("fluxora_websocket_closed", "WebSockets that ended.", sockets.closed)
    yield _by_code(
        "fluxora_event_stream_closed",
        "Event streams that ended, by the code that a WebSocket would have had.",
        sockets.streams_ended,
    )
    hub = sockets.hub.status
    yield GaugeMetricFamily("fluxora_hub_position", "The position up to which everything was told.", value=hub.position)
    yield GaugeMetricFamily("fluxora_hub_subscriptions", "Subscriptions of all subscribers.", value=hub.subscriptions)
    yield GaugeMetricFamily("fluxora_hub_subscribers", "Those who follow anything.", value=hub.subscribers)
    yield GaugeMetricFamily("fluxora_hub_catching_up", "Subscriptions that catch up.", value=hub.catching_up)
    yield GaugeMetricFamily("fluxora_hub_behind", "Subscribers told from the log as they read.", value=hub.behind)
    yield GaugeMetricFamily(
        "fluxora_hub_reading", "Of both, those that read from the log or wait for a turn to.", value=hub.reading
    )
    yield CounterMetricFamily("fluxora_hub_told", "Events told, for each subscriber.", value=hub.told)
    yield CounterMetricFamily("fluxora_hub_dropped", "Subscribers that took nothing, or too little.", value=hub.dropped)


def _by_code(name: str, text: str, counts: Counter[int]) -> Metric:
    """Counts by close code; those that are for clients to make up are one, or they could make as many labels."""
    told: Counter[str] = Counter()
    for code, count in counts.items():
        told[str(code) if code in _CODES else "other"] += count
    return _by_label(name, text, "code", told)


def of_cache(cache: StreamCache | None) -> Iterable[Metric]:
    """What is answered from memory."""
    if cache is None:
        return
    status = cache.status
    yield CounterMetricFamily("fluxora_read_cache_hits", "Reads answered from memory.", value=status.hits)
    yield CounterMetricFamily("fluxora_read_cache_misses", "Reads that asked the database.", value=status.misses)
    kept = GaugeMetricFamily("fluxora_read_cache_entries", "What is kept in memory.", labels=["kind"])
    kept.add_metric(["stream"], status.streams)
    kept.add_metric(["page"], status.pages)
    yield kept


def of_webhooks(status: DispatcherStatus | None) -> Iterable[Metric]:
    """The dispatcher."""
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
        "fluxora_webhook_concurrency_limit",
        "Attempts that may be under way here at a time, those that take long not counted.",
        value=status.concurrency,
    )
    yield GaugeMetricFamily(
        "fluxora_webhook_breakers_open", "Endpoints that are left alone for a while.", value=status.breakers_open
    )
    yield _by_label("fluxora_webhook_attempts", "Attempts made from here.", "outcome", status.attempts)
    yield _histogram("fluxora_webhook_attempt_duration_seconds", "Time that an attempt took.", status.latencies)


def of_backups(status: BackupStatus | None) -> Iterable[Metric]:
    """The backups that the process makes by itself."""
    if status is None:
        return
    if status.newest_s is not None:
        yield GaugeMetricFamily(
            "fluxora_backup_newest_timestamp_seconds", "When the newest archive was made.", value=status.newest_s
        )
    yield CounterMetricFamily("fluxora_backup_failures", "Backups that failed.", value=status.failures)


def of_storage(store: Store | None) -> Iterable[Metric]:
    """The connections to PostgreSQL, and the way to the thread that they live on."""
    if store is None:
        return
    pool, bridge = store.pool_status, store.bridge_status
    for name, text, value in (
        ("fluxora_database_pool_limit", "Connections that may be open.", pool.size),
        ("fluxora_database_pool_connections", "Connections that are open.", pool.open),
        ("fluxora_database_pool_in_use", "Connections that are at work.", pool.in_use),
        ("fluxora_database_pool_waiting", "Units of work that wait for a connection.", pool.waiting),
        ("fluxora_bridge_in_flight", "Units of work on their way to the database and back.", bridge.in_flight),
        ("fluxora_bridge_waiting", "Of them, those that the database's thread has not begun.", bridge.waiting),
    ):
        yield GaugeMetricFamily(name, text, value=value)
    for name, text, value in (
        ("fluxora_database_pool_acquisitions", "Connections that were handed out.", pool.acquired),
        ("fluxora_database_pool_given_up", "Waits for one that a deadline or the caller ended.", pool.given_up),
        ("fluxora_database_timeouts", "Units of work that were not done by their deadline.", bridge.timeouts),
        ("fluxora_bridge_abandoned", "Units of work whose connection was cut to end them.", bridge.abandoned),
    ):
        yield CounterMetricFamily(name, text, value=value)
    text = "Time from the asking for a unit of work to its outcome."
    yield _histogram("fluxora_database_work_duration_seconds", text, bridge.durations)


def of_ingest(progress: Progress | None) -> Iterable[Metric]:
    """The lease, and what became of the events that were brought."""
    if progress is None:
        return
    yield GaugeMetricFamily("fluxora_lease_held", "1 while this process ingests.", value=int(progress.leading))
    if progress.lease is not None:
        yield GaugeMetricFamily("fluxora_lease_number", "The number of the lease held here.", value=progress.lease)
    counts = progress.counts
    yield _by_label(
        "fluxora_ingest_events",
        "Events that came, by what became of them.",
        "stage",
        {stage: getattr(counts, stage) for stage in ("received", "dropped", "sifted", "known", "recorded")},
    )
    yield CounterMetricFamily(
        "fluxora_ingest_undone_events", "Recorded events that were taken back.", value=counts.undone
    )
    yield CounterMetricFamily("fluxora_ingest_rollbacks", "Rollbacks that were committed.", value=counts.rollbacks)
    text = "Events of one transaction of the recorder."
    yield _histogram("fluxora_ingest_transaction_events", text, counts.events)
    text = "Time that a transaction of the recorder took."
    yield _histogram("fluxora_ingest_transaction_duration_seconds", text, counts.seconds)


def of_calls(calls: CallTally | None) -> Iterable[Metric]:
    """The calls of RPC endpoints."""
    if calls is None:
        return
    ended = CounterMetricFamily("fluxora_rpc_calls", "Calls of RPC endpoints.", labels=["method", "outcome"])
    for (method, outcome), count in calls.ended.items():
        ended.add_metric([method, outcome], count)
    yield ended
    durations = HistogramMetricFamily(
        "fluxora_rpc_call_duration_seconds",
        "Time from a call to its answer having been read, of those that brought one.",
        labels=["method"],
    )
    for method, histogram in calls.durations.items():
        durations.add_metric([method], buckets(histogram), histogram.total)
    yield durations


def of_feed(feed: Feed | None) -> Iterable[Metric]:
    """How far the log is known in this process."""
    if feed is None:
        return
    yield GaugeMetricFamily("fluxora_feed_position", "The newest position that is known here.", value=feed.head)
    yield GaugeMetricFamily("fluxora_feed_kept_events", "Of the newest events, those in memory.", value=feed.kept)
    yield GaugeMetricFamily("fluxora_feed_in_touch", "1 while the log is known as it is.", value=int(feed.in_touch()))


def of_writes(tally: WriteTally | None) -> Iterable[Metric]:
    """What the registrar did."""
    if tally is None:
        return
    yield _by_label("fluxora_write_commands", "Commands of the API, by how they ended.", "outcome", tally.commands)
    text = "Idempotency keys that decided about an answer: replayed it, were in flight, came with another body."
    yield _by_label("fluxora_idempotency_keys", text, "outcome", tally.keys)
    yield _histogram("fluxora_write_group_commands", "Commands of one transaction of the registrar.", tally.sizes)
    text = "Time that a transaction of the registrar took."
    yield _histogram("fluxora_write_group_duration_seconds", text, tally.seconds)


def of_limits(limiter: Limiter) -> Iterable[Metric]:
    """What the rate limits refused."""
    yield _by_label("fluxora_rate_limit_refused", "Requests over a limit.", "policy", limiter.refused)
    yield GaugeMetricFamily("fluxora_rate_limit_callers", "Callers that a limit remembers.", value=limiter.callers)


def buckets(histogram: Histogram) -> list[tuple[str, int]]:
    """Cumulative counts by their upper bounds."""
    return list(zip((*map(str, histogram.bounds), "+Inf"), accumulate(histogram.counts), strict=True))


def _state(name: str, text: str, now: str, states: tuple[str, ...]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state], int(state == now))
    return family


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _by_label(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(name, text)
    family.add_metric([], buckets(histogram), histogram.total)
    return family
