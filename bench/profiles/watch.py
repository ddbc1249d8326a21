"""What the system under load costs while it is loaded, looked at from outside once a second.

CPU is told by process, of the server by thread, and of the thread that runs the actors by actor; its other threads
serve storage. What PostgreSQL's processes share is counted once (their proportional set size).
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import msgspec

from bench.child import Child
from bench.processes import TICKS_PER_S, children, cpu_seconds, machine_cpu_seconds, resident_bytes
from bench.profiles.readback import Reader
from bench.profiles.system import System
from bench.server_process import Used

ROWS_EVERY_S = 2.0
LOG_MOST_BYTES = 64 << 20
ROWS = """
    SELECT s.relname AS name, n_dead_tup::float8 AS dead, (n_tup_upd + n_tup_del)::float8 AS gone,
           autovacuum_count::float8 AS vacuums,
           coalesce(o.least, current_setting('autovacuum_vacuum_threshold')::float8)
               + n_live_tup * coalesce(o.share, current_setting('autovacuum_vacuum_scale_factor')::float8) AS due
    FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid CROSS JOIN LATERAL (
        SELECT max(option_value::float8) FILTER (WHERE option_name = 'autovacuum_vacuum_threshold') AS least,
               max(option_value::float8) FILTER (WHERE option_name = 'autovacuum_vacuum_scale_factor') AS share
        FROM pg_options_to_table(c.reloptions)
        WHERE option_name IN ('autovacuum_vacuum_threshold', 'autovacuum_vacuum_scale_factor')
    ) AS o WHERE n_tup_upd + n_tup_del > 0
"""
HUB = re.compile(r"^fluxora_hub_position ([0-9.e+]+)$", re.MULTILINE)
DEAD, GONE = "Dead rows of a table: ", "Rows of a table updated or deleted so far: "
VACUUMED_AT = "Dead rows of a table at which autovacuum comes: "
Note = Callable[[str, float, float], None]


class Watch:
    """Samples one system; `note` is given each value: the line it belongs to, when, and what it was."""

    def __init__(self, system: System, reader: Reader, zero: float, note: Note) -> None:
        self._system = system
        self._reader = reader
        self._zero = zero
        self._note = note
        self._cpu: dict[str, float] = {}
        self._of_actors: tuple[float, dict[str, float]] | None = None
        self._machine = 0.0
        self._at = 0.0
        self._rows_at = -ROWS_EVERY_S
        self._runner = asyncio.Runner()
        self._database: Any = None

    def __enter__(self) -> Self:
        if self._system.database_url is not None:
            self._database = self._runner.run(asyncpg.connect(self._system.database_url))
        self._cpu, self._machine, self._at = self._clocks(), machine_cpu_seconds(), time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._database is not None:
            self._database.terminate()
        self._runner.close()

    def sample(self, connections: int) -> None:
        """Look once. `connections`: how many the load generators hold.

        Raises:
            ChildFailed: the server ended.
        """
        now = time.monotonic()
        at = now - self._zero
        self._health(at)
        server = self._system.server
        if server is None:
            return
        server.alive()
        self._actors(server)
        cpu = self._clocks()
        for name, value in cpu.items():
            self._note(f"CPU, share of a core: {name}", at, (value - self._cpu[name]) / max(1e-3, now - self._at))
        machine = machine_cpu_seconds()
        self._note("Machine, cores: busy", at, (machine - self._machine) / max(1e-3, now - self._at))
        self._cpu, self._machine, self._at = cpu, machine, now
        self._note("Resident memory, MB: server", at, resident_bytes(server.pid) / 1e6)
        descriptors = sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir())
        self._note("Descriptors of the server: in all", at, descriptors)
        self._note("Descriptors of the server: beyond connections", at, descriptors - connections)
        if self._system.postmaster is not None:
            self._note("Resident memory, MB: PostgreSQL", at, _shared_out(self._system.postmaster) / 1e6)
        if at - self._rows_at >= ROWS_EVERY_S:
            self._rows_at = at
            self._rows(at)
        if self._system.log.stat().st_size > LOG_MOST_BYTES:
            os.truncate(self._system.log, 0)  # it would fill the disk

    def _clocks(self) -> dict[str, float]:
        """CPU seconds so far, by process and thread."""
        server, postmaster = self._system.server, self._system.postmaster
        found: dict[str, float] = {}
        if server is not None:
            threads = _threads_cpu_s(server.pid)
            found["server, actors"] = threads.pop(server.pid)
            found["server, storage and other threads"] = sum(threads.values())
        if postmaster is not None:
            found["PostgreSQL"] = max(cpu_seconds(postmaster), self._cpu.get("PostgreSQL", 0.0))
        return found

    def _actors(self, server: Child) -> None:
        """Take in what the server has said of its actors, and ask again: a server that is busy is not waited for."""
        for line in server.lines():
            used, now = msgspec.convert(line, Used), time.monotonic()
            if self._of_actors is not None:
                then, before = self._of_actors
                for name, value in used.cpu_s.items():
                    share = (value - before.get(name, 0.0)) / max(1e-3, now - then)
                    self._note(f"CPU of an actor, share of a core: {name}", now - self._zero, share)
            self._of_actors = now, used.cpu_s
        server.tell({})

    def _health(self, at: float) -> None:
        try:
            health = self._reader.get_any("/health")
        except (OSError, http.client.HTTPException):
            return  # that it does not answer is told by the requests
        if "webhooks" not in health:
            return  # nor that what answers is no Fluxora
        for actor in health["actors"]:
            if actor.get("inbox") is not None:
                self._note(f"Waiting for an actor: {actor['name']}", at, actor["inbox"])
        self._note("Oldest webhook delivery, s: age", at, (health["webhooks"]["oldestPendingMs"] or 0) / 1e3)
        behind = health["indexer"]["lagMs"]
        if behind is not None:
            self._note("Ingest behind the chain, s: since the last ledger closed", at, behind / 1e3)

    def _rows(self, at: float) -> None:
        rows = self._runner.run(self._database.fetch(ROWS))
        for row in rows:
            for what, column in ((DEAD, "dead"), (GONE, "gone"), (VACUUMED_AT, "due")):
                self._note(what + row["name"], at, row[column])
        self._note("Runs of autovacuum: so far", at, sum(row["vacuums"] for row in rows))
        head = self._runner.run(self._database.fetchval("SELECT position FROM log_head"))
        told = HUB.search(self._reader.get_text("/metrics"))
        if told is not None:
            self._note("Events behind the log: hub", at, max(0.0, head - float(told[1])))


def _threads_cpu_s(pid: int) -> dict[int, float]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            numbers = (task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        found[int(task.name)] = (int(numbers[11]) + int(numbers[12])) / TICKS_PER_S
    return found


def _shared_out(postmaster: int) -> int:
    """Bytes of all processes of a server, each shared page counted once."""
    total = 0
    for pid in (postmaster, *children(postmaster)):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue  # it has ended, or is another user's
        total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total
