"""`fluxora tail` as people run it: a process that follows a served log, and ends as it should."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import trio
from processes import ROOT, Served, environment, run, serve
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket
from waiting import eventually

from fluxora.__main__ import main
from fluxora.localnet import account
from fluxora.protocol import sockets
from fluxora.protocol.api_keys import make
from fluxora.protocol.messages import LogEvent

DEADLINE_S = 60.0
NEW = {"sender": account(1, "a"), "recipient": account(1, "b"), "depositAmount": "1000", "ratePerSecond": "0.5"}
ADMIN_TEXT, ADMIN_KEY = make("root", ["admin", "streams:read", "streams:write"], entropy=bytes(range(48)))


class Tail:
    """A running `fluxora tail`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._text = b""
        self.told = ""  # on standard error

    @classmethod
    @asynccontextmanager
    async def open(cls, *arguments: str, **variables: str) -> AsyncIterator[Self]:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "fluxora", "tail", *arguments],
            env=environment(**variables),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        tail = cls(process)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tail._listen)
                with trio.fail_after(DEADLINE_S):
                    yield tail
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                for stream in (process.stdout, process.stderr):
                    await stream.aclose()

    async def _listen(self) -> None:
        async for data in self.process.stderr:
            self.told += data.decode()

    async def says(self, text: str) -> None:
        await eventually(lambda: text in self.told, f"it says {text!r}; it said {self.told!r}")

    async def line(self) -> str:
        while b"\n" not in self._text:
            data = await self.process.stdout.receive_some()
            assert data, f"its output ended; it said {self.told}"
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    async def lines(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(await self.line()) for _ in range(count)]

    async def ended(self) -> int:
        code: int = await self.process.wait()
        return code


async def register(url: str, count: int = 1, **headers: str) -> list[str]:
    """New streams, each one event of the log; their ids."""
    ids = []
    async with httpx.AsyncClient(base_url=url, timeout=30, headers=headers) as client:
        for _ in range(count):
            answer = await client.post("/api/streams", json=NEW)
            assert answer.status_code == 201, answer.text
            ids.append(answer.json()["id"])
    return ids


@asynccontextmanager
async def served(database: str, folder: Path, **variables: str) -> AsyncIterator[Served]:
    environ = environment(**{"PORT": "0", "DATABASE_URL": database, **variables})
    async with serve(environ, folder / "serve.log") as process:
        await process.ready()
        yield process


async def test_it_shows_each_event_on_a_line_and_ends_after_enough(postgres_url: str, tmp_path: Path) -> None:
    async with served(postgres_url, tmp_path) as server:
        url = await server.ready()
        ids = await register(url, 3)
        done = await run("tail", url, "--after", "0", "--count", "2", environ=environment())
        assert done.returncode == 0
        assert [line.split()[0:4:2] for line in done.stdout.splitlines()] == [["1", "created"], ["2", "created"]]
        assert [line.split()[3] for line in done.stdout.splitlines()] == ids[:2]
        assert done.stderr == "fluxora: connected, at position 3\n"
        as_json = await run("tail", "--after", "1", "--json", "--count", "2", environ=environment(FLUXORA_URL=url))
        told = [json.loads(line) for line in as_json.stdout.splitlines()]
        log = (await server.get("/api/events", after=1)).json()["events"]
        assert [{"type": "stream_update", "ledger": None, **event} for event in log] == told


async def test_it_begins_with_what_is_new(postgres_url: str, tmp_path: Path) -> None:
    async with served(postgres_url, tmp_path) as server:
        url = await server.ready()
        await register(url, 2)
        async with Tail.open(url, "--json") as tail:
            await tail.says("connected, at position 2")
            (new,) = await register(url)
            assert [(one["position"], one["streamId"]) for one in await tail.lines(1)] == [("3", new)]


async def test_several_selectors_show_what_any_of_them_matches_once(postgres_url: str, tmp_path: Path) -> None:
    async with served(postgres_url, tmp_path) as server:
        url = await server.ready()
        one, other, _ = await register(url, 3)
        wanted = ["--stream", other, "--stream", one, "--stream", one]
        async with Tail.open(url, *wanted, "--after", "0", "--json") as tail:
            assert [line["streamId"] for line in await tail.lines(2)] == [other, one]
            await tail.says("connected")
        people = ["--sender", NEW["sender"], "--recipient", NEW["recipient"], "--stream", one]
        async with Tail.open(url, *people, "--after", "0", "--json") as tail:
            assert [line["position"] for line in await tail.lines(3)] == ["1", "2", "3"]
            await tail.says("connected")
            await register(url)
            assert [line["position"] for line in await tail.lines(1)] == ["4"]


async def test_it_outlives_the_server_and_misses_nothing(postgres_url: str, tmp_path: Path) -> None:
    """Killed, then stopped in order, each time to come back on the same port, while another process writes."""
    (tmp_path / "again").mkdir()
    positions = []
    async with served(postgres_url, tmp_path) as writer, AsyncExitStack() as stack:
        writes = await writer.ready()
        server = await stack.enter_async_context(served(postgres_url, tmp_path / "again"))
        url = await server.ready()
        tail = await stack.enter_async_context(Tail.open(url, "--json", "--after", "0"))
        for end in ("kill", "stop"):
            await register(writes, 2)
            positions += [int(one["position"]) for one in await tail.lines(2)]
            await getattr(server, end)()
            await tail.says("connecting again in")
            await register(writes, 3)
            server = await stack.enter_async_context(
                served(postgres_url, tmp_path / "again", PORT=url.rpartition(":")[2])
            )
            positions += [int(one["position"]) for one in await tail.lines(3)]
        assert "server going away (1001)" in tail.told
    assert positions == list(range(1, 11))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("read", [True, False])
