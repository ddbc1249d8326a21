"""Fluxora as operators run it: `python -m fluxora ...` in processes of its own, and PostgreSQL's processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from waiting import eventually

from fluxora.localnet import BulkHistory, Network
from fluxora.storage.embedded import EmbeddedServer

ROOT = Path(__file__).parents[2]
START_S = 60.0  # a cold embedded PostgreSQL on a busy machine
STOP_S = 30.0


def environment(**variables: str) -> dict[str, str]:
    """The environment of a child: ours without what would configure it, no limits of rate, plus `variables`."""
    known = ("PORT", "HOST", "LOG_LEVEL", "DATABASE_URL", "STELLAR_RPC_URL", "NETWORK_PASSPHRASE", "JWT_SECRET")
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in known and not name.startswith(("FLUXORA_", "INDEXER_"))
    }
    return {**own, "PYTHONPATH": str(ROOT), "FLUXORA_RATE_LIMIT": "0", **variables}


def following(
    net: Network, *histories: BulkHistory, url: str | None = None, page_limit: int = 10_000, **more: str
) -> dict[str, str]:
    """Variables of a `fluxora serve` that follows a local network and the histories on it, checking each header."""
    contracts = [*(contract.contract_id for contract in net.contracts), *(history.contract_id for history in histories)]
    return environment(
        PORT="0",
        STELLAR_RPC_URL=net.url,
        NETWORK_PASSPHRASE=net.chain.passphrase,
        FLUXORA_CONTRACTS=",".join(contracts),
        FLUXORA_HEADER_EVERY="1",
        FLUXORA_POLL_INTERVAL_MS="20",
        FLUXORA_RPC_PAGE_LIMIT=str(page_limit),
        **({} if url is None else {"DATABASE_URL": url}),
        **more,
    )


class Served:
    """A running `fluxora serve` (or whatever `command` is); its log goes to a file."""

    def __init__(
        self, environ: Mapping[str, str], log: Path, command: Sequence[str] = ("-m", "fluxora", "serve")
    ) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=ROOT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    @property
    def text(self) -> str:
        """What it has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Its log lines with that event name."""
        return [json.loads(line) for line in self.text.splitlines() if f'"event": "{event}"' in line]

    async def ready(self) -> str:
        """Wait until it serves; its URL."""

        def started() -> str | None:
            assert self.code is None, f"it ended with {self.code}:\n{self.text[-3000:]}"
            lines = self.lines("runtime.started")
            return lines[0]["url"] if lines else None

        return str(await eventually(started, "the server starts", within_s=START_S))

    async def get(self, path: str, *, timeout_s: float = 10.0, **query: str | int) -> httpx.Response:
        """One request on a connection of its own."""
        async with httpx.AsyncClient(base_url=await self.ready(), timeout=timeout_s) as client:
            return await client.get(path, params=query)

    async def health(self) -> dict[str, Any]:
        """The report, whatever its status."""
        report: dict[str, Any] = (await self.get("/health")).json()
        return report

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self.code is None:
            self._process.kill()
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        self._process.terminate()
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; its exit code."""
        await eventually(lambda: self.code is not None, "the process ends", within_s=STOP_S)
        assert self.code is not None
        return self.code

    def end_now(self) -> None:
        """For the end of a test, whatever state it is in."""
        if self.code is None:
            self._process.kill()
        self._process.wait(STOP_S)


@asynccontextmanager
async def serve(
    environ: Mapping[str, str], log: Path, command: Sequence[str] = ("-m", "fluxora", "serve")
) -> AsyncIterator[Served]:
    """`fluxora serve` for the length of the block; whatever is left of it then is killed."""
    served = Served(environ, log, command)
    try:
        yield served
    finally:
        served.end_now()


async def run(*command: str, environ: Mapping[str, str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m fluxora COMMAND` to its end."""
    return await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "fluxora", *command],
            env=environ,
            input=text,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=START_S,
            check=False,
        )
    )


def postgres_processes(server: EmbeddedServer) -> list[int]:
    """The server's own process first, then all that it has started; empty when it does not run."""
    try:
        postmaster = int((server.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
        if Path(f"/proc/{postmaster}/cwd").readlink() != server.data.resolve():
            return []
    except OSError:
        return []
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it ended while we looked
        if parent == postmaster:
            children.append(int(path.parent.name))
    return [postmaster, *children]


def signal_postgres(server: EmbeddedServer, number: signal.Signals) -> None:
    """Send every process of the server a signal, the postmaster first, so that it starts no more."""
    for pid in postgres_processes(server):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
