"""Server-Sent Events: real commits, a real feed and hub, read by h11, and by an SSE client of another maker."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from random import Random

import h11
import httpx
import jwt
import pytest
import trio
import trio.testing
from front import DEADLINE_S, OURS, read_to_end
from story import ALICE, BOB, CAROL, batch, created, event, stream
from wire import assert_refused

from fluxora.actors.hub import Hub
from fluxora.config import AccessConfig, LimitConfig
from fluxora.protocol.api_keys import make

ALL = "/api/events/stream"
ONE = f"/api/streams/{stream(0)}/stream"
SECRET = "a shared secret of more than 32 bytes"
ADMIN_KEY, ADMIN_ENTRY = make("root", ["admin"], entropy=bytes(range(48)))
WRITER_KEY, WRITER_ENTRY = make("writer", ["streams:write"], entropy=bytes(range(1, 49)))


@pytest.fixture(params=["direct", "framework", "hosted"])
def carrier(request):
    """The listener, which serves these routes whatever carries the others, and another server."""
    return request.param


@pytest.fixture
async def server(start, store, cache, live):
    return await start(store=store, cache=cache, hub=live.hub)


@pytest.fixture
def commit(record, live):
    """Commit events of the contract, as one batch, and tell the feed as the recorder does."""

    async def committed(*events):
        live.feed.publish(await record(batch(*events)))

    return committed


class Listening:
    """An open stream, read by h11 and as HTML (9.2.6) says; `last_id` is what an EventSource comes back with.

    `message` gives the next event that has data; comments, and an id or a time without an event, are kept aside.
    """

    def __init__(self, transport: trio.SocketStream) -> None:
        self.headers = httpx.Headers()
        self.last_id = ""
        self.retry: int | None = None
        self.comments = 0
        self._transport = transport
        self._http = h11.Connection(h11.CLIENT)
        self._text = b""

    async def ask(self, url: str, headers: dict[str, str]) -> None:
        request = h11.Request(method="GET", target=url, headers=[("host", "x"), *headers.items()])
        await self._transport.send_all(self._http.send(request) + self._http.send(h11.EndOfMessage()))
        answer = await self._next()
        assert isinstance(answer, h11.Response)
        assert answer.status_code == 200
        self.headers = httpx.Headers(list(answer.headers))

    async def _next(self) -> h11.Event:
        with trio.fail_after(DEADLINE_S):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._transport.receive_some())
        return event

    async def _line(self) -> str | None:
        while b"\n" not in self._text:
            part = await self._next()
            if not isinstance(part, h11.Data):
                return None
            self._text += part.data
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    async def message(self) -> dict[str, str] | None:
        """None at the end of the stream."""
        found: dict[str, str] = {}
        while (line := await self._line()) is not None:
            if not line:
                self.last_id = found.get("id", self.last_id)
                if "data" in found:
                    return {"event": found.get("event", "message"), "id": self.last_id, "data": found["data"]}
                found = {}
                continue
            name, _, value = line.partition(":")
            if not name:
                self.comments += 1
            elif name == "retry":
                self.retry = int(value)
            else:
                assert name not in found, "one line each"
                found[name] = value.removeprefix(" ")
        return None

    async def positions(self, count: int) -> list[int]:
        messages = [await self.message() for _ in range(count)]
        return [int(message["id"]) for message in messages if message is not None]


@asynccontextmanager
async def listening(server, url=ALL, **headers):
    """A stream whose head has come; `headers` with _ for -."""
    async with await server.connect() as transport:
        client = Listening(transport)
        await client.ask(url, {name.replace("_", "-"): value for name, value in headers.items()})
        yield client


async def until(condition):
    with trio.fail_after(DEADLINE_S):
        while not condition():
            await trio.lowlevel.checkpoint()


# -- the answer --------------------------------------------------------------------------------------------------------


async def test_the_head_is_that_of_a_stream(server, commit):
    await commit(created(0, ledger=10))
    for url in (ALL, ONE):
        async with listening(server, url) as client:
            headers = client.headers
            assert headers["content-type"] == "text/event-stream"
            assert headers["cache-control"] == "no-store, no-transform"
            assert headers["x-accel-buffering"] == "no"
            assert headers["connection"] == "close"
            assert "content-length" not in headers
            assert headers["transfer-encoding"] == "chunked"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-request-id"]


async def test_head_has_the_headers_of_get(server, commit, live):
    await commit(created(0, ledger=10))
    for url in (ALL, ONE):
        async with listening(server, url) as client:
            answer = await server.request("HEAD", url)
            assert (answer.status_code, answer.content) == (200, b"")
            varying = ("date", "x-request-id")
            assert {k: v for k, v in answer.headers.items() if k not in varying} == {
                k: v for k, v in client.headers.items() if k not in varying
            }
    await until(lambda: not live.hub.status.subscribers)


async def test_who_speaks_http_1_0_or_asks_for_the_end_gets_no_chunks(server, commit, live, carrier):
    await commit(created(0, ledger=10))
    await until(lambda: live.hub.head == 1)
    for request in ("GET %s HTTP/1.0\r\n\r\n", "GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):
        async with await server.connect() as transport:
            await transport.send_all((request % f"{ALL}?after=0").encode())
            await until(lambda: live.hub.status.subscriptions == 1)
            server.backend.sockets.drain()
            head, _, body = (await read_to_end(transport)).partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        if carrier == "hosted" and b"HTTP/1.0" not in request.encode():
            continue  # Hypercorn sends chunks to whoever can read them
        assert b"transfer-encoding" not in head.lower()
        assert body.startswith(b"retry: 3000\nid: 0\n\nid: 1\nevent: stream.created\ndata: {")
        assert body.endswith(b"}\n\n")
        await until(lambda: not server.backend.sockets.streams)


async def test_limits_and_origins_hold_as_for_every_read(start, live, cache, store):
    limits = LimitConfig(anonymous_read=1)
    server = await start(store=store, cache=cache, hub=live.hub, limits=limits, cors_origins=("https://a.example",))
    async with listening(server, origin="https://a.example") as client:
        assert client.headers["access-control-allow-origin"] == "https://a.example"
        assert client.headers["x-ratelimit-remaining"] == "0"
    assert_refused(await server.get(ALL), 429, "RATE_LIMIT_EXCEEDED")


# -- events ------------------------------------------------------------------------------------------------------------


async def test_an_event_says_what_rest_says(server, commit):
    async with listening(server) as client:
        await commit(created(0, ledger=10), event("gl_pause", {"paused": True}, ledger=11))
        messages = [await client.message(), await client.message()]
    shown = (await server.get("/api/events")).json()["events"]
    assert [json.loads(message["data"]) for message in messages] == shown
    assert [message["event"] for message in messages] == ["stream.created", "contract.updated"]
    assert [message["id"] for message in messages] == ["1", "2"]
    assert client.retry == 3000


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", [1, 2, 3, 4, 5]),
        (f"?streamId={stream(0)}", [1, 4]),
        (f"?streamId={stream(7)}", []),
        (f"?sender={ALICE}", [1, 2, 4]),
        (f"?recipient={BOB}", [1, 4]),
        (f"?recipient={CAROL}", [2]),
        (f"?sender={CAROL}", [3]),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
async def test_filters_choose_what_comes(server, commit, query, wanted, resumed):
    hub = server.backend.hub
    events = (
        created(0, ledger=10),
        created(1, ledger=10, index=1, recipient=CAROL),
        created(2, ledger=10, index=2, sender=CAROL, recipient=ALICE),
        event("paused", {"stream_id": 0, "reason": "Operational"}, ledger=11),
        event("gl_pause", {"paused": True}, ledger=12),
    )
    if resumed:
        await commit(*events)
        query = f"{query}{'&' if query else '?'}after=0"
    async with listening(server, ALL + query) as client:
        if not resumed:
            await commit(*events)
        assert await client.positions(len(wanted)) == wanted
        await until(lambda: hub.head == 5 and not hub.status.catching_up)
        server.backend.sockets.drain()
        assert await client.message() is None, "nothing else was on its way"


async def test_one_stream_by_its_path(server, commit):
    await commit(created(0, ledger=10), created(1, ledger=10, index=1))
    async with listening(server, ONE) as client:
        await commit(event("cancelled", {"stream_id": 1}, ledger=11), event("cancelled", {"stream_id": 0}, ledger=12))
        assert await client.positions(1) == [4]
    async with listening(server, f"{ONE}?after=0") as client:
        assert await client.positions(2) == [1, 4]


async def test_a_stream_can_be_followed_before_it_is_there_by_its_filter(server, commit):
    async with listening(server, f"{ALL}?streamId={stream(0)}") as client:
        await commit(created(1, ledger=10), created(0, ledger=10, index=1))
        assert await client.positions(1) == [2]


# -- resuming ----------------------------------------------------------------------------------------------------------


async def test_both_ways_to_come_back_give_exactly_what_was_missed_and_then_what_comes(server, commit):
    async with listening(server) as client:
        await commit(*[created(nth, ledger=10, index=nth) for nth in range(3)])
        assert await client.positions(3) == [1, 2, 3]
    await commit(*[created(nth, ledger=11, index=nth) for nth in range(3, 10)])
    async with listening(server, last_event_id="3") as one, listening(server, f"{ALL}?after=3") as other:
        for client in (one, other):
            assert await client.positions(7) == list(range(4, 11))
        await commit(created(20, ledger=12))
        for client in (one, other):
            assert await client.positions(1) == [11]


async def test_the_header_counts_before_the_parameter_and_an_empty_one_does_not(server, commit):
    await commit(*[created(nth, ledger=10, index=nth) for nth in range(3)])
    async with listening(server, f"{ALL}?after=0", last_event_id="2") as client:
        assert await client.positions(1) == [3]
    async with listening(server, f"{ALL}?after=1", last_event_id="") as client:
        assert await client.positions(1) == [2]


async def test_who_leaves_before_the_first_event_has_a_place_to_come_back_to(server, commit, live):
    await commit(created(0, ledger=10))
    await until(lambda: live.hub.head == 1)
    async with listening(server) as client:
        server.backend.sockets.drain()
        assert await client.message() is None
    await commit(created(1, ledger=11))
    async with listening(server, last_event_id=client.last_id) as client:
        assert await client.positions(1) == [2]


@pytest.mark.parametrize("seed", range(3))
async def test_however_often_a_client_comes_back_it_gets_every_position_once(server, commit, store, seed):
    chance = Random(seed)
    received: list[int] = []
    sizes = [chance.randint(1, 5) for _ in range(30)]

    async def commit_all():
        for ledger, size in enumerate(sizes, 10):
            await commit(*[created(ledger * 10 + nth, ledger=ledger, index=nth) for nth in range(size)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit_all)
        last_id = "0"
        while len(received) < sum(sizes):
            async with listening(server, last_event_id=last_id) as client:
                received += await client.positions(min(chance.randint(0, 12), sum(sizes) - len(received)))
                last_id = client.last_id or last_id
    assert received == list(range(1, await store.position() + 1))


@pytest.mark.parametrize("how", ["header", "parameter"])
async def test_a_point_above_the_log_is_told_to_reload_and_the_stream_ends(server, commit, live, how):
    await commit(created(0, ledger=10))
    await until(lambda: live.hub.head == 1)
    by_header = how == "header"
    url = ALL if by_header else f"{ALL}?after=1000"
    async with listening(server, url, **({"last_event_id": "1000"} if by_header else {})) as client:
        message = await client.message()
        assert message["event"] == "reset"
        assert json.loads(message["data"])["position"] == "1"
        assert await client.message() is None
    await until(lambda: not server.backend.sockets.streams)
    assert server.backend.sockets.streams_ended == {4003: 1}
    assert 'fluxora_event_stream_closed_total{code="4003"} 1.0' in (await server.get("/metrics")).text


async def test_a_resume_that_fails_for_a_defect_ends_the_stream(server, monkeypatch):
    async def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(server.backend.hub, "resume", broken)
    async with listening(server, f"{ALL}?after=0") as client:
        assert await client.message() is None


async def test_a_client_that_leaves_while_it_catches_up_leaves_nothing_behind(server, monkeypatch, live):
    waiting, ended = trio.Event(), trio.Event()

    async def forever(*_):
        waiting.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    monkeypatch.setattr(server.backend.hub, "resume", forever)
    async with listening(server, f"{ALL}?after=0"):
        await waiting.wait()
    with trio.fail_after(DEADLINE_S):
        await ended.wait()
    await until(lambda: not server.backend.sockets.streams)
    assert live.hub.status.subscribers == 0


async def test_a_client_of_another_maker_comes_back_by_itself_and_misses_nothing(server, commit, nursery):
    sse = pytest.importorskip("requests_sse", reason="requests-sse is not installed")
    got, enough = [], trio.Event()

    def listen():
        url = f"http://127.0.0.1:{server.port}{ALL}?after=0"
        with sse.EventSource(url, timeout=DEADLINE_S, reconnection_time=timedelta(0)) as source:
            for message in source:
                if not message.data:
                    continue
                got.append((message.type, message.last_event_id, json.loads(message.data)["position"]))
                if len(got) == 3:
                    trio.from_thread.run_sync(server.backend.sockets.drain)
                elif len(got) == 5:
                    break
        trio.from_thread.run_sync(enough.set)

    await commit(*[created(nth, ledger=10, index=nth) for nth in range(3)])
    nursery.start_soon(trio.to_thread.run_sync, listen)
    await until(lambda: len(got) == 3)
    await commit(*[created(nth, ledger=11, index=nth) for nth in range(3, 5)])
    with trio.fail_after(DEADLINE_S):
        await enough.wait()
    assert got == [("stream.created", str(nth), str(nth)) for nth in range(1, 6)]


# -- its life ----------------------------------------------------------------------------------------------------------


async def test_comments_come_while_nothing_else_does_and_no_time_out_ends_it(start, store, cache, live, commit):
    server = await start(
        store=store,
        cache=cache,
        hub=live.hub,
        sse_comment_s=0.05,
        request_timeout_s=0.01,
        keep_alive_s=0.01,
        read_head_timeout_s=0.1,
    )
    async with trio.open_nursery() as nursery, listening(server) as client:

        async def then_commit():
            await until(lambda: client.comments >= 4)
            await commit(created(0, ledger=10))

        nursery.start_soon(then_commit)
        assert await client.positions(1) == [1]


@OURS
async def test_it_rests_without_a_task(server, live):
    async with listening(server):
        await until(lambda: live.hub.status.subscriptions == 1)
        (outlet,) = server.backend.sockets._open
        before = trio.lowlevel.current_statistics().tasks_living
        async with listening(server), listening(server):
            await until(lambda: live.hub.status.subscriptions == 3)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == before
        assert not outlet.ending


async def test_a_client_that_does_not_read_delays_nobody_and_is_cut_off(server, commit, live, carrier, monkeypatch):
    monkeypatch.setattr("fluxora.actors.lag.STUCK_S", 0.1)
    async with await server.connect() as stalled, listening(server) as client:
        await stalled.send_all(f"GET {ALL} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await until(lambda: live.hub.status.subscribers == 2)
        memo = "6d" * 50_000
        for seen in count(1):  # the reader beside it has a deadline of its own for each
            await commit(created(seen, ledger=9 + seen, memo=memo))
            assert await client.positions(1) == [seen]
            if live.hub.status.dropped:
                break
        assert live.hub.status.dropped == 1
        assert live.hub.status.subscribers == 1
        if carrier == "hosted":  # Hypercorn holds on to it, and it counts until it is gone
            await trio.aclose_forcefully(stalled)
        await until(lambda: server.backend.sockets.streams == 1)
        assert server.backend.sockets.streams_ended == {4001: 1}


async def test_a_stop_ends_what_is_open_behind_what_was_committed(server, commit, live):
    async with listening(server) as client:
        await commit(created(0, ledger=10))
        await until(lambda: live.hub.head == 1)
        server.backend.stopping.set()
        assert await client.positions(1) == [1]
        assert await client.message() is None


@OURS
async def test_a_client_with_much_to_say_is_sent_away(server):
    async with await server.connect() as stream_:
        head = f"GET {ALL} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        await stream_.send_all(head + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 10)
        await until(lambda: server.backend.sockets.streams == 1)
        with trio.fail_after(DEADLINE_S):
            await stream_.send_all(b"x" * 66_000)
        received = await read_to_end(stream_)
    assert received.count(b"HTTP/1.1 ") == 1, "what is pipelined behind a stream has no answer"
    await until(lambda: not server.backend.sockets.streams)


async def test_the_end_of_a_token_ends_the_stream(start, store, cache, live):
    now = 1_800_000_000.0
    server = await start(
        store=store,
        cache=cache,
        hub=live.hub,
        access=AccessConfig(jwt_secret=SECRET),
        clock=lambda: now,
        sse_comment_s=0.05,
    )
    token = jwt.encode({"exp": int(now) + 60, "sub": "bob", "scope": "streams:read"}, SECRET, algorithm="HS256")
    async with listening(server, authorization=f"Bearer {token}") as client:
        await until(lambda: server.backend.sockets.streams == 1)
        now += 61
        assert await client.message() is None
    await until(lambda: not server.backend.sockets.streams)
    assert server.backend.sockets.streams_ended == {4401: 1}


async def test_operators_send_it_away(start, store, cache, live):
    server = await start(
        store=store, cache=cache, hub=live.hub, access=AccessConfig(api_keys=(ADMIN_ENTRY,), jwt_secret=SECRET)
    )
    async with listening(server, f"{ALL}?streamId={stream(0)}") as client, listening(server):
        await until(lambda: server.backend.sockets.streams == 2)
        assert server.backend.sockets.count == 0, "they are no WebSockets"
        answer = await server.request(
            "POST", "/api/admin/ws/disconnect", json={"streamId": stream(0)}, headers={"x-api-key": ADMIN_KEY}
        )
        assert answer.json() == {"disconnected": 1}
        assert await client.message() is None
        await until(lambda: server.backend.sockets.streams == 1)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "last_id", "details"),
    [
        ("?after=x", None, [("after", "INVALID_FORMAT")]),
        ("?after=9223372036854775808", None, [("after", "OUT_OF_RANGE")]),
        ("", "x", [("Last-Event-ID", "INVALID_FORMAT")]),
        ("", "-1", [("Last-Event-ID", "INVALID_FORMAT")]),
        ("", "9223372036854775808", [("Last-Event-ID", "OUT_OF_RANGE")]),
        (
            "?after=x&more=1",
            "y",
            [("after", "INVALID_FORMAT"), ("more", "UNKNOWN_PARAMETER"), ("Last-Event-ID", "INVALID_FORMAT")],
        ),
        ("?sender=GABC", None, [("sender", "INVALID_ADDRESS")]),
        ("?streamId=7", None, [("streamId", "INVALID_FORMAT")]),
        (f"?sender={ALICE}&recipient={BOB}", None, [("recipient", "INVALID_VALUE")]),
        (f"?streamId={stream(0)}&sender={ALICE}", None, [("sender", "INVALID_VALUE")]),
        (f"?sender={ALICE}&sender={BOB}", None, [("sender", "REPEATED_PARAMETER")]),
    ],
)
async def test_what_is_wrong_is_named(server, query, last_id, details):
    answer = await server.get(ALL + query, headers={} if last_id is None else {"last-event-id": last_id})
    assert_refused(answer, 400, "VALIDATION_ERROR")
    assert [(detail["field"], detail["code"]) for detail in answer.json()["details"]] == details


async def test_one_stream_takes_no_filters_and_is_known(server):
    assert_refused(await server.get(f"{ONE}?sender={ALICE}"), 400, "VALIDATION_ERROR")
    for name in (stream(0), "stream-x", "x", "%00"):
        assert_refused(await server.get(f"/api/streams/{name}/stream"), 404, "NOT_FOUND")
        assert_refused(await server.request("POST", f"/api/streams/{name}/stream"), 405, "METHOD_NOT_ALLOWED")


async def test_who_may_not_listen_is_refused(start):
    server = await start(hub=Hub(None, None), access=AccessConfig(api_keys=(WRITER_ENTRY,), jwt_secret=SECRET))
    assert_refused(await server.get(ALL, headers={"authorization": "Bearer x"}), 401, "UNAUTHORIZED")
    assert_refused(await server.get(ALL, headers={"x-api-key": "x"}), 401, "UNAUTHORIZED")
    assert_refused(await server.get(ALL, headers={"x-api-key": WRITER_KEY}), 403, "FORBIDDEN")
    assert_refused(await server.get(ALL, headers={"accept": "application/json"}), 406, "NOT_ACCEPTABLE")
    assert_refused(await server.get(f"{ALL}?token=x"), 400, "VALIDATION_ERROR")


async def test_a_body_in_chunks_is_refused(server):
    async def body():
        yield b"x"

    async with server.client() as client:
        answer = await client.request("GET", ALL, content=body())
    assert_refused(answer, 400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"max_websockets_per_client": 1}, 429, "RATE_LIMIT_EXCEEDED"),
        ({"max_websockets": 1}, 503, "SERVICE_UNAVAILABLE"),
    ],
)
async def test_only_so_many_may_be_open(start, options, status, code):
    server = await start(hub=Hub(None, None), **options)
    async with listening(server):
        refused = await server.get(ALL)
        assert_refused(refused, status, code)
        assert refused.headers["retry-after"]
    await until(lambda: not server.backend.sockets.streams)
    async with listening(server):
        pass
