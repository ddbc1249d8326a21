"""pgbench, PostgreSQL's own load generator, inserting the rows of one API write: what a durable write can cost at best.

Two forms, each one statement and so one round trip and one transaction. `head` does what an append must: it takes the
next position from the log's head row, which every writer locks until its commit. `sequence` is stricter: positions come
from a sequence, nobody waits for anybody, and the commits of all clients share their flushes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import asyncpg
import msgspec

GRACE_S = 30.0
HEAD_FROM = 1_000_000_000  # positions of the form `head`, out of the sequence's way
THREADS = 2
Form = Literal["head", "sequence"]
POSITIONS: dict[Form, str] = {
    "head": "UPDATE log_head SET position = position + 1 RETURNING position",
    "sequence": "SELECT nextval('bench_position') AS position",
}
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: ([0-9]+)", re.MULTILINE)


class Insert(msgspec.Struct, frozen=True):
    """What to insert with what into which database: the script of each form, and the values that it names."""

    program: str
    url: str
    scripts: dict[Form, Path]
    values: dict[str, str]


def installed(folder: Path) -> str | None:
    """The program, of `folder` where PostgreSQL's own are, else of the system; None where there is none."""
    own = folder / "pgbench"
    return str(own) if own.exists() else shutil.which("pgbench")


async def prepare(program: str, source_url: str, target_url: str, folder: Path) -> Insert:
    """Write the scripts into `folder`, after the newest stream of one database, and make another ready for them."""
    source = await asyncpg.connect(source_url)
    try:
        stream = await source.fetchrow("SELECT * FROM streams ORDER BY created_position DESC LIMIT 1")
        event = await source.fetchrow("SELECT * FROM events WHERE position = $1", stream["created_position"])
    finally:
        await source.close()
    target = await asyncpg.connect(target_url)
    try:
        newest: int = await target.fetchval("SELECT coalesce(max(position), 0) FROM events")
        await target.execute(f"CREATE SEQUENCE bench_position START {newest + 1}")
        await target.execute("UPDATE log_head SET position = $1", HEAD_FROM)
    finally:
        await target.close()
    values: dict[str, str] = {}
    scripts: dict[Form, Path] = {}
    for form, position in POSITIONS.items():
        scripts[form] = folder / f"{form}.sql"
        scripts[form].write_text(statement(position, event, stream, values), encoding="utf-8")
    return Insert(program, target_url, scripts, values)


def statement(position: str, event: Mapping[str, Any], stream: Mapping[str, Any], values: dict[str, str]) -> str:
    """The SQL that inserts rows like these two under a new position and ids made of it; fills `values`."""
    name = "lpad(to_hex(position), 32, '0')"
    own = {"position": "position", "event_id": name, "stream_id": f"'stream-' || {name}"}
    events = _columns("event", event, own, values)
    own = {"id": f"'stream-' || {name}", "position": "position", "created_position": "position", "last_event_id": name}
    streams = _columns("stream", stream, own, values)
    return (
        f"WITH place AS ({position}), recorded AS ("
        f"INSERT INTO events ({', '.join(events)}) SELECT {', '.join(events.values())} FROM place RETURNING position) "
        f"INSERT INTO streams ({', '.join(streams)}) SELECT {', '.join(streams.values())} FROM recorded;\n"
    )


def _columns(table: str, row: Mapping[str, Any], own: Mapping[str, str], values: dict[str, str]) -> dict[str, str]:
    """Expressions by column. What is text or bytes becomes a variable of pgbench, so that no colon in it is one."""
    columns: dict[str, str] = {}
    for column, value in row.items():
        if column in own:
            columns[column] = own[column]
        elif value is None:
            columns[column] = "NULL"
        elif isinstance(value, str | bytes):
            values[f"{table}_{column}"] = value if isinstance(value, str) else f"\\x{value.hex()}"
            kind = "json" if column == "payload" else "text" if isinstance(value, str) else "bytea"
            columns[column] = f":{table}_{column}::{kind}"
        elif isinstance(value, Decimal):
            columns[column] = f"{value:f}"
        else:
            columns[column] = str(value).lower()  # whole numbers, true and false
    return columns


def rate(insert: Insert, form: Form, *, clients: int, seconds: int) -> float:
    """Transactions a second.

    Raises:
        subprocess.SubprocessError: it failed; what it printed is in the error.
    """
    parts = urlsplit(insert.url)
    host = parse_qs(parts.query)["host"][0]
    where = ["-h", host, "-U", str(parts.username), "-n", "-M", "prepared"]
    amount = ["-c", str(clients), "-j", str(THREADS), "-T", str(seconds), "-f", str(insert.scripts[form])]
    named = [f"--define={name}={value}" for name, value in insert.values.items()]
    ended = subprocess.run(
        [insert.program, *where, *amount, *named, parts.path.lstrip("/")],
        capture_output=True,
        text=True,
        timeout=seconds + GRACE_S,
        check=False,
    )
    found, failed = _TPS.search(ended.stdout), _FAILED.search(ended.stdout)
    if found is None or ended.returncode or (failed is not None and failed[1] != "0"):
        raise subprocess.SubprocessError(f"pgbench failed: {ended.stdout[-500:]} {ended.stderr[-500:]}")
    return float(found[1])
