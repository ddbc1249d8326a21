"""A backfill through the whole runtime: from a Stellar RPC node over a socket into PostgreSQL, fsync on.

Four processes: the node, the runtime, PostgreSQL, and this one, which only watches. The clock runs from the moment the
runtime begins to open until the last ledger's commit is visible. The baseline COPYs the rows that were just recorded
into the same, indexed tables of an empty database on the same server. A loss, a double or a wrong state fails the run.

With `--endpoints` each event is also recorded as a delivery to each of so many webhook endpoints, whose host has no
address: what is measured is recording, beside attempts that end at the resolver.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from bench import node_process, runtime_process, tables
from bench.child import Child
from bench.harness import Run
from bench.processes import Sampler, slope
from fluxora.storage.embedded import EmbeddedServer

LEAST_RATE = 10_000.0
LEAST_RATIO = 0.5
MOST_RESIDENT_MB = 300.0
LONG_ENOUGH_TO_JUDGE_GROWTH = 500_000  # events; before that the caches are still filling
MOST_GROWTH_MB = 15.0  # over the second half of a long run
MOST_DISTURBANCE = 0.15  # of the machine; above it the rates are of little worth
POLL_S = 0.05
STALLED_S = 60.0


@dataclass(frozen=True)
class _Scene:
    """What the backfill runs on: the server with its two databases, and the node with its chain."""

    folder: Path
    server: EmbeddedServer
    target: str
    empty: str
    node: Child
    chain: node_process.Built


class Ingest:
    """Committed events per second of a backfill, against a bare COPY."""

    name = "ingest"
    summary = "events committed per second of a backfill over a socket, against a bare COPY of the same rows"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How much, and whether to look inside."""
        parser.add_argument(
            "--events", type=int, default=100_000, help="events to backfill (1000000 for the real thing)"
        )
        parser.add_argument("--per-ledger", type=int, default=200, help="events in each ledger")
        parser.add_argument("--endpoints", type=int, default=0, help="webhook endpoints that are to get every event")
        parser.add_argument(
            "--profile", choices=runtime_process.THREADS, help="profile a thread of the runtime (which slows it down)"
        )

    def run(self, run: Run) -> None:
        """Serve, ingest, compare, copy."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
            folder.chmod(0o755)  # the server runs as a user of its own when this one is root
            with run.stage("start PostgreSQL"):
                server = EmbeddedServer(folder / "data")
                server.open()
                stack.callback(server.close)
                target, empty = asyncio.run(_databases(server.url, run.options.endpoints))
            with run.stage("build the chain"):
                task = node_process.Task(events=run.options.events, per_ledger=run.options.per_ledger)
                node = stack.enter_context(Child(node_process.__name__, task, log=folder / "node.log"))
                chain = node_process.Built(**node.read(within_s=600))
            scene = _Scene(folder, server, target, empty, node, chain)
            sampler, seconds, profile = self._backfill(run, scene)
            with run.stage("read back"):
                found = asyncio.run(tables.stored(target))
                deliveries = asyncio.run(_deliveries(target))
            with run.stage("settle"):
                asyncio.run(tables.settle(target))
            with run.stage("COPY"):
                copied, copy_s = asyncio.run(tables.copy_baseline(target, empty, folder))
        _judge_contents(run, found, chain)
        run.equal("deliveries recorded", deliveries, found.rows * run.options.endpoints)
        ratio = run.compare(
            "events committed",
            ours=chain.events / seconds,
            baseline=copied / copy_s,
            baseline_name="COPY",
            unit="events/s",
        )
        _describe(run, sampler, seconds, found)
        if run.options.profile:
            run.note("profiled: the rate says nothing")
            print(profile)
        else:
            run.goal("events/s committed", chain.events / seconds, LEAST_RATE)
            run.goal("ratio to COPY", ratio, LEAST_RATIO)

    def _backfill(self, run: Run, scene: _Scene) -> tuple[Sampler, float, str]:
        chain, log = scene.chain, scene.folder / "runtime.log"
        task = runtime_process.Task(
            database_url=scene.target,
            rpc_url=chain.url,
            contract_id=chain.contract_id,
            passphrase=chain.passphrase,
            start_ledger=chain.first_ledger,
            profile=run.options.profile,
        )
        with run.stage("backfill"), Child(runtime_process.__name__, task, log=log) as runtime:
            began: float = runtime.read(within_s=60)["began"]
            pids = {"runtime": runtime.pid, "PostgreSQL": _postmaster(scene.server), "node": scene.node.pid}
            with Sampler(pids) as sampler:
                ended, points = asyncio.run(_watch(scene.target, chain.last_ledger, runtime))
            run.series("log position", [(at - began, float(position)) for at, position in points])
            runtime.stop()
            profile: str = runtime.read(within_s=10)["profile"] if run.options.profile else ""
        return sampler, ended - began, profile


_ENDPOINT = """
INSERT INTO webhook_endpoints (id, url, description, events, stream_ids, addresses, ordered, rate_limit, max_in_flight,
    enabled, created_ms, updated_ms, created_position, secret)
