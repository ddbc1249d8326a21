"""Databases to back up, and what all of one is."""

from __future__ import annotations

import subprocess
from typing import Any

ROWS = 5_000
FILL = (
    "INSERT INTO events (position, event_id, epoch, event, action, timestamp_ms, payload) "
    "SELECT n, n::text, 1, 'stream.updated', 'top_up', n, json_build_object('n', n, 'x', md5(n::text)) "
    f"FROM generate_series(1, {ROWS}) n"
)


def name_of(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def text_of(run: Any, url: str) -> str:
    """All of a database as SQL, by pg_dump: the oracle of equality. What differs by each run is left out."""
    command = [str(run.server.bin / "pg_dump"), "--dbname", url, "--restrict-key=x"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
