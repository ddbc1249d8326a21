from __future__ import annotations

import argparse
import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import Run
from bench.html_report import page, save
from bench.plots import MOST_POINTS, chart, thinned, ticks

VOID = {"meta", "line", "polyline"}
VALUES = st.floats(-1e12, 1e12) | st.sampled_from([math.inf, -math.inf, math.nan])
POINTS = st.lists(st.tuples(st.floats(0, 1e4), VALUES), max_size=30)


class Reader(HTMLParser):
    """Holds tags to be closed in their order, and notes what the page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [
            name for name, _ in attrs if name in {"src", "href", "srcset", "data"} or name.startswith("on")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, _attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def full_run() -> Run:
    run = Run("load", argparse.Namespace(rate=5, mix={"rest_reads": 80.0, "ingest": 20.0}))
    with run.stage("load <em>"):
        pass
    run.figure("answers", 12.5, "/s", spread=0.25)
    run.compare("rows", ours=30.0, baseline=10.0, baseline_name="plain & simple", unit="rows/s")
    run.series("Latency of rest_reads, ms: p50", [(0.0, 1.0), (1.0, 2.0)])
    run.series("Latency of rest_reads, ms: p99", [(0.0, 5.0), (1.0, math.inf)])
    run.series("log position", [(0.0, 1.0), (1.0, 100.0)])
    run.series("nothing", [])
    run.at_most("p99 < 250 ms", 300.0, 250.0)
    run.note("a server said <script>alert(1)</script>")
    return run


def test_a_page_is_well_formed_and_needs_nothing_else():
    text = page(full_run().report)
    reader = read(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert reader.fetched == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(reader.tags)
    assert reader.tags.count("svg") == 2  # lines of one title share a plot, and one without points has none
    assert reader.tags.count("polyline") == 3


def test_a_page_shows_everything_and_says_what_failed():
    run = full_run()
    shown = read(page(run.report)).text
    for wanted in (
        "load: FAIL",
        "p99 < 250 ms",
        "<= 250",
        "rows, baseline plain & simple",
        "± 25 %",
        "load <em>",
        "rest_reads=80.0,ingest=20.0",
        run.report.machine.commit,
        run.report.machine.python,
        "<script>alert(1)</script>",
    ):
        assert wanted in shown
    run.interrupt()
    assert "interrupted" in page(run.report)
    run.skip("wrk is not installed")
    assert "skipped: wrk is not installed" in read(page(run.report)).text


def test_it_is_saved_beside_the_json_under_the_same_name(tmp_path):
    report = full_run().report
    path = save(report, tmp_path / "new")
    assert path.name.startswith("load-")
    assert path.read_text(encoding="utf-8") == page(report)


@given(st.dictionaries(st.text(max_size=5), POINTS, max_size=4))
def test_a_plot_is_well_formed_whatever_its_lines_are(lines):
    text = chart("a <title> & more", lines)
    read(text)
    assert "nan" not in text.partition("<p>")[0]
    finite = [p for points in lines.values() for p in points if all(map(math.isfinite, p))]
    assert bool(text) is bool(finite)


@given(st.lists(st.floats(-1e6, 1e6), max_size=5_000))
def test_thinning_keeps_the_peak(values):
    points = [(float(at), value) for at, value in enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert set(kept) <= set(points)
    assert max(kept, key=lambda p: p[1], default=None) == max(points, key=lambda p: p[1], default=None)


@given(st.floats(-1e3, 1e9), st.floats(1e3, 1e9))
def test_ticks_are_few_and_round_and_hold_what_is_shown(low, span):
    found = ticks(low, low + span)
    assert 4 <= len(found) <= 9
    assert found[0] <= low + 1e-6 * span
    assert found[-1] >= low + span * (1 - 1e-6)


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 7, [0, 2, 4, 6, 8])])
def test_ticks_are_those_that_one_would_write(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
