"""The load on a real server, behind a relay that spoils what a broken one would: each fault must fail the run."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from bench import server_process
from bench.child import ROOT, Child
from bench.harness import Report
from bench.profiles import system, warm_up
from bench.profiles.endpoint import Endpoint
from bench.profiles.readback import Reader
from bench.profiles.receivers_process import ANSWER
from bench.profiles.system import System
from bench.stories import chunks, frames
from fluxora.protocol.api_keys import ENTROPY_BYTES, make

TOKEN = secrets.token_hex(16)
KEY, ENTRY = make("bench", ["admin"], entropy=secrets.token_bytes(ENTROPY_BYTES))
START_S, RUN_S = 60, 60
SHORT = ("--stages", "0s:60,1s:60", "--followers", "10", "--correctness-only")


@pytest.fixture(scope="module")
def served(postgres_run, tmp_path_factory):
    """The port of the whole runtime over a database with a few streams."""
    url = postgres_run.create()
    log = tmp_path_factory.mktemp("served") / "log"
    task = server_process.Task(database_url=url, streams=50, worker_token=TOKEN, sockets=100, admin_key=ENTRY.entry)
    with Child(server_process.__name__, task, log=log) as child:
        yield child.read(within_s=START_S)["port"]
    postgres_run.drop(url)


class Spoiler:
    """Alters what the server answers (`back`) on every connection, and what it is asked (`forth`).

    `there` may answer in its place.
    """

    def back(self, data: bytes) -> bytes:
        return data

    def forth(self, data: bytes) -> bytes:
        return data

    def there(self, _data: bytes) -> bytes | None:
        return None

    async def until(self, data: bytes) -> None:
        """Wait for what must come before this is passed on."""


class Failing(Spoiler):
    """Answers 500 once the load has begun."""

    seen = 0

    def back(self, data):
        if b'"streams":[' in data or b'"depositAmount"' in data:
            self.seen += 1
            if self.seen > 10:
                return data.replace(b"HTTP/1.1 200 ", b"HTTP/1.1 500 ", 1)
        return data


class Forgetting(Spoiler):
    """Answers one registration itself, and stores nothing."""

    done = False

    def there(self, data):
        if not data.startswith(b"POST /api/streams ") or self.done:
            return None
        self.done = True
        return b'HTTP/1.1 201 Created\r\ncontent-length: 25\r\n\r\n{"id":"stream-forgotten"}'


class Holding(Spoiler):
    """Answers no request for a stream until twenty of them have come."""

    def __init__(self) -> None:
        self.requests = 0
        self.enough = trio.Event()

    def there(self, data):
        self.requests += data.startswith(b"GET /api/streams/")
        if self.requests >= 20:
            self.enough.set()

    async def until(self, data):
        if b'\r\n\r\n{"id":"stream-' in data:
            await self.enough.wait()


class Telling(Spoiler):
    """Tells the fifth event that is to be told to anyone `times` times."""

    def __init__(self, walk, times: int) -> None:
        self.walk, self.times, self.events = walk, times, 0

    def back(self, data):
        live = data[:1] == b"\x81" if self.walk is frames else b"\nevent: " in data
        if not live:
            return data
        spoilt, start = b"", 0
        for end, _ in self.walk(bytearray(data), 0):
            message = data[start:end]
            is_event = b'"stream_update"' in message or b"\nevent: " in message
            self.events += is_event
            spoilt += message * (self.times if is_event and self.events == 5 else 1)
            start = end
        return spoilt + data[start:]


class Diverting(Spoiler):
    """Has webhooks sent to another port than that of who asks for them: there is what spoils them."""

    def __init__(self, port: int) -> None:
        self.port, self.receivers = port, 0

    def forth(self, data):
        if not data.startswith(b"POST /api/admin/webhooks/endpoints ") or b'"enabled":false' in data:
            return data
        self.receivers = int(re.search(rb"http://127\.0\.0\.1:([0-9]+)/", data)[1])
        assert len(str(self.receivers)) == len(str(self.port))  # or the length of the body would be another
        return data.replace(b":%d/" % self.receivers, b":%d/" % self.port)


class Keeping(Spoiler):
    """Takes the fifth delivery, and passes it on to nobody."""

    deliveries = 0

    def there(self, data):
        self.deliveries += data.startswith(b"POST /")
        return ANSWER if self.deliveries == 5 else None


class Repeating(Spoiler):
    """Passes the fifth delivery on twice, and one of the answers back."""

    deliveries = 0
    too_many = 0

    def forth(self, data):
        self.deliveries += data.startswith(b"POST /")
        if self.deliveries != 5:
            return data
        self.too_many += 1
        return data * 2

    def back(self, data):
        if self.too_many and ANSWER in data:
            self.too_many -= 1
            return data.replace(ANSWER, b"", 1)
        return data


class Forging(Spoiler):
    """Changes what is signed."""

    def forth(self, data):
        return data.replace(b'"event":"stream.', b'"event":"dreams.')


@asynccontextmanager
async def relay(port: int | Callable[[], int], spoiler: Spoiler):
    def target():
        return port() if callable(port) else port

    async def back(server, client):
        async for data in server:
            await spoiler.until(data)
            await client.send_all(spoiler.back(data))

    async def pass_on(client):
        async with client, await trio.open_tcp_stream("127.0.0.1", target()) as server, trio.open_nursery() as nursery:
            nursery.start_soon(quietly, back, server, client)
            await quietly(there, client, server)
            nursery.cancel_scope.cancel()

    async def there(client, server):
        async for data in client:
            answered = spoiler.there(data)
            await (server.send_all(spoiler.forth(data)) if answered is None else client.send_all(answered))

    async def quietly(do, *ends):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await do(*ends)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, pass_on, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def load(port: int, folder: Path, *options: str) -> tuple[int, Report]:
    command = [sys.executable, "-m", "bench", "load", "--url", f"http://127.0.0.1:{port}", "--output", str(folder)]
    environ = {**os.environ, "INDEXER_WORKER_TOKEN": TOKEN, "FLUXORA_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with trio.fail_after(RUN_S):
        ended = await trio.run_process(
            [*command, *options], env=environ, cwd=ROOT, capture_stdout=True, capture_stderr=True, check=False
        )
    return ended.returncode, read(folder)


def read(folder: Path) -> Report:
    (file,) = folder.glob("*.json")
    return msgspec.json.decode(file.read_bytes(), type=Report)


def failed(report: Report) -> set[str]:
    return {verdict.name for verdict in report.verdicts if not verdict.passed}


async def test_an_honest_server_passes_and_everything_is_measured(served, tmp_path):
    async with relay(served, Spoiler()) as port:
        code, report = await load(port, tmp_path, *SHORT)
    assert (code, failed(report), report.interrupted) == (0, set(), False)
    assert {verdict.name for verdict in report.verdicts} >= {"errors rate", "lost count", "doubled count"}
    figures = {figure.name: figure.value for figure in report.figures}
    assert figures["answers, all"] == 60
    assert figures["followers, all that there were"] == 10
    assert figures["writes that were answered as stored"] == figures["events in the log"] > 0
    assert figures["webhook endpoints"] == 1
    for scenario in ("rest_reads", "ingest", "ws_followers", "sse_followers", "webhooks"):
        assert 0 < figures[f"{scenario}: p50"] < RUN_S * 1e3
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert TOKEN.encode() not in written
    assert KEY.encode() not in written
    assert await endpoints(served) == []


@pytest.mark.parametrize(
    ("spoiler", "mix", "broken"),
    [
        (Failing(), "rest_reads=1", "errors rate"),
        (Forgetting(), "rest_writes=1", "lost count"),
        (Telling(frames, 0), "ingest=1,ws_followers=1", "lost count"),
        (Telling(frames, 2), "ingest=1,ws_followers=1", "doubled count"),
        (Telling(chunks, 0), "ingest=1,sse_followers=1", "lost count"),
        (Telling(chunks, 2), "ingest=1,sse_followers=1", "doubled count"),
    ],
    ids=["500", "forgets a write", "loses a frame", "doubles a frame", "loses an event", "doubles an event"],
)
async def test_a_broken_server_fails_the_run(served, tmp_path, spoiler, mix, broken):
    async with relay(served, spoiler) as port:
        code, report = await load(port, tmp_path, *SHORT, "--mix", mix)
    assert code == 1
    assert broken in failed(report)


@pytest.mark.parametrize(
    ("spoiler", "broken"),
    [(Keeping(), {"lost count"}), (Repeating(), {"redelivered count"}), (Forging(), {"errors rate", "lost count"})],
    ids=["loses a webhook", "doubles a webhook", "forges webhooks"],
)
async def test_a_webhook_that_is_not_as_it_should_be_fails_the_run(served, tmp_path, spoiler, broken):
    diverting = Diverting(0)
    async with relay(lambda: diverting.receivers, spoiler) as diverting.port, relay(served, diverting) as port:
        code, report = await load(port, tmp_path, *SHORT, "--mix", "ingest=1,webhooks=1")
    assert (code, failed(report)) == (1, broken)


async def test_without_an_operators_credential_there_are_no_webhooks_and_that_is_said(served, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "KEY", "")
    code, report = await load(served, tmp_path, *SHORT)
    assert (code, failed(report)) == (0, set())
    assert any("no webhooks" in note for note in report.notes)
    assert "webhook endpoints" not in {figure.name for figure in report.figures}


async def endpoints(port: int) -> list[object]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": KEY}) as client:
        return (await client.get("/api/admin/webhooks/endpoints")).json()["endpoints"]


async def test_caches_are_filled_with_what_is_there_and_with_events_of_its_own(served, tmp_path, monkeypatch):
    monkeypatch.setattr(warm_up, "EVENTS", 400)
    target = System(Endpoint("127.0.0.1", served), tmp_path, TOKEN, {}, None)
    with closing(Reader(target.endpoint, {})) as reader:
        scene = system.scene(target, reader, 1)
        before = reader.position()
        streams, events = warm_up.fill(scene, reader)
        rows = reader.log(before)
    assert streams >= 50 + len(scene.hot)
    assert (events, len(rows), {row.action for row in rows}) == (400, 400, {"created"})
    assert len({row.stream_id for row in rows} - set(scene.hot)) == 400


async def test_requests_come_when_they_are_due_whether_or_not_there_are_answers(served, tmp_path):
    async with relay(served, Holding()) as port:
        code, report = await load(port, tmp_path, *SHORT, "--mix", "rest_reads=1")
    assert (code, failed(report)) == (0, set())


async def test_a_threshold_of_ones_own_fails_the_run(served, tmp_path):
    code, report = await load(
        served,
        tmp_path,
        *SHORT,
        "--mix",
        "rest_reads=1",
        "--threshold",
        "http_req_duration{scenario:rest_reads} p(50)<0",
    )
    assert (code, failed(report)) == (1, {"http_req_duration{scenario:rest_reads} p(50)"})


async def test_a_server_that_is_not_there_is_told_in_one_line(tmp_path, unused_port):
    code, report = await load(unused_port, tmp_path, *SHORT)
    assert code == 1
    assert "ConnectionRefusedError" in report.verdicts[-1].found


@pytest.fixture
def unused_port():
    """A port on which nobody listens, and nobody else begins to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_ctrl_c_ends_a_run_in_order_with_a_report_of_what_there_was(served, tmp_path):
    command = [sys.executable, "-m", "bench", "load", "--url", f"http://127.0.0.1:{served}", "--output", str(tmp_path)]
    environ = {**os.environ, "INDEXER_WORKER_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    process = await trio.lowlevel.open_process(
        [*command, "--stages", "0s:50,1h:50", "--followers", "5"],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        with trio.fail_after(RUN_S):
            seen, asked = b"", False
            async for data in process.stderr:  # to its end
                seen += data
                if b"  load ...\n" in seen and not asked:
                    asked = True
                    process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        await process.stderr.aclose()
        if process.returncode is None:
            process.terminate()
            await process.wait()
    report = read(tmp_path)
    assert report.interrupted
    assert {"lost count", "doubled count"}.isdisjoint(failed(report))
    assert report.stages[-1].name == "read the log back"