async def test_a_signal_ends_it_also_while_nobody_reads(
    postgres_url: str, tmp_path: Path, number: signal.Signals, *, read: bool
) -> None:
    async with served(postgres_url, tmp_path) as server:
        url = await server.ready()
        await register(url, 10 if read else 150)  # more than a pipe holds
        async with Tail.open(url, "--after", "0", "--json") as tail:
            await tail.says("connected")
            if read:
                await tail.lines(10)
            tail.process.send_signal(number)
            assert await tail.ended() == 0
        assert tail.told == f"fluxora: connected, at position {10 if read else 150}\n"


async def test_it_ends_quietly_when_its_reader_has_gone(postgres_url: str, tmp_path: Path) -> None:
    """Without a further event that would show it."""
    async with served(postgres_url, tmp_path) as server:
        url = await server.ready()
        await register(url)
        async with Tail.open(url, "--after", "0") as tail:
            await tail.line()
            await tail.says("connected")
            await tail.process.stdout.aclose()
            assert await tail.ended() == 0
        assert tail.told == "fluxora: connected, at position 1\n"


async def test_who_may_not_follow_is_told_what_it_takes(postgres_url: str, tmp_path: Path) -> None:
    variables = {"FLUXORA_AUTH": "required", "FLUXORA_API_KEYS": ADMIN_KEY.entry}
    async with served(postgres_url, tmp_path, **variables) as server:
        url = await server.ready()
        anonymous = await run("tail", url, environ=environment())
        assert (anonymous.returncode, anonymous.stdout) == (1, "")
        assert anonymous.stderr.startswith("fluxora: FollowRefused: The server answers 401")
        assert "an API key or a token" in anonymous.stderr
        wrong = await run("tail", url, environ=environment(FLUXORA_KEY="fxk_hunter22"))
        assert wrong.returncode == 1
        assert "hunter22" not in wrong.stderr
        async with Tail.open(url, "--json", FLUXORA_KEY=ADMIN_TEXT) as tail:
            await tail.says("connected")
            await register(url, **{"x-api-key": ADMIN_TEXT})
            async with httpx.AsyncClient(base_url=url, headers={"x-api-key": ADMIN_TEXT}) as client:
                assert (await client.post("/api/admin/ws/disconnect", json={"all": True})).status_code == 200
            assert await tail.ended() == 1
            assert len(await tail.lines(1)) == 1  # what it had was shown before it ended
            await tail.says("disconnected by an operator (4403)\n")


async def test_what_cannot_be_resumed_is_said_and_is_code_1(postgres_url: str, tmp_path: Path) -> None:
    async with served(postgres_url, tmp_path) as server:
        url = await server.ready()
        await register(url)
        done = await run("tail", url, "--after", "7", environ=environment())
        assert (done.returncode, done.stdout) == (1, "")
        assert "What follows position 7 cannot be told whole" in done.stderr
        assert "from position 1 on" in done.stderr


OBEYED = "\x1b]0;x\x07\x9b31m\x7f\u202e"  # what a terminal takes for orders, of one byte or of two


async def harmful(request: WebSocketRequest) -> None:
    """A server that would move a terminal's cursor, and says far too much."""
    socket = await request.accept(subprotocol="fluxora.v2")
    ref = json.loads(await socket.get_message())["ref"]
    payload = json.dumps({"memo": OBEYED}, ensure_ascii=False).encode()
    event = LogEvent(1, "id-1", "stream.updated", "withdrew", "stream-1", 7, None, None, 0, payload)
    for message in (
        sockets.ack(ref, 0, recovered=False),
        sockets.service("service.degraded", OBEYED * 1_000, 0),
        sockets.stream_update(event),
        sockets.error("FORBIDDEN", OBEYED * 1_000),
    ):
        await socket.send_message(message.decode())
    with suppress(ConnectionClosed):
        await socket.get_message()


async def test_a_server_cannot_give_orders_to_a_terminal() -> None:
    async with trio.open_nursery() as nursery:
        listening = await nursery.start(partial(serve_websocket, harmful, "127.0.0.1", 0, None))
        done = await run("tail", f"http://127.0.0.1:{listening.port}", "--json", environ=environment())
        nursery.cancel_scope.cancel()
    (shown,) = done.stdout.splitlines()
    assert json.loads(shown)["payload"] == {"memo": OBEYED}
    told = done.stderr.splitlines()
    assert [line.split(":")[1] for line in told] == [" connected, at position 0", " service.degraded", " FollowRefused"]
    for line in (shown, *told):
        assert line.isprintable()
        assert len(line) < 2_000
    assert done.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sender", "GABC"],
        ["--recipient", "C"],
        ["--stream", "a b"],
        ["--after", "-1"],
        ["--after", str(2**63)],
        ["--count", "0"],
        ["http://user:hunter22@h"],
        ["localhost"],
        ["--token", "hunter22"],
        [word for nth in range(31) for word in ("--stream", f"s-{nth}")],
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["tail", *arguments])
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    if "--token" not in arguments:  # argparse repeats what it does not know
        assert "hunter22" not in told.err


async def test_a_bad_variable_is_one_line_and_code_2() -> None:
    done = await run("tail", environ=environment(FLUXORA_URL="nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fluxora: FLUXORA_URL: ")
    assert len(done.stderr.splitlines()) == 1
