"""Lines over time as SVG that stands in a page by itself: no script, no style sheet, nothing fetched."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 480, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#475569", "#b45309")
LEAST_SPAN = 1e-9
MOST_POINTS = 600  # of a line: as many as can be told apart


def chart(title: str, lines: Mapping[str, Points]) -> str:
    """A figure with the lines by name, from 0 or the least value up; "" where there is no point that can be shown."""
    shown = {
        name: thinned([point for point in points if all(map(math.isfinite, point))]) for name, points in lines.items()
    }
    every = [point for points in shown.values() for point in points]
    if not every:
        return ""
    first, last = min(t for t, _ in every), max(t for t, _ in every)
    low, high = min(0.0, *(v for _, v in every)), max(v for _, v in every)
    x = _scale(first, last, LEFT, WIDTH - RIGHT)
    y_ticks = ticks(low, high if high - low > LEAST_SPAN else low + 1)
    y = _scale(low, max(y_ticks[-1], high), HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for value in y_ticks:
        at = y(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    parts += [
        f'<text x="{x(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_number(value)} s</text>'
        for value in ticks(first, last if last - first > LEAST_SPAN else first + 1)
        if first <= value <= last
    ]
    for colour, points in zip(_colours(len(shown)), shown.values(), strict=True):
        path = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    keys = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for colour, name in zip(_colours(len(shown)), shown, strict=True)
    )
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{''.join(parts)}</svg><p>{keys}</p></figure>"


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them: of each stretch the highest, so that no peak is left out."""
    if len(points) <= MOST_POINTS:
        return list(points)
    step = len(points) / MOST_POINTS
    return [
        max(points[int(nth * step) : int((nth + 1) * step)], key=lambda point: point[1]) for nth in range(MOST_POINTS)
    ]


def ticks(low: float, high: float) -> list[float]:
    """Round values from one at or below `low` to one at or above `high`, four to nine of them."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    return [nth * step for nth in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, (end - start) / ((high - low) or 1.0), start)


class _Scale:
    def __init__(self, low: float, factor: float, start: float) -> None:
        self._low, self._factor, self._start = low, factor, start

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._factor


def _colours(count: int) -> list[str]:
    return [COLOURS[nth % len(COLOURS)] for nth in range(count)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
