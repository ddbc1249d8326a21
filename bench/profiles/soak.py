"""Soak: half of the peak for a long time, and whether anything grows that should not.

Judged is the level part of the load, and of it the second half, when caches are full. Growth counts as far as it is
beyond chance (bench/profiles/trend.py). Dead rows are those that updates leave behind: as many as come in two naps of
autovacuum, and a fifth of the living ones, are as it should be.
"""

from __future__ import annotations

import argparse

from bench.harness import Run
from bench.profiles.measures import Measures, Points
from bench.profiles.profile import PROMISES, SERVED, SPEED, add_options, driving, judge, own_thresholds
from bench.profiles.stages import Stage
from bench.profiles.stress import climb, split
from bench.profiles.trend import second_half, trend

STEP_S = 6.0
FIRST, LAST = 100.0, 10_000.0
RAMP_S = 10.0
MOST_GROWTH_MB = 4.0
MOST_DESCRIPTORS = 4.0  # those of the storage pool and of files that come and go
MOST_WAITING, MOST_AGE_S = 20.0, 2.0  # items before an actor, and ages: more than in the first half
NAP_S, DEAD_SHARE, DEAD_LEAST = 60.0, 0.2, 50.0  # PostgreSQL's own defaults of autovacuum
MOST_AGE_MS = 5_000
AGES = (f"backlog_age max<{MOST_AGE_MS}",)


class Soak:
    """The long run."""

    name = "soak"
    summary = "half of the peak for a long time: memory, descriptors, dead rows and backlogs must not grow"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How long."""
        parser.add_argument("--minutes", type=float, default=20.0, help="length of the level part (%(default)g)")
        parser.add_argument(
            "--rate", type=float, help="requests a second; default: half of the peak, which is looked for first"
        )
        add_options(parser, followers=100)

    def run(self, run: Run) -> None:
        """Find the peak, load half of it, and look at what has grown."""
        options = run.options
        conditions = own_thresholds(options, [*SPEED, *SERVED, *AGES, *PROMISES])
        with driving(run) as drive:
            rate = options.rate
            if rate is None:
                held, _ = split(own_thresholds(options, [*SPEED, *SERVED]))
                peak = climb(drive, held, FIRST, LAST, STEP_S)
                run.figure("peak", peak, "/s")
                rate = peak / 2
            run.figure("rate of the soak", rate, "/s")
            measures, ups = Measures(), Stage(RAMP_S, rate)
            if rate and not drive.stopping:
                began = drive.now() + RAMP_S
                measures = drive.leg("soak", [ups, Stage(options.minutes * 60, rate), Stage(RAMP_S / 2, 0.0)])
                lines = _between(drive.measures, began, began + options.minutes * 60)
        if not rate or not measures.seconds:
            run.equal("something soaked", found=False, required=True)
            return
        measures.flaws = drive.measures.flaws
        judge(run, measures, conditions)
        judge_growth(run, lines)


def _between(measures: Measures, began: float, ended: float) -> dict[str, Points]:
    """The samples of the level part."""
    return {
        name: [(at, value) for at, value in points if began <= at <= ended] for name, points in measures.series.items()
    }


def judge_growth(run: Run, lines: dict[str, Points]) -> None:
    """Verdicts on what must not grow, from the lines of the level part by their names."""
    for name in ("server", "PostgreSQL"):
        points = second_half(lines.get(f"Resident memory, MB: {name}", []))
        if not points:
            run.note(f"memory of {name} is not seen from here, and not judged")
            continue
        found = trend(points)
        run.figure(f"growth of {name} in the second half", found.growth, "MB")
        run.figure(f"growth of {name} in the second half, standard error", found.error, "MB")
        if name == "server":  # PostgreSQL's grows as it touches more of its shared buffers, up to their size
            run.at_most("growth of the server beyond chance, MB", found.certain, MOST_GROWTH_MB)
    spare = lines.get("Descriptors of the server: beyond connections", [])
    if spare:
        run.at_most("descriptors beyond connections, growth beyond chance", trend(spare).certain, MOST_DESCRIPTORS)
    _judge_dead_rows(run, lines)
    for name, points in lines.items():
        if name.startswith(("Waiting for an actor: ", "Oldest ")):
            late = second_half(points)
            grown = max((value for _, value in late), default=0.0) - max(
                (v for _, v in points[: -len(late)]), default=0.0
            )
            what = name.partition(": ")[2] if name.startswith("Waiting") else name.partition(", ")[0].lower()
            bound = MOST_WAITING if name.startswith("Waiting") else MOST_AGE_S
            run.at_most(f"backlog: {what}, more at most in the second half", max(0.0, grown), bound)


def _judge_dead_rows(run: Run, lines: dict[str, Points]) -> None:
    dead, live, gone = (
        lines.get(name, [])
        for name in ("Rows in PostgreSQL: dead", "Rows in PostgreSQL: living", "Rows updated or deleted: so far")
    )
    if len(gone) < 2:
        return
    per_second = (gone[-1][1] - gone[0][1]) / (gone[-1][0] - gone[0][0])
    bound = DEAD_LEAST + DEAD_SHARE * live[-1][1] + 2 * NAP_S * per_second
    run.figure("rows updated or deleted", per_second, "/s")
    run.at_most("dead rows in PostgreSQL at most", max(value for _, value in second_half(dead)), round(bound))
