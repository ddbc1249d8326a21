"""The two servers of the REST benchmark, ours and the predecessor's, and what rounds of load on one of them cost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import express, pages, server_process
from bench.child import Child
from bench.harness import Run
from bench.processes import Sampler
from bench.wrk import Load

START_S = 120.0


@dataclass(frozen=True)
class Side:
    """A server. `pids`: of all that it takes to answer; `pages`: paths of distinct pages; `ids`: of its streams."""

    name: str
    port: int
    pids: dict[str, int]
    pages: list[str]
    ids: list[str]
    log: Path

    @property
    def url(self) -> str:
        """Where it serves, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Rounds:
    """What was measured on one side; `cpu_us`: microseconds of CPU per answer, by process."""

    loads: list[Load] = field(default_factory=list)
    cpu_us: list[dict[str, float]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second, the median of the rounds."""
        return median(load.rate for load in self.loads)

    def cpu_us_of(self, name: str) -> float:
        """CPU per answer of one process, the median of the rounds."""
        return median(each[name] for each in self.cpu_us)

    @property
    def whole_cpu_us(self) -> float:
        """CPU per answer of all its processes together, the median of the rounds."""
        return median(sum(each.values()) for each in self.cpu_us)

    @property
    def errors(self) -> int:
        """In all rounds."""
        return sum(load.errors for load in self.loads)

    @contextmanager
    def measuring(self, side: Side) -> Iterator[list[Load]]:
        """Take the one load that the block appends, and what it cost."""
        loads: list[Load] = []
        with Sampler(side.pids, interval_s=3600) as sampler:  # which samples at its end
            yield loads
        os.truncate(side.log, 0)  # it would fill the disk
        (load,) = loads
        self.loads.append(load)
        self.cpu_us.append({name: cpu_s / max(1, load.requests) * 1e6 for name, cpu_s in sampler.cpu_s.items()})

    def describe(self, run: Run, title: str) -> None:
        """Record latencies and CPU."""
        run.figure(f"{title}, p50", median(load.p50_ms for load in self.loads), "ms")
        run.figure(f"{title}, p99", median(load.p99_ms for load in self.loads), "ms")
        for name in self.cpu_us[0]:
            run.figure(f"{title}, CPU of {name}", self.cpu_us_of(name), "us/answer")


def serve(stack: ExitStack, run: Run, folder: Path, database_url: str, postmaster: int) -> tuple[Side, Side]:
    """Start ours, read every stream from it, and give the baseline the same ones."""
    task = server_process.Task(database_url=database_url, streams=run.options.streams)
    log = folder / "server.log"
    server = stack.enter_context(Child(server_process.__name__, task, log=log))
    port: int = server.read(within_s=START_S)["port"]
    streams, _ = pages.walk(port)
    run.equal("streams in the list", len(streams), run.options.streams)
    ids = [stream["id"] for stream in streams]
    ours = Side("fluxora", port, {"server": server.pid, "PostgreSQL": postmaster}, pages.distinct(port), ids, log)
    copy = folder / "streams.ndjson"
    copy.write_text("".join(json.dumps(stream) + "\n" for stream in streams), encoding="utf-8")
    log = folder / "express.log"
    baseline = stack.enter_context(express.start(copy, log=log))
    port = baseline.read(within_s=START_S)["port"]
    return ours, Side("Express", port, {"server": baseline.pid}, pages.distinct(port), ids, log)
