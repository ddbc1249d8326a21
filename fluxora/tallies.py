"""Counts whose every addition is cheap: they are made on the paths that they count, and shown when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for what mostly waits for another machine."""


class Histogram:
    """How often values came that are no larger than a bound and larger than the one before it.

    `counts` has a place for each of the ascending `bounds` and one for what is above them; `total` is the values' sum.
    One thread adds; any may read.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
