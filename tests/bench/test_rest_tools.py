from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys

import asyncpg
import pytest
import trio

from bench import express, pages, pgbench, server_process, wrk
from bench.child import Child, ChildFailed, Program
from bench.cores import pinned
from bench.harness import Run
from bench.processes import connections_of
from bench.scenarios.rest import Rest
from bench.sides import Rounds, Side
from fluxora.storage.store import StreamQuery, open_store

ECHO = "import sys; [print(line.strip(), flush=True) for line in sys.stdin]"


@pytest.fixture
def baseline(tmp_path):
    if reason := express.missing():
        pytest.skip(reason)
    file = tmp_path / "streams"
    streams = [{"id": f"stream-{number}", "status": "active" if number % 2 else "paused"} for number in range(45)]
    file.write_text("".join(json.dumps(stream) + "\n" for stream in streams))
    with express.start(file, log=tmp_path / "log") as server:
        yield server, server.read(within_s=60)["port"], streams


def test_the_baseline_serves_the_same_streams_page_by_page(baseline):
    _, port, streams = baseline
    found, paths = pages.walk(port)
    assert found == streams
    assert len(paths) == 2
    assert pages.walk(port, first=5)[0] == streams
    assert len(set(pages.distinct(port))) == len(pages.distinct(port)) == 8


def test_an_answer_that_is_no_page_is_told(baseline):
    _, port, _ = baseline
    with pytest.raises(pages.UnexpectedAnswer, match="400"):
        pages.walk(port, first=0)


@pytest.mark.skipif(not wrk.is_installed(), reason="wrk is not installed")
def test_wrk_measures_and_counts_refusals(baseline, tmp_path):
    server, port, streams = baseline
    side = Side("Express", port, {"server": server.pid}, [], [], tmp_path / "log")
    lines = tmp_path / "lines"
    lines.write_text("".join(f"/api/streams/{stream['id']}\n" for stream in streams))
    rounds = Rounds()
    with rounds.measuring(side) as loads:
        loads.append(wrk.load(side.url, lines, connections=2, seconds=1, order="random"))
    assert rounds.errors == 0
    assert rounds.rate > 0
    assert rounds.loads[0].p50_ms <= rounds.loads[0].p99_ms
    assert rounds.cpu_us_of("server") == rounds.whole_cpu_us > 0
    lines.write_text("/api/streams/none\n")
    load = wrk.load(side.url, lines, connections=2, seconds=1)
    assert load.refused == load.errors == load.requests > 0
    lines.write_text("{}\n")
    load = wrk.load(f"{side.url}/api/streams", lines, connections=2, seconds=1, method="POST")
    assert load.refused == load.requests > 0


def test_what_wrk_says_without_figures_is_an_error():
    with pytest.raises(subprocess.SubprocessError, match="unable to connect"):
        wrk.read("Running 1s test\nunable to connect to 127.0.0.1:1\n")


def test_the_scenario_is_skipped_without_wrk_and_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    for strict in (False, True):
        run = Run("rest", argparse.Namespace(strict=strict))
        Rest().run(run)
        assert run.report.skipped is not None
        assert "wrk" in run.report.skipped
        assert run.report.passed is not strict


async def test_pgbench_inserts_whole_rows_in_both_forms(storage_config, postgres_run, tmp_path):
    program = pgbench.installed(postgres_run.server.bin)
    assert program is not None
    await server_process.preload(storage_config, 3)
    url = storage_config.database_url

    def measure():
        insert = asyncio.run(pgbench.prepare(program, url, url, tmp_path))
        for form in pgbench.POSITIONS:
            assert pgbench.rate(insert, form, clients=2, seconds=1) > 0
        return asyncio.run(rows(url))

    events, streams, alike = await trio.to_thread.run_sync(measure)
    assert events == streams > 10
    assert alike == events - 2  # all but the two that came before the one after which they are made
    async with open_store(storage_config, decimals={}) as store:  # and the program can read them
        (stream,) = await store.streams(StreamQuery(after=pgbench.HEAD_FROM, limit=1))
    assert stream.created_position > pgbench.HEAD_FROM


async def rows(url):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchrow(
            "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM streams), (SELECT count(*) FROM events e "
            "JOIN streams s ON s.created_position = e.position WHERE e.payload::text = "
            "(SELECT payload::text FROM events WHERE position = 3))"
        )
    finally:
        await connection.close()


def test_a_program_is_asked_and_its_end_is_told(tmp_path):
    with Program("echo", [sys.executable, "-c", ECHO], log=tmp_path / "log") as echo:
        assert echo.ask({"a": 1}, within_s=30) == {"a": 1}
        assert echo.ask({"b": "é"}, within_s=30) == {"b": "é"}
        os.kill(echo.pid, 9)
        with pytest.raises(ChildFailed, match="echo ended with -9"):
            echo.ask({"c": 1}, within_s=30)


def test_healthy_client_measures_and_counts_failures(baseline, tmp_path):
    _, port, _ = baseline
    task = {"port": port, "paths": ["/api/streams/stream-1", "/api/streams/none"], "connections": 2, "per_second": 500}
    with Child("bench.healthy_process", task, log=tmp_path / "healthy") as healthy:
        seen = healthy.ask({"seconds": 0.3}, within_s=60)
    assert seen["requests"] > 1
    assert abs(2 * seen["failed"] - seen["requests"]) <= 1
    assert 0 < seen["p50_ms"] <= seen["p99_ms"]


@pytest.mark.parametrize("kind", ["head", "body", "read"])
def test_slow_clients_begin_and_do_not_go_on(kind, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = {"port": listener.getsockname()[1], "kind": kind, "connections": 3}
        with Child("bench.slow_process", task, log=tmp_path / "slow") as slow:
            assert slow.read(within_s=60) == {"opened": 3}
            for _ in range(3):
                peer, _ = listener.accept()
                with peer:
                    begun = peer.recv(65536)
                    assert begun.startswith((b"GET /", b"POST /"))
                    assert (b"\r\n\r\n" in begun) is (kind != "head")


def test_the_connections_of_a_port_are_counted():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert connections_of(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            assert connections_of(port) == 1
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            assert connections_of(port) == 0


def test_pinned_keeps_children_on_the_cores_and_gives_the_others_back():
    before = os.sched_getaffinity(0)
    with pinned(1) as got:
        assert got == 1
        told = subprocess.run(
            [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.strip() == "1"
    assert os.sched_getaffinity(0) == before
