"""What the system under load costs while it is loaded, looked at from outside once a second.

CPU is told by process, and of the server by thread: the actors share one, and cannot be told apart; its other threads
serve storage. What PostgreSQL's processes share is counted once (their proportional set size).
"""

from __future__ import annotations

import asyncio
import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg

from bench.processes import TICKS_PER_S, children, cpu_seconds, machine_cpu_seconds, resident_bytes
from bench.profiles.readback import Reader
from bench.profiles.system import System

ROWS_EVERY_S = 2.0
LOG_MOST_BYTES = 64 << 20
ROWS = """
    SELECT sum(n_dead_tup)::float8 AS dead, sum(n_live_tup)::float8 AS live, sum(n_tup_upd + n_tup_del)::float8 AS gone,
           sum(autovacuum_count)::float8 AS vacuums
    FROM pg_stat_user_tables
"""
Note = Callable[[str, float, float], None]


class Watch:
    """Samples one system; `note` is given each value: the line it belongs to, when, and what it was."""

    def __init__(self, system: System, reader: Reader, zero: float, note: Note) -> None:
        self._system = system
        self._reader = reader
        self._zero = zero
        self._note = note
        self._cpu: dict[str, float] = {}
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

    def _health(self, at: float) -> None:
        try:
            health = self._reader.get_any("/health")
        except (OSError, http.client.HTTPException):
            return  # that it does not answer is told by the requests
        for actor in health.get("actors", []):
            if actor.get("inbox") is not None:
                self._note(f"Waiting for an actor: {actor['name']}", at, actor["inbox"])
        oldest = health.get("webhooks", {}).get("oldestPendingMs")
        if oldest is not None:
            self._note("Oldest webhook delivery, s: age", at, oldest / 1e3)

    def _rows(self, at: float) -> None:
        row = self._runner.run(self._database.fetchrow(ROWS))
        self._note("Rows in PostgreSQL: dead", at, row["dead"] or 0.0)
        self._note("Rows in PostgreSQL: living", at, row["live"] or 0.0)
        self._note("Rows updated or deleted: so far", at, row["gone"] or 0.0)
        self._note("Runs of autovacuum: so far", at, row["vacuums"] or 0.0)


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
