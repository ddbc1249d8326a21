"""A report as a table for people and as JSON for the next run to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.harness import Report


def table(report: Report) -> str:
    """The report in aligned columns, the verdicts last."""
    machine = report.machine
    lines = [
        f"{report.scenario}  {report.started_at}  commit {machine.commit}",
        f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.1f} GiB, {machine.python}",
        f"load before {machine.load_before:.1f}",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        " ".join(f"{name}={value}" for name, value in report.options.items()),
        "",
    ]
    if report.skipped is not None:
        return "\n".join([*lines, f"SKIPPED: {report.skipped}"])
    lines += columns([(stage.name, f"{stage.seconds:.2f} s", stage.failed or "") for stage in report.stages])
    lines += ["", *columns([(figure.name, number(figure.value), figure.unit) for figure in report.figures]), ""]
    lines += columns(
        [
            (
                verdict.outcome,
                verdict.name,
                verdict.required,
                f"found {verdict.found}",
            )
            for verdict in report.verdicts
        ]
    )
    lines += [f"note: {note}" for note in report.notes]
    if report.interrupted:
        lines.append("INTERRUPTED: this is what there was")
    return "\n".join(lines)


def line(report: Report, seconds: float) -> str:
    """Whether it passed, or why it was skipped, and how long it took."""
    outcome = "SKIPPED" if report.skipped is not None else "PASS" if report.passed else "FAIL"
    return f"{outcome:<7}  {report.scenario:<14}  {seconds:5.1f} s  {report.skipped or ''}".rstrip()


def save(report: Report, folder: Path) -> Path:
    """Write the JSON; the name tells scenario and time."""
    path = file_of(report, folder, "json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    return path


def file_of(report: Report, folder: Path, form: str) -> Path:
    """Where a report goes in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = report.started_at.replace(":", "").replace("+0000", "Z")
    return folder / f"{report.scenario}-{stamp}.{form}"


def number(value: float) -> str:
    """A value with as many digits as can be of interest."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
