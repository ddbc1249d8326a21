"""Whether something grows: a line through samples by least squares, and how much of its slope may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.processes import slope

BEYOND = 3.0  # standard errors


@dataclass(frozen=True)
class Trend:
    """Growth over `seconds`, in the unit of the samples, and its standard error."""

    growth: float
    error: float
    seconds: float

    @property
    def certain(self) -> float:
        """The growth that is beyond chance: less three standard errors, and 0 where nothing is left."""
        return max(0.0, self.growth - BEYOND * self.error)


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Of samples (seconds, value); without growth and error for fewer than four.

    Samples of memory depend on the one before. So the error is that of as many independent samples as there are in
    effect, by the correlation of each residual with the next.
    """
    if len(points) < 4:
        return Trend(0.0, 0.0, 0.0)
    rise = slope(list(points))
    mean_t = sum(t for t, _ in points) / len(points)
    mean_v = sum(v for _, v in points) / len(points)
    residuals = [v - mean_v - rise * (t - mean_t) for t, v in points]
    squares = sum(one * one for one in residuals)
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    seconds = points[-1][0] - points[0][0]
    if not squares or not spread:
        return Trend(rise * seconds, 0.0, seconds)
    alike = max(0.0, min(0.99, sum(one * other for one, other in pairwise(residuals)) / squares))
    error = math.sqrt(squares / (len(points) - 2) / spread * (1 + alike) / (1 - alike))
    return Trend(rise * seconds, error * seconds, seconds)


def second_half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The samples of the later half of the time."""
    if not points:
        return []
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]
