"""Soak: half of the peak for a long time, and whether anything grows that should not.

Caches are filled before it begins (bench/profiles/warm_up.py): what is registered and pushed meanwhile would else fill
them for an hour. Judged is the level part of the load, and of it the second half. Growth counts as far as it is beyond
chance (bench/profiles/trend.py). Dead rows are those that updates leave behind. Of each table there may be as many as
autovacuum waits for, and those that come in two of its naps: one until it looks, one until it is through.
"""

from __future__ import annotations

import argparse

from bench.harness import Run
from bench.profiles.measures import Measures, Points
from bench.profiles.profile import PROMISES, SERVED, SPEED, add_options, driving, judge, own_thresholds
from bench.profiles.stages import Stage
from bench.profiles.stress import climb, split
from bench.profiles.trend import second_half, trend
from bench.profiles.warm_up import STREAMS
from bench.profiles.watch import DEAD, GONE, VACUUMED_AT

STEP_S = 6.0
FIRST, LAST = 100.0, 10_000.0
RAMP_S = 10.0
MOST_GROWTH_MB = 4.0
MOST_DESCRIPTORS = 4.0  # those of the storage pool and of files that come and go
MOST_WAITING, MOST_AGE_S = 20.0, 2.0  # items before an actor, and ages: more than in the first half
NAP_S = 60.0  # of autovacuum: PostgreSQL's own default
MOST_EVENTS_BEHIND = 200.0  # of the hub: more than in the first half
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
        add_options(parser, followers=100, streams=STREAMS)

    def run(self, run: Run) -> None:
        """Find the peak, load half of it, and look at what has grown."""
        options = run.options
        with driving(run, full=True) as drive:
            conditions = own_thresholds(drive, [*SPEED, *SERVED, *AGES, *PROMISES])
            rate = options.rate
            if rate is None:
                held, _ = split(own_thresholds(drive, [*SPEED, *SERVED]))
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
    _judge_backlogs(run, lines)


def _judge_backlogs(run: Run, lines: dict[str, Points]) -> None:
    for name, points in lines.items():
        plot, _, line = name.partition(": ")
        what = plot.partition(", ")[0].lower()
        if plot == "Waiting for an actor":
            what, bound = line, MOST_WAITING
        elif plot == "Events behind the log":
            what, bound = f"{what}, {line}", MOST_EVENTS_BEHIND
        elif plot.startswith(("Oldest ", "Ingest behind ")):
            bound = MOST_AGE_S
        else:
            continue
        if points:
            late = second_half(points)
            early = points[: len(points) - len(late)]
            grown = max((value for _, value in late), default=0.0) - max((value for _, value in early), default=0.0)
            run.at_most(f"backlog: {what}, more at most in the second half", max(0.0, grown), bound)


def _judge_dead_rows(run: Run, lines: dict[str, Points]) -> None:
    for name, dead in lines.items():
        table = name.removeprefix(DEAD)
        if table == name or not dead:
            continue
        gone, vacuumed_at = lines[GONE + table], lines[VACUUMED_AT + table]
        per_second = (gone[-1][1] - gone[0][1]) / max(1.0, gone[-1][0] - gone[0][0])
        run.figure(f"rows of {table} updated or deleted", per_second, "/s")
        bound = vacuumed_at[-1][1] + 2 * NAP_S * per_second
        run.at_most(f"dead rows of {table} at most", max(value for _, value in second_half(dead)), round(bound))
