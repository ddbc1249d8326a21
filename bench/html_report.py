"""A report as one HTML page that needs nothing else: verdicts, plots, figures, options, the machine."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.harness import Report, Verdict
from bench.plots import Points, chart
from bench.report import file_of, number

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#0f172a;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid #e2e8f0}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(24rem,1fr));gap:1rem}
figure{margin:0;border:1px solid #e2e8f0;border-radius:6px;padding:.75rem}figcaption{font-weight:600}
svg{width:100%;height:auto}svg text{font-size:11px;fill:#64748b}
.key{white-space:nowrap;margin-right:1rem;font-size:13px}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.35em}
figure p{margin:.25rem 0 0}table{border-collapse:collapse}
td,th{text-align:left;padding:.2rem 1.2rem .2rem 0;vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}
.PASS{color:#047857}.FAIL{color:#b91c1c}.MISSED{color:#b45309}
"""


def page(report: Report) -> str:
    """The whole document."""
    machine = report.machine
    title = f"{report.scenario}, {report.started_at}"
    parts = [
        f"<h1>{_text(report.scenario)}: {_outcome(report)}</h1>",
        f"<p>{_text(report.started_at)}, commit {_text(machine.commit)}</p>",
        "<h2>Thresholds</h2>",
        _table(("", "what", "required", "found"), [_verdict(verdict) for verdict in report.verdicts]),
        *(f"<p>{_text(note)}</p>" for note in report.notes),
    ]
    if report.series:
        parts += ["<h2>Over time</h2>", '<div class="plots">', *_plots(report), "</div>"]
    parts += [
        "<h2>Figures</h2>",
        _table(
            ("", "", "unit", "spread of the windows"),
            [
                (f.name, _Number(number(f.value)), f.unit, "" if f.spread is None else f"± {f.spread * 100:.0f} %")
                for f in report.figures
            ],
        ),
        "<h2>Stages</h2>",
        _table(("", "seconds", ""), [(s.name, _Number(f"{s.seconds:.2f}"), s.failed or "") for s in report.stages]),
        "<h2>Options</h2>",
        _table(("", ""), list(report.options.items())),
        "<h2>Machine</h2>",
        _table(
            ("", ""),
            [
                ("system", machine.system),
                ("processor", f"{machine.processor}, {machine.cores} cores"),
                ("memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
                ("load before", f"{machine.load_before:.2f}"),
                ("Python", machine.python),
                *machine.versions.items(),
            ],
        ),
    ]
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(parts)}\n</body></html>\n'


def save(report: Report, folder: Path) -> Path:
    """Write it, beside the JSON and under the same name."""
    path = file_of(report, folder, "html")
    path.write_text(page(report), encoding="utf-8")
    return path


class _Number(str):
    """A cell that stands to the right."""

    __slots__ = ()


def _outcome(report: Report) -> str:
    if report.skipped is not None:
        return f"skipped: {_text(report.skipped)}"
    word = "PASS" if report.passed else "FAIL"
    return f'<span class="{word}">{word}</span>{", interrupted" if report.interrupted else ""}'


def _verdict(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.outcome, verdict.name, verdict.required, verdict.found)


def _plots(report: Report) -> Iterable[str]:
    """Lines that are named alike up to the colon share a plot."""
    plots: dict[str, dict[str, Points]] = {}
    for name, points in report.series.items():
        title, colon, line = name.partition(": ")
        plots.setdefault(title, {})[line if colon else title] = points
    return (chart(title, lines) for title, lines in plots.items())


def _table(heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads) if any(heads) else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _cell(cell: str) -> str:
    if isinstance(cell, _Number):
        return f'<td class="number">{_text(cell)}</td>'
    return f'<td class="{cell}">{cell}</td>' if cell in {"PASS", "FAIL", "MISSED"} else f"<td>{_text(cell)}</td>"


def _text(text: str) -> str:
    return html.escape(text)
