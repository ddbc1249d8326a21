"""A stop with many connections open that live: each is told, and none can hold it up beyond its budget."""

from __future__ import annotations

import json
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import h11
import pytest
import trio
from processes import Served, environment, run, serve
from proof import LONG
from test_command_line import history
from waiting import eventually
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, Request, TextMessage

SOCKETS = 2_000 if LONG else 300
STREAMS = 200 if LONG else 50
STUCK = 20
DRAIN_S = 10.0  # HttpConfig.drain_s
DEADLINE_S = 90.0


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOCKETS + STREAMS + 1_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Opened:
    """A WebSocket, spoken by wsproto. One that does not answer neither says that it closes, nor does so."""

    def __init__(self, port: int, *, answers: bool = True) -> None:
        self.closed_at: float | None = None
        self.code: int | None = None
        self.ended = False
        self.ready = trio.Event()
        self._port = port
        self._answers = answers
        self._frames = WSConnection(ConnectionType.CLIENT)

    async def live(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
            await stream.send_all(
                self._frames.send(Request(host="x", target="/ws/streams", subprotocols=["fluxora.v2"]))
            )
            async for data in stream:
                self._frames.receive_data(data)
                for event in self._frames.events():
                    await self._take(stream, event)
            self.ended = True
            if not self._answers:
                await trio.sleep_forever()

    async def _take(self, stream: trio.SocketStream, event: object) -> None:
        if isinstance(event, AcceptConnection):
            wanted = {"type": "subscribe", "streamId": "*", "ref": "1"}
            await stream.send_all(self._frames.send(TextMessage(data=json.dumps(wanted))))
        elif isinstance(event, Ping):
            await stream.send_all(self._frames.send(event.response()))
        elif isinstance(event, Message):
            self.ready.set()
        elif isinstance(event, CloseConnection):
            self.closed_at, self.code = time.monotonic(), event.code
            if self._answers:
                await stream.send_all(self._frames.send(event.response()))


class Listened:
    """A stream of Server-Sent Events, read by h11; `whole` once its body has come to its end."""

    def __init__(self, port: int) -> None:
        self.ready = trio.Event()
        self.whole = False
        self._port = port

    async def live(self) -> None:
        http = h11.Connection(h11.CLIENT)
        async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
            request = h11.Request(method="GET", target="/api/events/stream", headers=[("host", "x")])
            await stream.send_all(http.send(request) + http.send(h11.EndOfMessage()))
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Data):
                    self.ready.set()
                elif isinstance(event, h11.EndOfMessage):
                    self.whole = True
                    return


async def stuck(port: int) -> socket.socket:
    """A WebSocket that asks for all of the log and reads none of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    await trio.to_thread.run_sync(client.connect, ("127.0.0.1", port))
    frames = WSConnection(ConnectionType.CLIENT)
    client.sendall(frames.send(Request(host="x", target="/ws/streams")))
    received = b""
    while b"\r\n\r\n" not in received:
        received += await trio.to_thread.run_sync(client.recv, 1)
    frames.receive_data(received)
    assert isinstance(next(iter(frames.events())), AcceptConnection)
    client.sendall(frames.send(TextMessage(data='{"type":"subscribe","streamId":"*","after":"0"}')))
    return client


def variables(database: str) -> dict[str, str]:
    most = str(SOCKETS + STREAMS + STUCK)
    return environment(PORT="0", DATABASE_URL=database, FLUXORA_WS_MAX_PER_CLIENT=most)


async def port_of(server: Served) -> int:
    return int((await server.ready()).rpartition(":")[2])


async def test_each_socket_is_told_and_each_stream_ends_whole(postgres_url: str, tmp_path: Path) -> None:
    async with serve(variables(postgres_url), tmp_path / "serve.log") as server, trio.open_nursery() as nursery:
        port = await port_of(server)
        sockets = [Opened(port, answers=nth % 4 != 0) for nth in range(SOCKETS)]
        streams = [Listened(port) for _ in range(STREAMS)]
        with trio.fail_after(DEADLINE_S):
            for nth, one in enumerate([*sockets, *streams]):
                nursery.start_soon(one.live)
                if nth % 50 == 49:
                    await one.ready.wait()
            for one in [*sockets, *streams]:
                await one.ready.wait()
            asked = time.monotonic()
            server.signal(signal.SIGTERM)
            await eventually(lambda: all(one.ended for one in sockets), "each connection has ended")
            assert await server.ended() == 0
        told = [one.closed_at - asked for one in sockets if one.closed_at is not None]
        nursery.cancel_scope.cancel()
        print(f"{len(told)} told, the last after {max(told):.3f} s; gone after {time.monotonic() - asked:.3f} s")
        assert Counter(one.code for one in sockets) == {1001: SOCKETS}
        assert all(one.whole for one in streams)
        assert not {"http.drain_ended_early", "supervisor.drain_cut_short", "supervisor.actor_crashed"} & events_of(
            server
        )


async def test_who_reads_nothing_cannot_hold_it_up_beyond_its_budget(postgres_url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(json.dumps(event) for event in history(5_000)), encoding="utf-8")
    assert (await run("replay", str(file), environ=environment(DATABASE_URL=postgres_url))).returncode == 0
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(variables(postgres_url), tmp_path / "serve.log"))
        port = await port_of(server)
        for _ in range(STUCK):
            stack.enter_context(closing(await stuck(port)))
        async with trio.open_nursery() as nursery:
            polite = [Opened(port) for _ in range(20)]
            for one in polite:
                nursery.start_soon(one.live)
            with trio.fail_after(DEADLINE_S):
                for one in polite:
                    await one.ready.wait()
                asked = time.monotonic()
                server.signal(signal.SIGTERM)
                await eventually(lambda: all(one.ended for one in polite), "those that read have ended")
                assert server.code is None, "those that do not read are given the time of the budget"
                assert await server.ended() == 0
        print(f"gone after {time.monotonic() - asked:.3f} s, of which {DRAIN_S:.0f} s are the budget")
        assert Counter(one.code for one in polite) == {1001: 20}
        assert "http.drain_ended_early" in events_of(server)
        assert not {"supervisor.drain_cut_short", "supervisor.actor_crashed"} & events_of(server)


def events_of(server: Served) -> set[str]:
    return {json.loads(line)["event"] for line in server.text.splitlines() if line.startswith("{")}
