"""What fails the smoke, and what does not: loss, doubles and errors do, speed does not."""

from __future__ import annotations

import argparse
import sys

import pytest

import bench.__main__ as command
from bench import bare_hooks_process, node_process, npm, tables
from bench.consumer_process import Arrived
from bench.harness import Run
from bench.scenarios import decode, ingest, webhooks


def run(*words, monkeypatch, smoke=("decode --events 200",)):
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)  # the process is not the command's
    monkeypatch.setattr(command.logs, "configure", lambda *_, **__: None)
    monkeypatch.setattr(command, "SMOKE", smoke)
    monkeypatch.setattr(sys, "argv", ["bench", "smoke", *words])
    return command.main()


@pytest.fixture
def unreachable(monkeypatch):
    """Goals of speed that no machine reaches."""
    for name in ("LEAST_RATIO_SCVALS", "LEAST_RATIO_EVENTS"):
        monkeypatch.setattr(decode, name, 1e9)


def test_what_passes_is_a_line_however_slow_it_is(monkeypatch, capsys, unreachable):
    assert run(monkeypatch=monkeypatch) == 0
    said = capsys.readouterr()
    assert said.err == ""
    (line,) = said.out.splitlines()
    assert line.split()[:2] == ["PASS", "decode"]


def test_strict_and_verbose_are_passed_on(monkeypatch, capsys, unreachable):
    assert run("--strict", monkeypatch=monkeypatch) == 1
    assert "MISSED" in capsys.readouterr().out
    assert run("--verbose", monkeypatch=monkeypatch) == 0
    assert "events decoded whole, ratio" in capsys.readouterr().out


def test_one_that_fails_is_told_whole_and_the_others_are_run(monkeypatch, capsys):
    monkeypatch.setattr(decode, "_theirs", lambda _event: "something else")
    found = run(monkeypatch=monkeypatch, smoke=("decode --events 200", "decode --events 100"))
    assert found == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAIL") and "events that decode differently" in line for line in lines) == 2


def test_what_is_not_installed_is_skipped_with_a_word(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    smoke = ("rest", "ws_connections", "ws_fanout", "sse")
    assert run(monkeypatch=monkeypatch, smoke=smoke) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["SKIPPED", name] for name in smoke]
    assert all("not installed" in line for line in lines)


def test_packages_that_cannot_be_fetched_are_a_reason_to_skip(monkeypatch, tmp_path):
    for name in ("node", "npm"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert "no network" in npm.missing(tmp_path)


def failed(judge, *found):
    of = Run("any", argparse.Namespace(deliveries=10))
    judge(of, *found)
    return {verdict.name for verdict in of.report.verdicts if not verdict.passed and not verdict.goal}


def arrived(requests, distinct):
    return Arrived(
        requests=requests, distinct=distinct, first_at=0.0, last_at=100.0, longest_pause_s=50.0, ages_ms=[5_000.0]
    )


DONE = bare_hooks_process.Done(seconds=0.001, delivered=10)


@pytest.mark.parametrize(
    ("backlog", "paced", "beside", "verdicts"),
    [
        (arrived(10, 10), arrived(5, 5), arrived(5, 5), set()),
        (arrived(9, 9), arrived(5, 5), arrived(5, 5), {"deliveries lost"}),
        (arrived(10, 10), arrived(6, 5), arrived(5, 5), {"deliveries made twice"}),
        (arrived(10, 10), arrived(5, 5), arrived(4, 4), {"deliveries lost beside one that is stuck"}),
        (arrived(10, 10), arrived(5, 5), arrived(6, 5), {"deliveries made twice beside one that is stuck"}),
    ],
    ids=["slow", "lost", "twice", "lost beside", "twice beside"],
)
def test_webhooks_that_are_lost_or_doubled_fail(backlog, paced, beside, verdicts):
    found = failed(webhooks._judge, backlog, DONE, paced, 5) | failed(webhooks._judge_beside, paced, beside, 5)
    assert found == verdicts


CHAIN = node_process.Built(
    url="",
    contract_id="",
    passphrase="",
    first_ledger=1,
    last_ledger=2,
    events=9,
    streams=3,
    ids_digest="a",
    states_digest="b",
)
STORED = {
    "rows": 9,
    "chain_events": 9,
    "distinct_ids": 9,
    "position": 9,
    "streams": 3,
    "bytes": 1,
    "ids_digest": "a",
    "states_digest": "b",
}


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, set()),
        ({"chain_events": 8, "rows": 8, "distinct_ids": 8, "position": 8}, {"chain events recorded"}),
        ({"rows": 10, "position": 10}, {"rows with an id of their own"}),
        ({"position": 10}, {"positions without a gap"}),
        ({"ids_digest": "c"}, {"digest of event ids"}),
        ({"states_digest": "c"}, {"digest of stream states"}),
    ],
    ids=["whole", "lost", "doubled", "a gap", "another one", "folded otherwise"],
)
def test_a_backfill_that_is_not_the_chain_fails(changes, verdicts):
    assert failed(ingest._judge_contents, tables.Stored(**STORED | changes), CHAIN) == verdicts
