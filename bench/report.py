"""A report as a table for people and as JSON for the next run to compare with."""

from __future__ import annotations

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
    lines += _columns([(stage.name, f"{stage.seconds:.2f} s", stage.failed or "") for stage in report.stages])
    lines += ["", *_columns([(figure.name, _number(figure.value), figure.unit) for figure in report.figures]), ""]
    lines += _columns(
        [
            (
                "PASS" if verdict.passed else "MISSED" if verdict.goal else "FAIL",
                verdict.name,
                verdict.required,
                f"found {verdict.found}",
            )
            for verdict in report.verdicts
        ]
    )
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


def save(report: Report, folder: Path) -> Path:
    """Write the JSON; the name tells scenario and time."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = report.started_at.replace(":", "").replace("+0000", "Z")
    path = folder / f"{report.scenario}-{stamp}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    return path


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
