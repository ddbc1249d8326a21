"""REST over keep-alive connections, against Express 4 with helmet that has everything in memory; durable writes against
pgbench.

Both servers hold the same streams and answer the same requests on the same two cores, which the load generator shares;
rounds alternate between them, and what is judged is the ratio of the medians. An error in any answer fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import asyncpg

from bench import express, pages, pgbench, server_process, tables, wrk
from bench.cores import pinned
from bench.harness import Run
from bench.sides import Rounds, Side, serve
from fluxora.storage.embedded import EmbeddedServer

CORES = 2
CONNECTIONS = [16, 64]
IDS = 1_000  # of all streams, asked for over and over
BODIES = 5_000
LEAST_CPU_US = 20.0  # that PostgreSQL takes to read a page
LEAST_RATIO = {"id": 3.0, "health": 3.0, "page": 1.0, "same": 3.0, "create": 0.5}
TITLES = {
    "id": "GET /api/streams/{id}",
    "health": "GET /health",
    "page": "GET a page of 20, another each time",
    "same": "GET a page of 20, always the same",
    "create": "POST /api/streams",
}


class Rest:
    """Answers per second of the whole runtime, ours and the predecessor's."""

    name = "rest"
    summary = "REST answers per second, against Express 4 from memory; durable writes, against pgbench"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How much, and what of it."""
        parser.add_argument("--streams", type=int, default=10_000, help="streams in the list")
        parser.add_argument("--seconds", type=int, default=1, help="length of a round (5 for the real thing)")
        parser.add_argument("--rounds", type=int, default=3, help="rounds of each side (5 for the real thing)")
        parser.add_argument(
            "--connections", nargs="+", type=int, default=CONNECTIONS, help="at a time, one figure each"
        )
        parser.add_argument("--cases", nargs="+", choices=TITLES, default=list(TITLES), help="only these")

    def run(self, run: Run) -> None:
        """Serve, load, compare."""
        lacking = "wrk is not installed (the Debian package wrk)" if not wrk.is_installed() else express.missing()
        if lacking is not None:
            run.skip(lacking)
            return
        with ExitStack() as stack:
            run.note(f"wrk, both servers and PostgreSQL share {stack.enter_context(pinned(CORES))} cores")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
            folder.chmod(0o755)  # the server runs as a user of its own when this one is root
            with run.stage("start PostgreSQL"):
                server = EmbeddedServer(folder / "data")
                server.open()
                stack.callback(server.close)
                target = asyncio.run(tables.create_database(server.url, "served"))
            with run.stage("serve"):
                postmaster = int((server.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
                ours, theirs = serve(stack, run, folder, target, postmaster)
            for case in run.options.cases:
                if case != "create":
                    _compare(run, case, (ours, theirs), folder)
            if "create" in run.options.cases:
                _create(run, ours, folder, server, target)


def _compare(run: Run, case: str, sides: tuple[Side, Side], folder: Path) -> None:
    """Measure both sides at each number of connections, in alternating order."""
    turn = 0
    for connections in run.options.connections:
        warm, found = {side.name: Rounds() for side in sides}, {side.name: Rounds() for side in sides}
        with run.stage(f"{TITLES[case]}, {connections} connections"):
            for number in range(-1 if turn == 0 else 0, run.options.rounds):  # the very first one warms up
                for side in sides if number % 2 else sides[::-1]:
                    lines = _lines(case, side, folder / "lines", turn)
                    turn += 1
                    with (warm if number < 0 else found)[side.name].measuring(side) as loads:
                        loads.append(
                            wrk.load(
                                side.url,
                                lines,
                                connections=connections,
                                seconds=run.options.seconds,
                                order="random" if case == "id" else "walk",
                            )
                        )
        ours, theirs = (found[side.name] for side in sides)
        title = f"{TITLES[case]}, {connections} conn."
        ratio = run.compare(title, ours=ours.rate, baseline=theirs.rate, baseline_name="Express", unit="answers/s")
        for side in sides:
            found[side.name].describe(run, f"{title}, {side.name}")
        run.figure(f"{title}, ratio per CPU second", theirs.whole_cpu_us / ours.whole_cpu_us, "x")
        run.equal(f"errors, {title}", ours.errors + theirs.errors, 0)
        if case == "page":  # or it would measure something else
            run.equal(f"read from PostgreSQL, {title}", ours.cpu_us_of("PostgreSQL") >= LEAST_CPU_US, required=True)
        run.goal(f"ratio, {title}", ratio, LEAST_RATIO[case])


def _lines(case: str, side: Side, file: Path, turn: int) -> Path:
    """The file of paths to ask for."""
    if case == "page":
        start = turn * len(side.pages) // 7 % len(side.pages)  # elsewhere each time
        return _written(file, side.pages[start:] + side.pages[:start])
    if case == "id":
        return _written(file, (f"/api/streams/{stream_id}" for stream_id in random.Random(1).sample(side.ids, IDS)))
    return _written(file, ["/health" if case == "health" else pages.PATH])


def _create(run: Run, side: Side, folder: Path, server: EmbeddedServer, database_url: str) -> None:
    """Creations a second, each answered after its commit, against transactions a second that insert the same rows."""
    bodies = _written(folder / "bodies", (json.dumps(_body(number)) for number in range(BODIES)))
    before = asyncio.run(_streams(database_url))
    with run.stage("make the database for pgbench"):
        answered = _post(run, side, bodies, run.options.connections[0], Rounds())  # it inserts what this leaves
        insert = _copied(server, database_url, folder)
    if insert is None:
        run.note("pgbench is not installed: writes have nothing to be compared with")
    for connections in run.options.connections:
        title, ours = f"{TITLES['create']}, {connections} conn.", Rounds()
        inserted: dict[pgbench.Form, list[float]] = {form: [] for form in pgbench.POSITIONS if insert is not None}
        with run.stage(f"{TITLES['create']}, {connections} connections"):
            for _ in range(run.options.rounds):
                answered += _post(run, side, bodies, connections, ours)
                for form, rates in inserted.items():
                    assert insert is not None
                    rates.append(pgbench.rate(insert, form, clients=connections, seconds=run.options.seconds))
        run.figure(title, ours.rate, "answers/s")
        ours.describe(run, title)
        run.equal(f"errors, {title}", ours.errors, 0)
        for form, rates in inserted.items():
            run.figure(f"{title}, pgbench with positions from the {form}", median(rates), "transactions/s")
            run.figure(f"{title}, ratio to pgbench with positions from the {form}", ours.rate / median(rates), "x")
        if inserted:
            run.goal(f"ratio, {title}", ours.rate / median(inserted["sequence"]), LEAST_RATIO["create"])
    stored = asyncio.run(_streams(database_url)) - before
    run.equal("creations answered and not in the database", max(0, answered - stored), 0)


def _copied(server: EmbeddedServer, database_url: str, folder: Path) -> pgbench.Insert | None:
    """A database like the served one for pgbench to insert into; None where there is no pgbench."""
    program = pgbench.installed(server.bin)
    if program is None:
        return None
    copied = asyncio.run(tables.create_database(server.url, "inserted"))
    asyncio.run(tables.migrate(copied))
    asyncio.run(tables.copy_baseline(database_url, copied, folder))
    return asyncio.run(pgbench.prepare(program, database_url, copied, folder))


def _post(run: Run, side: Side, bodies: Path, connections: int, rounds: Rounds) -> int:
    """One round; the number of creations that were answered."""
    with rounds.measuring(side) as loads:
        loads.append(
            wrk.load(
                f"{side.url}/api/streams",
                bodies,
                connections=connections,
                seconds=run.options.seconds,
                method="POST",
            )
        )
    return rounds.loads[-1].requests - rounds.loads[-1].refused


def _body(number: int) -> dict[str, str | int]:
    return {
        "sender": server_process.account(number % server_process.PEOPLE),
        "recipient": server_process.account(server_process.PEOPLE + number % server_process.PEOPLE),
        "depositAmount": f"{100_000 + number}.0000000",
        "ratePerSecond": "0.0010000",
        "startTime": server_process.GENESIS_S + number,
        "endTime": server_process.GENESIS_S + number + server_process.LIFETIME_S,
    }


def _written(file: Path, lines: Iterable[str]) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


async def _streams(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM streams")
        return count
    finally:
        await connection.close()
