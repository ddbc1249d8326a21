"""The predecessor to be measured against: Express 4 with helmet, every stream in memory (baselines/express)."""

from __future__ import annotations

from pathlib import Path

from bench import npm
from bench.child import Program

FOLDER = Path(__file__).parent / "baselines" / "express"


def missing() -> str | None:
    """What keeps it from running here, None where nothing does. Installs its packages where they are not yet."""
    return npm.missing(FOLDER)


def start(streams: Path, *, log: Path) -> Program:
    """Serve the streams of a file, one as JSON a line; its first line tells the `port`."""
    command = ["env", "NODE_ENV=production", "node", str(FOLDER / "server.js"), str(streams)]
    return Program("express", command, log=log)
