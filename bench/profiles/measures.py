"""What a run has measured: each window as it comes, summed for the thresholds and kept as lines over time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from statistics import median, quantiles

from bench.latencies import percentile_ms
from bench.profiles.followers_process import Told
from bench.profiles.generator_process import Window
from bench.profiles.thresholds import Measured
from bench.profiles.traffic import FOLLOWERS, RECEIVERS, TOLD

Points = list[tuple[float, float]]
SHARES = (0.50, 0.95, 0.99)


class Measures:
    """Everything that was measured so far; times are those of the run."""

    def __init__(self) -> None:
        self.latencies: defaultdict[str, Counter[int]] = defaultdict(Counter)  # by scenario
        self.answered: Counter[str] = Counter()
        self.due: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.deliveries: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()  # openings of followers
        self.errors: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by scenario: reasons
        self.flaws: Counter[str] = Counter()  # lost, doubled, redelivered, disordered
        self.stored: list[str] = []
        self.live: Counter[tuple[str, str]] = Counter()  # by process and scenario
        self.deliveries_on = 0  # connections
        self.series: defaultdict[str, Points] = defaultdict(list)
        self.seconds = 0.0
        self.late_s = 0.0
        self.last = Counter[int]()  # latencies of the latest window, for who watches

    def windows(self, windows: Sequence[Window], *, target: float) -> None:
        """The same second of each generator."""
        at, seconds = windows[0].ended, max(1e-3, windows[0].ended - windows[0].began)
        self.last = Counter()
        answered, errors, dropped = 0, 0, 0
        by_scenario: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for window in windows:
            self.late_s = max(self.late_s, window.late_s)
            for name, done in window.done.items():
                self.due[name] += done.due
                self.answered[name] += done.answered
                self.dropped[name] += done.dropped
                self.errors[name].update(done.errors)
                self.stored += done.stored
                by_scenario[name].update(done.latencies)
                answered += done.answered
                errors += sum(done.errors.values())
                dropped += done.dropped
        for name, latencies in by_scenario.items():
            self._latencies(name, at, latencies)
            self.last.update(latencies)
        self.seconds += seconds
        self._note("Throughput, /s: answers", at, answered / seconds)
        self._note("Throughput, /s: asked for", at, target)
        self._note("Errors, /s: requests", at, errors / seconds)
        self._note("Errors, /s: dropped", at, dropped / seconds)
        self._note("Oldest unanswered request, s: age", at, max(window.oldest_s for window in windows))
        self._note("Connections: requests", at, sum(window.connections for window in windows))
        for nth, window in enumerate(windows, 1):
            self._note(f"Load generators, share of a core: requests {nth}", at, window.busy)

    def told(self, who: str, told: Told) -> None:
        """A second of the process `who`, of followers or of receivers."""
        for name, counts in told.counts.items():
            self.deliveries[name] += counts.deliveries
            self.tried[name] += counts.tried
            self.errors[name].update(counts.errors)
            self.live[who, name] = counts.live
            self._latencies(name, told.ended, Counter(counts.latencies))
            live = self._live_of([name])
            if (live or self.tried[name]) and name in FOLLOWERS:
                self._note(f"Connections: {name}", told.ended, live)
        deliveries = sum(counts.deliveries for counts in told.counts.values())
        self._note(f"Deliveries, /s: {who}", told.ended, deliveries)
        errors = sum(sum(counts.errors.values()) for counts in told.counts.values())
        self._note(f"Errors, /s: {who}", told.ended, errors)
        self._note(f"Load generators, share of a core: {who}", told.ended, told.busy)
        if told.deliveries_on is not None:
            self.deliveries_on = told.deliveries_on
            self._note("Connections: of the server, for webhooks", told.ended, told.deliveries_on)

    def _latencies(self, name: str, at: float, latencies: Counter[int]) -> None:
        self.latencies[name].update(latencies)
        if latencies:
            for share in SHARES:
                self._note(f"Latency of {name}, ms: p{share * 100:g}", at, percentile_ms(latencies, share))

    def _note(self, name: str, at: float, value: float) -> None:
        self.series[name].append((at, value))

    @property
    def all_live(self) -> int:
        """Followers that have begun, and endpoints."""
        return self.live.total()

    @property
    def endpoints(self) -> int:
        """Those that webhooks are sent to."""
        return self._live_of(RECEIVERS)

    def _live_of(self, names: Collection[str]) -> int:
        return sum(count for (_, name), count in self.live.items() if name in names)

    @property
    def all_errors(self) -> int:
        """Errors of every scenario."""
        return sum(reasons.total() for reasons in self.errors.values())

    def of(self, metric: str, scenario: str | None) -> Measured:
        """What a threshold looks at."""
        names = [scenario] if scenario is not None else list({*self.due, *self.tried})
        if metric in {"lost", "doubled", "redelivered", "disordered"}:
            return Measured(count=self.flaws[metric], seconds=self.seconds)
        if metric in {"generator_busy", "backlog_age"}:
            return Measured(samples=list(self._samples(metric)))
        if metric == "errors":
            tried = sum(self.answered[name] + self.tried[name] for name in names)
            return Measured(count=sum(self.errors[name].total() for name in names), of=tried)
        if metric == "dropped_iterations":
            due = sum(self.due[name] for name in names)
            return Measured(count=sum(self.dropped[name] for name in names), of=due)
        if metric == "http_reqs":
            return Measured(count=sum(self.answered[name] for name in names), seconds=self.seconds)
        if metric == "deliveries":
            return Measured(count=sum(self.deliveries[name] for name in names), seconds=self.seconds)
        of_metric: Callable[[str], bool] = lambda name: (  # noqa: E731 (a condition, named)
            TOLD[name].latency == metric if name in TOLD else metric == "http_req_duration"
        )
        latencies = Counter[int]()
        for name in filter(of_metric, names):
            latencies.update(self.latencies[name])
        return Measured(latencies=latencies)

    def _samples(self, metric: str) -> Iterator[float]:
        prefix, factor = {"generator_busy": ("Load generators,", 1.0), "backlog_age": ("Oldest ", 1e3)}[metric]
        for name, points in self.series.items():
            if name.startswith(prefix):
                yield from (value * factor for _, value in points)


def spread(points: Points) -> float | None:
    """How far the windows of a line lie apart: half the distance of their quartiles, relative to their median.

    None where there are too few of them to say.
    """
    values = [value for _, value in points]
    if len(values) < 4 or not median(values):
        return None
    low, _, high = quantiles(values, n=4)
    return (high - low) / 2 / abs(median(values))
