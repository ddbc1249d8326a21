"""Latencies, counted instead of kept: a bucket is 2 % wide, so that any number of them costs the same."""

from __future__ import annotations

import math
from collections import Counter

BUCKETS_PER_E = 50
LEAST_S = 1e-6


def bucket(seconds: float) -> int:
    """Where a latency is counted."""
    return round(math.log(max(seconds, LEAST_S)) * BUCKETS_PER_E)


def latency_of(number: int) -> float:
    """The seconds that a bucket stands for."""
    return math.exp(number / BUCKETS_PER_E)


def percentile_ms(latencies: Counter[int], share: float) -> float:
    """Of counted latencies, in milliseconds; infinite where there are none."""
    left = share * latencies.total()
    for number in sorted(latencies):
        left -= latencies[number]
        if left <= 0:
            return latency_of(number) * 1e3
    return math.inf


def mean_ms(latencies: Counter[int]) -> float:
    """Of counted latencies, in milliseconds; infinite where there are none."""
    total = latencies.total()
    return sum(latency_of(number) * count for number, count in latencies.items()) / total * 1e3 if total else math.inf
