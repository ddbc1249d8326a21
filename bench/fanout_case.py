"""One case of a fan-out benchmark: the same readers on both servers, rounds that alternate, and what is judged of them.

The baseline has no database. So the same commits are also carried out by a server that has no readers, and what they
cost is taken off: "deliveries per CPU second" is what telling costs, and "with the commits" what the server's process
used in all. p50 and p99 are of the time from publishing to a reader having it. "busy readers" is the share of a core
that these used: near 1 for each of their processes, they would be what is measured.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec

from bench.fanout import Readers, Result, Teller, Tellers, play
from bench.harness import Run
from bench.latencies import percentile_ms
from bench.openings import Kind
from bench.stories import Flaws

BASELINE = "ws"
LEAST_PACED_RATIO = 1.2
MOST_PACED = 50.0  # commits a second: one is made after the other, and a pace is one that can be held


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much; `modes` reads them."""
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each side (5 for the real thing)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a paced round (5 for the real thing)")
    parser.add_argument("--burst", type=int, default=100, help="events that are committed together")
    parser.add_argument("--rate", type=int, default=25_000, help="deliveries a second when paced")
    parser.add_argument("--processes", type=int, default=1, help="processes that read")


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """What is published in a round: the commits, each the stream ids of its events, and how far apart they are.

    `least_ratio`: of our deliveries per CPU second to the baseline's.
    """

    name: str
    commits: Sequence[Sequence[str]]
    every_ms: float
    least_ratio: float


def modes(options: argparse.Namespace, told: Sequence[str], reached: int, *, least_burst_ratio: float) -> list[Mode]:
    """Both ways to publish events of the streams `told`; `reached` is how many readers each of them has."""
    per_second = min(MOST_PACED, options.rate / max(1, reached))
    paced = max(2, round(per_second * options.seconds))
    return [
        Mode(
            name="burst",
            commits=[[told[nth % len(told)] for nth in range(options.burst)]],
            every_ms=0.0,
            least_ratio=least_burst_ratio,
        ),
        Mode(
            name="paced",
            commits=[[told[nth % len(told)]] for nth in range(paced)],
            every_ms=1e3 / per_second,
            least_ratio=LEAST_PACED_RATIO,
        ),
    ]


@dataclass
class Case:
    """Who reads, and how that went. `processes`: those that the readers of one server are dealt out to."""

    title: str
    kind: Kind
    follows: Sequence[Sequence[str]]
    folder: Path
    processes: int = 1
    flaws: Flaws = field(default_factory=Flaws)
    differing: int = 0
    gone: int = 0

    def run(self, run: Run, tellers: Tellers, modes: Sequence[Mode], rounds: int) -> None:
        """Measure and judge."""
        with (
            run.stage(f"{self.title}: open {len(self.follows)} readers on each, and all of this"),
            self._readers(tellers.ours, self.follows) as ours,
            self._readers(tellers.theirs, self.follows) as theirs,
            self._readers(tellers.alone, []) as alone,
        ):
            for mode in modes:
                with run.stage(f"{self.title}, {mode.name}"):
                    heard: dict[Readers, list[Result]] = {ours: [], theirs: [], alone: []}
                    for number in range(rounds + 1):
                        for readers in (ours, theirs, alone) if number % 2 else (alone, theirs, ours):
                            result = self._play(readers, mode)
                            if number:  # the first one warms up
                                heard[readers].append(result)
                found = {readers: _Found.of(results) for readers, results in heard.items()}
                title = f"{self.title}, {mode.name}"
                _judge(run, title, mode, ours=found[ours], theirs=found[theirs], alone=found[alone])
        run.equal(f"{self.title}: lost, doubled, out of order or not theirs", self.flaws.total, 0)
        if self.flaws.total:
            run.note(f"{self.title}: {self.flaws}")
        run.equal(f"{self.title}: told other bytes than the rest", self.differing, 0)
        run.equal(f"{self.title}: connections that ended", self.gone, 0)

    def _readers(self, teller: Teller, follows: Sequence[Sequence[str]]) -> Readers:
        log = self.folder / f"readers-of-{teller.name}.log"
        return Readers(teller, self.kind, follows, log=log, processes=self.processes)

    def _play(self, readers: Readers, mode: Mode) -> Result:
        result = play(readers, mode.commits, mode.every_ms)
        self.flaws.add(result.flaws)
        self.differing += result.differing
        self.gone = max(self.gone, result.gone)
        return result


@dataclass(frozen=True)
class _Found:
    """The rounds of one side: medians, and the latencies of all of them."""

    deliveries: float
    cpu_s: float
    database_cpu_s: float
    span_s: float
    readers_busy: float  # their share of a core while they were told
    latencies: Counter[int]

    @classmethod
    def of(cls, results: Sequence[Result]) -> _Found:
        latencies: Counter[int] = Counter()
        for result in results:
            latencies.update(result.latencies)
        return cls(
            deliveries=median(result.deliveries for result in results),
            cpu_s=median(result.cpu_s for result in results),
            database_cpu_s=median(result.database_cpu_s for result in results),
            span_s=median(result.span_s for result in results),
            readers_busy=median(result.readers_cpu_s / max(result.span_s, 1e-9) for result in results),
            latencies=latencies,
        )


def _judge(run: Run, title: str, mode: Mode, *, ours: _Found, theirs: _Found, alone: _Found) -> None:
    """`alone` is what the commits cost with no reader."""
    fan_out_cpu_s = max(ours.cpu_s - alone.cpu_s, 1e-4)
    theirs_rate = theirs.deliveries / theirs.cpu_s
    ratio = run.compare(
        f"{title}: deliveries per CPU second",
        ours=ours.deliveries / fan_out_cpu_s,
        baseline=theirs_rate,
        baseline_name=BASELINE,
        unit="/s",
    )
    run.figure(f"{title}: the same with the commits", ours.deliveries / ours.cpu_s, "/s")
    run.figure(f"{title}: the same with the commits, ratio", ours.deliveries / ours.cpu_s / theirs_rate, "x")
    run.figure(f"{title}: CPU of a commit alone", alone.cpu_s / len(mode.commits) * 1e3, "ms")
    run.figure(f"{title}: CPU of a commit alone, PostgreSQL", alone.database_cpu_s / len(mode.commits) * 1e3, "ms")
    for side, found in (("", ours), (f", baseline {BASELINE}", theirs)):
        run.figure(f"{title}: p50{side}", percentile_ms(found.latencies, 0.50), "ms")
        run.figure(f"{title}: p99{side}", percentile_ms(found.latencies, 0.99), "ms")
        run.figure(f"{title}: deliveries per second{side}", found.deliveries / max(found.span_s, 1e-9), "/s")
        run.figure(f"{title}: busy readers{side}", found.readers_busy, "cores")
    run.goal(f"{title}: deliveries per CPU second, ratio", ratio, mode.least_ratio)
    p99 = percentile_ms(ours.latencies, 0.99) / percentile_ms(theirs.latencies, 0.99)
    run.goal_at_most(f"{title}: p99, ratio", p99, 1.0)
