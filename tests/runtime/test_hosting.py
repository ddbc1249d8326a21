"""The application under a server of the embedder's own: Hypercorn with TLS, HTTP/2 and WebSockets, over one runtime."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trustme
from hypercorn.config import Config as Hypercorn
from hypercorn.trio import serve
from in_process import config
from structlog.testing import capture_logs
from trio_websocket import ConnectionClosed, open_websocket_url
from truth import Books, caught_up

import fluxora
from fluxora.localnet import Network, Script, account, open_localnet

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 47
DEADLINE_S = 20.0
JSON = {"content-type": "application/json"}
NEW = {
    "sender": account(SEED, "alice"),
    "recipient": account(SEED, "bob"),
    "depositAmount": "100.0000000",
    "ratePerSecond": "0.5000000",
}


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """For one client: each sets the protocols that it speaks."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> Hypercorn:
    """A server's settings, with a certificate for localhost."""
    certificate, chosen = authority.issue_cert("localhost"), Hypercorn()
    chosen.bind, chosen.errorlog, chosen.include_server_header = ["127.0.0.1:0"], None, False
    chosen.certfile, chosen.keyfile = str(tmp_path / "server.pem"), str(tmp_path / "server.key")
    certificate.cert_chain_pems[0].write_to_path(chosen.certfile)
    certificate.private_key_pem.write_to_path(chosen.keyfile)
    return chosen


def unheard(net: Network, url: str) -> fluxora.Config:
    """A runtime without a port of its own."""
    here = config(net, url)
    return replace(here, http=replace(here.http, listen=False))


@asynccontextmanager
async def hosted(rt: fluxora.Runtime, settings: Hypercorn) -> AsyncIterator[str]:
    """The application under Hypercorn: its URL. The runtime's stop ends it."""
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(partial(serve, rt.app, settings))
        yield "https://localhost:" + bound.rpartition(":")[2]
        await trio.sleep_forever()  # until the runtime has stopped


@asynccontextmanager
async def http2(url: str, authority: trustme.CA) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, http2=True, verify=trusting(authority), timeout=DEADLINE_S) as client:
        yield client


async def positions(lines: AsyncIterator[str], count: int) -> list[int]:
    """Of the next events of an event stream."""
    got: list[int] = []
    with trio.fail_after(DEADLINE_S):
        while len(got) < count:
            name, _, value = (await anext(lines)).partition(": ")
            if name == "data":
                got.append(int(json.loads(value)["position"]))
    return got


async def body(text: bytes, parts: int = 1) -> AsyncIterator[bytes]:
    """A body whose length nobody is told."""
    for _ in range(parts):
        yield text


async def test_everything_is_served_over_tls_and_the_stop_is_told_to_everyone(
    postgres_url: str, books_of: OpenBooks, tls: Hypercorn, authority: trustme.CA
) -> None:
    books = await books_of(postgres_url)
    told: dict[str, Any] = {}
    with capture_logs() as lines:
        async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=3)) as net:
            await net.close_ledgers(10)
            async with (
                fluxora.open_runtime(unheard(net, postgres_url)) as rt,
                hosted(rt, tls) as url,
                http2(url, authority) as client,
                client.stream("GET", "/api/events/stream?after=0") as events,
                open_websocket_url(
                    url.replace("https", "wss") + "/ws/streams", ssl_context=trusting(authority)
                ) as socket,
            ):
                assert (events.status_code, events.http_version) == (200, "HTTP/2")
                await caught_up(books, net)
                head, following = await books.position(), events.aiter_lines()
                assert await positions(following, head) == list(range(1, head + 1))
                await socket.send_message(json.dumps({"type": "subscribe", "streamId": "*", "ref": "r"}))
                assert json.loads(await socket.get_message())["position"] == str(head)

                made = await client.post("/api/streams", content=body(json.dumps(NEW).encode()), headers=JSON)
                assert (made.status_code, made.http_version) == (201, "HTTP/2")
                assert "connection" not in made.headers
                assert len(made.headers.get_list("date")) == 1
                assert made.json()["id"] == json.loads(await socket.get_message())["streamId"]
                assert await positions(following, 1) == [head + 1]
                shown = (await client.get("/health")).json()
                assert shown["wsConnections"] == 1

                rt.stop()
                with trio.fail_after(DEADLINE_S):
                    with pytest.raises(ConnectionClosed) as closed:
                        await socket.get_message()
                    told["code"] = closed.value.reason.code
                    told["rest"] = [line async for line in following if line and not line.startswith(":")]
                await trio.aclose_forcefully(socket._stream)
    assert told == {"code": 1001, "rest": []}
    assert [line for line in lines if line["log_level"] in {"error", "critical", "warning"}] == []


async def test_a_runtime_without_a_port_says_so(postgres_url: str, books_of: OpenBooks) -> None:
    async with open_localnet(seed=SEED) as net, fluxora.open_runtime(unheard(net, postgres_url)) as rt:
        for ask in (lambda: rt.url, lambda: rt.port):
            with pytest.raises(fluxora.errors.ConfigError, match=r"HttpConfig\.listen is False"):
                ask()
        assert rt.health().status in {"ok", "degraded"}


async def test_one_runtime_may_be_heard_on_both(postgres_url: str, tls: Hypercorn, authority: trustme.CA) -> None:
    """The port of its own and another server's, with one set of live connections."""
    async with (
        open_localnet(seed=SEED) as net,
        fluxora.open_runtime(config(net, postgres_url)) as rt,
        hosted(rt, tls) as url,
        http2(url, authority) as client,
        open_websocket_url(url.replace("https", "wss") + "/ws/streams", ssl_context=trusting(authority)) as theirs,
        open_websocket_url(rt.url.replace("http", "ws") + "/ws/streams") as ours,
    ):
        assert (await client.get("/health")).json()["wsConnections"] == 2
        rt.stop()
        for socket in (theirs, ours):
            with trio.fail_after(DEADLINE_S), pytest.raises(ConnectionClosed) as closed:
                await socket.get_message()
            assert closed.value.reason.code == 1001
            await trio.aclose_forcefully(socket._stream)
