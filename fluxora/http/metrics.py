"""What the front counts, and GET /metrics: the Prometheus text of it and of the runtime's families.

Counting is on the path of every request, so it is a few additions here; prometheus_client only renders. Labels are
bounded: a route's pattern, never a path; a known method; a status.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fluxora.http.exchange import Reply, Request
from fluxora.http.metric_families import buckets
from fluxora.tallies import Histogram

if TYPE_CHECKING:
    from fluxora.http.backend import Backend

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class HttpMetrics:
    """Counts since the start. `connections` is the number of those that are open now, of at most `most_connections`."""

    def __init__(self) -> None:
        self.connections = 0
        self.most_connections = 0
        self._served: dict[tuple[str, str, int], Histogram] = {}
        self._refused: dict[int, int] = {}

    def served(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        durations = self._served.get((method, route, status))
        if durations is None:
            key = (method if method in _METHODS else "OTHER", route, status)
            durations = self._served.setdefault(key, Histogram(BOUNDS_S))
        durations.counts[bisect_left(BOUNDS_S, seconds)] += 1
        durations.total += seconds

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
            histogram.add_metric([method, route, str(status)], buckets(durations), durations.total)
        yield histogram
        refused = CounterMetricFamily(
            "fluxora_http_refused", "Heads that were no request, and connections over the limit.", labels=["status"]
        )
        for status, count in self._refused.items():
            refused.add_metric([str(status)], count)
        yield refused
        yield GaugeMetricFamily("fluxora_http_connections", "Open connections.", value=self.connections)
        yield GaugeMetricFamily(
            "fluxora_http_connections_limit", "Connections that may be open.", value=self.most_connections
        )


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
    """Renders the registry of one runtime: the process, the interpreter, and what `sources` make."""

    def __init__(self, *sources: Callable[[], Iterable[Metric]]) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_Families(sources))

    def render(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)


def metrics(_request: Request, backend: Backend) -> Reply:
    """The Prometheus text format."""
    return Reply(200, (("content-type", CONTENT_TYPE),), backend.exposition.render())
