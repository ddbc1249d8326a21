"""Two reports side by side: what has changed, as ratios, and what of that may be chance.

A figure whose windows are known has a spread. Where two figures differ by no more than their spreads together, the
difference is noise; where no spread is known, only a second run can tell.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import msgspec

from bench.harness import Figure, Report
from bench.report import columns, number


class Unreadable(Exception):
    """The file holds no report; carries its name and why."""


class Change(Enum):
    """What a difference is worth."""

    SAME = "same"
    NOISE = "noise"
    CHANGED = "CHANGED"
    UNKNOWN = "?"  # no spread: one run of each cannot tell


def read(path: Path) -> Report:
    """The report in a file.

    Raises:
        Unreadable: there is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError) as error:
        raise Unreadable(f"{path}: no report of a benchmark can be read from it ({error})") from error


def change(before: Figure, after: Figure) -> Change:
    """What the difference of two figures is worth."""
    if before.value == after.value:
        return Change.SAME
    if before.spread is None or after.spread is None:
        return Change.UNKNOWN
    allowed = before.spread * abs(before.value) + after.spread * abs(after.value)
    return Change.NOISE if abs(after.value - before.value) <= allowed else Change.CHANGED


def text(before: Report, after: Report) -> str:
    """Every figure that both have, then what only one has, the verdicts that differ and the options that do."""
    lines = [
        f"A: {before.scenario}  {before.started_at}  commit {before.machine.commit}",
        f"B: {after.scenario}  {after.started_at}  commit {after.machine.commit}",
    ]
    for what, ours, theirs in (
        ("processor", before.machine.processor, after.machine.processor),
        ("cores", before.machine.cores, after.machine.cores),
        ("Python", before.machine.python, after.machine.python),
        *((name, before.options.get(name), after.options.get(name)) for name in _either(before.options, after.options)),
    ):
        if ours != theirs:
            lines.append(f"not the same: {what} (A {ours}, B {theirs})")
    ours_by, theirs_by = ({figure.name: figure for figure in report.figures} for report in (before, after))
    rows: list[tuple[str, ...]] = [("", "A", "B", "unit", "B/A", "")]
    rows += [_row(ours_by[name], theirs_by[name]) for name in ours_by if name in theirs_by]
    lines += ["", *columns(rows), ""]
    lines += [f"only in A: {name}" for name in ours_by if name not in theirs_by]
    lines += [f"only in B: {name}" for name in theirs_by if name not in ours_by]
    verdicts = {verdict.name: verdict for verdict in before.verdicts}
    for verdict in after.verdicts:
        earlier = verdicts.get(verdict.name)
        if earlier is not None and earlier.passed != verdict.passed:
            lines.append(f"{earlier.outcome} in A, {verdict.outcome} in B: {verdict.name} {verdict.required}")
    return "\n".join(lines).rstrip()


def _row(before: Figure, after: Figure) -> tuple[str, ...]:
    ratio = f"{after.value / before.value:.2f}x" if before.value else "-"
    return (before.name, number(before.value), number(after.value), after.unit, ratio, change(before, after).value)


def _either(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted({*one, *other} - {"output", "json"})