SELECT 'we_' || md5(n::text), 'https://nowhere.invalid/', '', '{}', '{}', '{}', false, 0, 32, true, 0, 0, 0, 'secret'
FROM generate_series(1, $1::integer) AS n
"""


async def _databases(url: str, endpoints: int) -> tuple[str, str]:
    """Two databases: one for the runtime, with its webhook endpoints, and one with the schema and no rows."""
    target = await tables.create_database(url, "ingested")
    if endpoints:
        await tables.migrate(target)
        connection = await asyncpg.connect(target)
        try:
            await connection.execute(_ENDPOINT, endpoints)
            await connection.execute("UPDATE log_head SET webhooks = true")
        finally:
            await connection.close()
    empty = await tables.create_database(url, "copied")
    await tables.migrate(empty)
    return target, empty


async def _deliveries(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM webhook_deliveries")
        return count
    finally:
        await connection.close()


async def _watch(url: str, last_ledger: int, runtime: Child) -> tuple[float, list[tuple[float, int]]]:
    """Poll until the last ledger is committed: (monotonic time of it, log positions over time).

    Raises:
        ChildFailed: the runtime ended.
        TimeoutError: nothing was committed for STALLED_S.
    """
    connection = await asyncpg.connect(url)
    try:
        points: list[tuple[float, int]] = []
        moved = time.monotonic()
        while True:
            runtime.alive()
            done, position = await _progress(connection)
            now = time.monotonic()
            if not points or position != points[-1][1]:
                moved = now
                points.append((now, position))
            if done >= last_ledger:
                return now, points
            if now - moved > STALLED_S:
                raise TimeoutError(f"nothing committed for {STALLED_S:.0f} s: ledger {done} of {last_ledger}")
            await asyncio.sleep(POLL_S)
    finally:
        await connection.close()


async def _progress(connection: Any) -> tuple[int, int]:
    """The ledger up to which everything is committed, and the rows of the log; zeros before the schema exists."""
    try:
        row = await connection.fetchrow("SELECT complete_through, position FROM ingest_cursor, log_head")
    except asyncpg.UndefinedTableError:
        return 0, 0
    return row["complete_through"] or 0, row["position"]


def _postmaster(server: EmbeddedServer) -> int:
    return int((server.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])


def _judge_contents(run: Run, found: tables.Stored, chain: node_process.Built) -> None:
    run.equal("chain events recorded", found.chain_events, chain.events)
    run.equal("rows with an id of their own", found.distinct_ids, found.rows)
    run.equal("positions without a gap", found.position, found.rows)
    run.equal("digest of event ids", found.ids_digest[:16], chain.ids_digest[:16])
    run.equal("digest of stream states", found.states_digest[:16], chain.states_digest[:16])
    run.equal("streams", found.streams, chain.streams)


def _describe(run: Run, sampler: Sampler, seconds: float, found: tables.Stored) -> None:
    for name, cpu_s in sampler.cpu_s.items():
        run.figure(f"CPU of {name}", cpu_s, "s")
    run.figure("CPU of runtime per event", sampler.cpu_s["runtime"] / run.options.events * 1e6, "us")
    capacity_s = seconds * run.report.machine.cores
    run.figure("CPU in all", sum(sampler.cpu_s.values()) / capacity_s, "of the machine")
    others = (sampler.machine_cpu_s - sum(sampler.cpu_s.values())) / capacity_s
    run.figure("CPU of whatever else ran", others, "of the machine")
    if others > MOST_DISTURBANCE:
        run.note("the machine was busy with something else: the absolute rates are too low")
    run.figure("database after", found.bytes / 1e6, "MB")
    for name in ("runtime", "node"):
        points = [(at, value / 1e6) for at, value in sampler.resident[name]]
        run.series(f"resident memory of {name}, MB", points)
        run.figure(f"resident memory of {name}, most", max(value for _, value in points), "MB")
    points = [(at, value / 1e6) for at, value in sampler.resident["runtime"]]
    half = [point for point in points if point[0] >= points[-1][0] / 2]
    growth = slope(half) * (half[-1][0] - half[0][0])
    run.figure("resident memory of runtime, growth in the second half", growth, "MB")
    run.at_most("resident memory, MB", max(value for _, value in points), MOST_RESIDENT_MB)
    if run.options.events >= LONG_ENOUGH_TO_JUDGE_GROWTH:
        run.at_most("growth in the second half, MB", growth, MOST_GROWTH_MB)
