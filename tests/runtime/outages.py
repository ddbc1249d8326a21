"""A PostgreSQL of the test's own, and the ways in which it goes away and comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import postgres_processes, signal_postgres

from fluxora.storage.embedded import EmbeddedServer


class Stopped:
    """A fast shutdown, which ends every connection, and a later start."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def leave(self) -> None:
        self._server._pg("pg_ctl", "stop", "-D", str(self._server.data), "-m", "fast", "-w")

    def come_back(self) -> None:
        self._server._ensure_running()


class Frozen:
    """Every process stopped where it stands: connections stay open, and new ones are taken but not answered."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def leave(self) -> None:
        signal_postgres(self._server, signal.SIGSTOP)

    def come_back(self) -> None:
        signal_postgres(self._server, signal.SIGCONT)


@contextmanager
def own_server(folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(folder)
    server.open()
    try:
        yield server
    finally:
        signal_postgres(server, signal.SIGCONT)
        server.close()
        assert postgres_processes(server) == []
