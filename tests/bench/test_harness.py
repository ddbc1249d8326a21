from __future__ import annotations

import argparse
import os
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.child import Child, ChildFailed
from bench.harness import Report, Run
from bench.processes import Sampler, cpu_seconds, resident_bytes, slope
from bench.report import save, table
from bench.scenarios.decode import Decode
from bench.tables import states_digest


def new_run(**options):
    return Run("example", argparse.Namespace(**options))


@pytest.mark.parametrize(
    ("judge", "passed"),
    [
        (lambda run: run.goal("rate", 10.0, 10.0), True),
        (lambda run: run.at_most("memory", 300.0, 300.0), True),
        (lambda run: run.at_most("memory", 300.1, 300.0), False),
        (lambda run: run.equal("rows", 7, 7), True),
        (lambda run: run.equal("rows", 7, 8), False),
        (lambda _: None, False),  # a run that judges nothing has shown nothing
    ],
)
def test_one_failed_verdict_fails_the_run(judge, passed):
    run = new_run()
    judge(run)
    assert run.report.passed is passed
    run.equal("something else", 1, 1)
    assert run.report.passed is (passed or not run.report.verdicts[:-1])


def test_a_missed_goal_is_shown_and_fails_a_strict_run_only():
    for strict in (False, True):
        run = new_run(strict=strict)
        run.goal("rate", 9.9, 10.0)
        assert "MISSED" in table(run.report)
        assert run.report.passed is not strict


def test_what_is_skipped_fails_a_strict_run_only():
    for strict in (False, True):
        run = new_run(strict=strict)
        run.skip("a program is not installed")
        assert "SKIPPED: a program is not installed" in table(run.report)
        assert run.report.passed is not strict


def test_a_goal_may_be_a_bound_from_above():
    run = new_run(strict=True)
    run.goal_at_most("latency", 2.0, 2.0)
    assert run.report.passed
    run.goal_at_most("latency", 2.1, 2.0)
    assert "MISSED" in table(run.report)
    assert not run.report.passed


def test_report_survives_json_and_shows_everything(tmp_path):
    run = new_run(events=5)
    with run.stage("first"):
        pass
    with pytest.raises(ZeroDivisionError), run.stage("second"):
        _ = 1 / 0
    assert run.compare("rows", ours=30.0, baseline=10.0, baseline_name="plain", unit="rows/s") == 3.0
    run.goal("ratio", 3.0, 2.0)
    run.series("memory", [(0.0, 1.0)])
    saved = save(run.report, tmp_path)
    assert msgspec.json.decode(saved.read_bytes(), type=Report) == run.report
    text = table(run.report)
    for shown in ("first", "ZeroDivisionError", "rows, baseline plain", "PASS", "events=5", "commit"):
        assert shown in text


@given(
    st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.lists(st.integers(0, 10**4), min_size=2, max_size=20, unique=True)
)
def test_slope_of_a_line_is_its_slope(offset, rise, times):
    points = [(float(at), offset + rise * at) for at in times]
    assert slope(points) == pytest.approx(rise, abs=1e-5)
    assert slope(points[:1]) == 0.0


def test_cpu_of_children_counts_living_or_reaped():
    busy = "import time; [None for _ in iter(lambda: time.process_time() < 0.3, False)]; print(flush=True); input()"
    before = cpu_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert cpu_seconds(os.getpid()) - before >= 0.28
        child.stdin.close()
    assert cpu_seconds(os.getpid()) - before >= 0.28


def test_sampler_samples_once_more_at_the_end():
    with Sampler({"self": os.getpid()}, interval_s=60) as sampler:
        ballast = bytearray(os.urandom(8)) * 4_000_000
    (_, seen), *_ = sampler.resident["self"]
    assert seen >= len(ballast)
    assert seen == pytest.approx(resident_bytes(os.getpid()), rel=0.5)
    assert sampler.machine_cpu_s >= sampler.cpu_s["self"] - 0.05  # each is rounded to ticks of its own


def test_child_that_dies_is_told_with_its_last_words(tmp_path):
    with Child("bench.node_process", {"events": "many"}, log=tmp_path / "log") as child:
        with pytest.raises(ChildFailed, match=r"(?s)bench.node_process ended with 1: .*ValidationError"):
            child.read(within_s=60)
        with pytest.raises(ChildFailed):
            child.alive()


def test_states_digest_depends_on_content_and_not_on_order():
    rows = [("1", "a", "b"), ("2", "a", "b")]
    assert states_digest(rows) == states_digest(rows[::-1])
    assert states_digest(rows) != states_digest([rows[0], ("2", "a", "c")])
    assert states_digest(rows) != states_digest(rows[:1])


def test_decode_scenario_runs_and_agrees():
    run = new_run(events=240)
    Decode().run(run)
    verdicts = {verdict.name: verdict.passed for verdict in run.report.verdicts}
    assert verdicts["events that decode differently"]
    assert verdicts["events not recognised"]
