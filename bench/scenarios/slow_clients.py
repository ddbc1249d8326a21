"""Slow clients against a healthy one: a thousand connections that begin something and never get on with it.

What is judged: the healthy client's 99th percentile with them against without them, in windows that alternate; that
each slow connection is ended by the server within the bound that it states for it; and that no healthy request fails.
The server's open sockets are counted from outside, so that its own word is not taken for any of it.

A window begins once the server has come to rest behind the thousand openings: those, and the pages that a client asks
for and does not read, are work like any other, and what is measured here is what it costs to have slow clients.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec

from bench import healthy_process, pages, server_process, slow_process, tables
from bench.child import Child
from bench.harness import Run
from bench.healthy_process import Seen
from bench.processes import connections_of, cpu_seconds, resident_bytes
from bench.slow_process import Kind
from fluxora.storage.embedded import EmbeddedServer

STREAMS = 1_000
PATHS = 200
HEALTHY_CONNECTIONS = 4
PER_SECOND = 300
MOST_RATIO = 2.0
MARGIN_S = 4.0  # beyond the bound: opening the last ones, a second of lingering, and a busy machine
LEAST_HELD = 0.95  # of the slow connections must be open for a window to count
POLL_S = 0.1
REST_S = 0.2
RESTED_WITHIN_S = 2.0
MOST_CPU_AT_REST = 0.2  # of one core
START_S = 120.0
TITLES: dict[Kind, str] = {"head": "slow heads", "body": "slow bodies", "read": "no reading"}


@dataclass
class _Seen:
    """What was seen of one kind of slowness, wave by wave."""

    windows: list[Seen] = field(default_factory=list)
    held: list[int] = field(default_factory=list)  # slow connections open at the end of the window
    rested_s: list[float] = field(default_factory=list)  # what the server took to come to rest behind the openings
    ended_s: list[float] = field(default_factory=list)  # from when all were open until none was


@dataclass(frozen=True)
class _Scene:
    """The server, the healthy client, and where logs go."""

    folder: Path
    server: Child
    port: int
    healthy: Child


class SlowClients:
    """A healthy client's latency beside a thousand slow connections."""

    name = "slow_clients"
    summary = "a healthy client's 99th percentile beside slow clients, against the same without them"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How many and how long."""
        parser.add_argument("--connections", type=int, default=1_000, help="slow connections at a time")
        parser.add_argument("--rounds", type=int, default=1, help="waves of each kind (5 for the real thing)")
        parser.add_argument("--seconds", type=float, default=3.0, help="length of a window (10 for the real thing)")
        parser.add_argument(
            "--bound", type=float, default=5.0, help="the server's bound for each kind of slowness, in seconds"
        )

    def run(self, run: Run) -> None:
        """Measure without, with, without, with."""
        with ExitStack() as stack:
            scene = _set_up(stack, run)
            quiet: list[Seen] = []
            slow: dict[Kind, _Seen] = {kind: _Seen() for kind in TITLES}
            _window(scene, run.options.seconds)  # warms up
            for number in range(1, run.options.rounds + 1):
                for kind, seen in slow.items():
                    with run.stage(f"{TITLES[kind]}, {number}"):
                        quiet.append(_window(scene, run.options.seconds))
                        _wave(run, scene, kind, seen)
            run.figure("resident memory of the server in the end", resident_bytes(scene.server.pid) / 1e6, "MB")
        _judge(run, quiet, slow)


def _set_up(stack: ExitStack, run: Run) -> _Scene:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
    folder.chmod(0o755)  # the server runs as a user of its own when this one is root
    bound: float = run.options.bound
    with run.stage("serve"):
        server = EmbeddedServer(folder / "data")
        server.open()
        stack.callback(server.close)
        task = server_process.Task(
            database_url=asyncio.run(tables.create_database(server.url, "served")),
            streams=STREAMS,
            read_head_timeout_s=bound,
            request_timeout_s=bound,
            write_timeout_s=bound,
        )
        child = stack.enter_context(Child(server_process.__name__, task, log=folder / "server.log"))
        port: int = child.read(within_s=START_S)["port"]
        ids = [stream["id"] for stream in pages.walk(port)[0]]
        asks = healthy_process.Task(
            port=port,
            paths=[f"/api/streams/{stream_id}" for stream_id in ids[:: max(1, len(ids) // PATHS)]],
            connections=HEALTHY_CONNECTIONS,
            per_second=PER_SECOND,
        )
        healthy = stack.enter_context(Child(healthy_process.__name__, asks, log=folder / "healthy.log"))
    return _Scene(folder, child, port, healthy)


def _window(scene: _Scene, seconds: float) -> Seen:
    answer = scene.healthy.ask(healthy_process.Window(seconds=seconds), within_s=seconds + 60)
    return msgspec.convert(answer, Seen)


def _wave(run: Run, scene: _Scene, kind: Kind, seen: _Seen) -> None:
    """Open all, measure while they are held, and wait until the server has ended every one."""
    before = connections_of(scene.port)
    task = slow_process.Task(port=scene.port, kind=kind, connections=run.options.connections)
    with Child(slow_process.__name__, task, log=scene.folder / f"{kind}.log") as slow:
        slow.read(within_s=60)
        seen.rested_s.append(_rest(scene.server.pid))
        opened = time.monotonic()
        seen.windows.append(_window(scene, min(run.options.seconds, run.options.bound * 0.5)))
        seen.held.append(connections_of(scene.port) - before)
        until = opened + run.options.bound + MARGIN_S
        while connections_of(scene.port) > before and time.monotonic() < until:
            time.sleep(POLL_S)
        ended = time.monotonic() - opened
        seen.ended_s.append(ended if connections_of(scene.port) <= before else float("inf"))


def _rest(pid: int) -> float:
    """Wait until the process has little to do, RESTED_WITHIN_S at most; how long that took."""
    began = time.monotonic()
    while True:
        before, at = cpu_seconds(pid), time.monotonic()
        time.sleep(REST_S)
        took = time.monotonic() - began
        if (cpu_seconds(pid) - before) / (time.monotonic() - at) <= MOST_CPU_AT_REST or took > RESTED_WITHIN_S:
            return took


def _judge(run: Run, quiet: list[Seen], slow: dict[Kind, _Seen]) -> None:
    usual = median(window.p99_ms for window in quiet)
    run.figure("p50 without slow clients", median(window.p50_ms for window in quiet), "ms")
    run.figure("p99 without slow clients", usual, "ms")
    failed = sum(window.failed for window in quiet)
    for kind, title in TITLES.items():
        windows = slow[kind].windows
        p99 = median(window.p99_ms for window in windows)
        run.figure(f"p50 beside {title}", median(window.p50_ms for window in windows), "ms")
        run.figure(f"p99 beside {title}", p99, "ms")
        run.figure(f"{title}: the server at rest after", median(slow[kind].rested_s), "s")
        run.figure(f"{title}: all ended after, longest", max(slow[kind].ended_s), "s")
        run.goal_at_most(f"p99 beside {title}, ratio", p99 / usual, MOST_RATIO)
        run.at_most(f"{title}: ended by the server within, s", max(slow[kind].ended_s), run.options.bound + MARGIN_S)
        run.equal(f"{title}: held open meanwhile", _held(slow[kind].held, run.options.connections), "all")
        failed += sum(window.failed for window in windows)
    run.equal("healthy requests that failed", failed, 0)


def _held(counts: list[int], connections: int) -> str:
    """The least number, or "all": a wave that the server turned away at once would have shown nothing."""
    return "all" if min(counts) >= connections * LEAST_HELD else str(min(counts))
