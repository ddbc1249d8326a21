from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.child import ROOT
from bench.comparison import Change, Unreadable, change, read, text
from bench.harness import Figure, Run
from bench.profiles.measures import spread
from bench.report import save

VALUES = st.floats(0.01, 1e6)


def report(rate: float, p99: float, *, seconds: int = 60, lost: int = 0):
    run = Run("load", argparse.Namespace(seconds=seconds))
    run.figure("answers", rate, "/s", spread=0.05)
    run.figure("rest_reads: p99", p99, "ms", spread=0.20)
    run.figure("peak", rate, "/s")
    run.equal("lost", lost, 0)
    return run.report


def row(shown: str, name: str) -> list[str]:
    (line,) = [line for line in shown.splitlines() if line.startswith(f"{name}  ")]
    return line.split()


def test_what_changed_is_told_as_a_ratio_and_noise_is_marked():
    shown = text(report(100.0, 10.0), report(50.0, 12.0, lost=3))
    assert row(shown, "answers")[-2:] == ["0.50x", "CHANGED"]
    assert row(shown, "rest_reads: p99")[-2:] == ["1.20x", "noise"]
    assert row(shown, "peak")[-2:] == ["0.50x", "?"]
    assert "PASS in A, FAIL in B: lost = 0" in shown


def test_what_is_not_the_same_is_said():
    ours, theirs = report(1.0, 1.0), report(1.0, 1.0, seconds=5)
    theirs.figures.append(Figure("new", 1.0, "ms"))
    ours.figures.append(Figure("old", 1.0, "ms"))
    theirs.machine.cores += 1
    shown = text(ours, theirs)
    assert "not the same: seconds (A 60, B 5)" in shown
    assert "not the same: cores" in shown
    assert "only in A: old" in shown
    assert "only in B: new" in shown
    assert row(shown, "answers")[-1] == "same"


@given(VALUES, VALUES, st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))
def test_a_difference_is_noise_where_the_spreads_meet(one, other, ours, theirs):
    before, after = Figure("", one, "", ours), Figure("", other, "", theirs)
    found = change(before, after)
    assert found is change(after, before)
    if one == other:
        assert found is Change.SAME
    elif ours is None or theirs is None:
        assert found is Change.UNKNOWN
    else:
        (low, low_spread), (high, high_spread) = sorted([(one, ours), (other, theirs)])
        assert (found is Change.NOISE) == (high - low <= low_spread * low + high_spread * high)


def test_a_spread_is_half_the_distance_of_the_quartiles():
    assert spread([(0.0, value) for value in (8.0, 9.0, 10.0, 11.0, 12.0)]) == pytest.approx(0.15)
    assert spread([(0.0, 5.0)] * 4) == 0.0
    assert spread([(0.0, 5.0)] * 3) is None
    assert spread([(0.0, 0.0)] * 9) is None


def test_the_command_reads_files_and_says_which_one_it_cannot_read(tmp_path):
    one, other = (save(report(rate, 1.0), tmp_path / str(rate)) for rate in (100.0, 50.0))
    command = [sys.executable, "-m", "bench", "compare"]
    ended = subprocess.run([*command, one, other], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert row(ended.stdout, "answers")[-1] == "CHANGED"
    one.write_text("{}")
    ended = subprocess.run([*command, one, other], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert str(one) in ended.stderr
    with pytest.raises(Unreadable):
        read(tmp_path / "none.json")
