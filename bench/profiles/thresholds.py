"""Thresholds: what a run must have reached, as one line of text each, and whether it has.

    METRIC[{scenario:NAME}] AGGREGATE OPERATOR NUMBER
    http_req_duration{scenario:rest_reads} p(99)<250

Aggregates: p(N), avg, min, max of latencies (milliseconds) and of samples; count and rate of what is counted. The rate
of `errors` and of `dropped_iterations` is their share of all that was tried, any other rate is per second.
"""

from __future__ import annotations

import argparse
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from bench.latencies import latency_of, mean_ms, percentile_ms

_FORM = "METRIC[{scenario:NAME}] AGGREGATE<NUMBER, as in http_req_duration{scenario:rest_reads} p(99)<250"
_THRESHOLD = re.compile(
    r"(?P<metric>[a-z_]+)\s*(?:\{\s*scenario\s*:\s*(?P<scenario>[a-z_]+)\s*\})?\s+"
    r"(?P<aggregate>p\((?:100|[0-9]{1,2}(?:\.[0-9]+)?)\)|avg|min|max|count|rate)\s*"
    r"(?P<operator><=|>=|==|!=|<|>)\s*(?P<bound>[0-9]+(?:\.[0-9]+)?)"
)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
LATENCIES = ("http_req_duration", "ws_delivery_latency", "sse_delivery_latency", "webhook_delivery_latency")
COUNTED = ("http_reqs", "errors", "dropped_iterations", "lost", "doubled", "redelivered", "disordered", "deliveries")
SAMPLED = ("generator_busy", "backlog_age")
METRICS = {
    **dict.fromkeys(LATENCIES, ("p", "avg", "min", "max", "count")),
    **dict.fromkeys(COUNTED, ("count", "rate")),
    **dict.fromkeys(SAMPLED, ("p", "avg", "min", "max")),
}


class Threshold(msgspec.Struct, frozen=True):
    """One condition; `scenario` None: over all of them."""

    metric: str
    scenario: str | None
    aggregate: str
    operator: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name} {self.required}"

    @property
    def name(self) -> str:
        """What is looked at: two thresholds of one name are of the same value."""
        tag = "" if self.scenario is None else f"{{scenario:{self.scenario}}}"
        return f"{self.metric}{tag} {self.aggregate}"

    @property
    def required(self) -> str:
        """What it must be."""
        return f"{self.operator}{self.bound:.12g}"

    @property
    def is_of_speed(self) -> bool:
        """Whether a slow machine alone can miss it."""
        return self.metric in LATENCIES or self.metric in SAMPLED

    def holds(self, value: float) -> bool:
        """Whether a value is as required."""
        return _OPERATORS[self.operator](value, self.bound)


class Measured(msgspec.Struct, kw_only=True):
    """What a metric was: latencies by bucket, or a count out of `of` (None: over `seconds`), or samples."""

    latencies: Counter[int] | None = None
    count: int = 0
    of: int | None = None
    seconds: float = 0.0
    samples: Sequence[float] = ()

    def value(self, aggregate: str) -> float | None:
        """One figure of it; None where nothing was measured that it could be of."""
        if aggregate == "count":
            return float(self.count if self.latencies is None else self.latencies.total())
        if aggregate == "rate":
            whole = self.seconds if self.of is None else self.of
            return self.count / whole if whole else None
        if self.latencies is not None:
            return _of_latencies(self.latencies, aggregate) if self.latencies else None
        return _of_samples(self.samples, aggregate) if self.samples else None


def parse(text: str) -> Threshold:
    """The threshold of an option.

    Raises:
        argparse.ArgumentTypeError: it is none; says what is wrong and which form is needed.
    """
    match = _THRESHOLD.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no threshold; write {_FORM}")
    metric, aggregate = match["metric"], match["aggregate"]
    if metric not in METRICS:
        raise argparse.ArgumentTypeError(f"{metric!r} is no metric; there are {', '.join(METRICS)}")
    if aggregate.partition("(")[0] not in METRICS[metric]:
        known = ", ".join("p(N)" if one == "p" else one for one in METRICS[metric])
        raise argparse.ArgumentTypeError(f"{metric} has no {aggregate}; it has {known}")
    return Threshold(metric, match["scenario"], aggregate, match["operator"], float(match["bound"]))


def merged(defaults: Sequence[Threshold], given: Sequence[Threshold]) -> list[Threshold]:
    """The defaults but for those of which another bound was given, and what was given."""
    names = {threshold.name for threshold in given}
    return [*(threshold for threshold in defaults if threshold.name not in names), *given]


def _of_latencies(latencies: Counter[int], aggregate: str) -> float:
    if aggregate == "avg":
        return mean_ms(latencies)
    if aggregate in {"min", "max"}:
        return latency_of((min if aggregate == "min" else max)(latencies)) * 1e3
    return percentile_ms(latencies, _share(aggregate))


def _of_samples(samples: Sequence[float], aggregate: str) -> float:
    if aggregate == "avg":
        return sum(samples) / len(samples)
    if aggregate in {"min", "max"}:
        return (min if aggregate == "min" else max)(samples)
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(_share(aggregate) * len(ordered)))]


def _share(aggregate: str) -> float:
    return float(aggregate[2:-1]) / 100
