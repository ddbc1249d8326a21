"""Events on a WebSocket: real commits, a real feed and hub, and a client that is none of ours (trio-websocket)."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from itertools import count
from random import Random

import pytest
import trio
from front import DEADLINE_S
from socket_client import BROADCAST, connect, frame
from story import ALICE, BOB, CAROL, batch, created, event, stream
from trio_websocket import ConnectionClosed, open_websocket_url

from fluxora.actors.lag import STUCK_S
from fluxora.protocol.messages import timestamp_text
from fluxora.storage.records import EventQuery

TEXT = 0x1


@pytest.fixture(params=["direct", "hosted"])
def carrier(request):
    """Our own, and another server: the framework under our listener carries no WebSocket."""
    return request.param


@pytest.fixture
async def server(start, store, cache, live):
    return await start(store=store, cache=cache, hub=live.hub)


@pytest.fixture
def commit(record, live):
    """Commit events of the contract, as one batch, and tell the feed as the recorder does."""

    async def committed(*events):
        appended = await record(batch(*events))
        live.feed.publish(appended)
        return appended.events

    return committed


@pytest.fixture
async def told(live):
    """Wait until the hub has told of everything up to a position."""

    async def until(position: int) -> None:
        with trio.fail_after(DEADLINE_S):
            while live.hub.head < position:
                await trio.lowlevel.checkpoint()

    return until


@asynccontextmanager
async def opened(server, **options):
    """A connection of trio-websocket that reads and writes JSON.

    It has room for what the test leaves unread: that client cannot close while a message waits for its place.
    """
    url = f"ws://127.0.0.1:{server.port}/ws/streams"
    async with open_websocket_url(url, message_queue_size=10_000, **options) as socket:
        try:
            yield Spoken(socket)
        finally:
            await trio.aclose_forcefully(socket._stream)  # which it leaves open where the server closes first


class Spoken:
    def __init__(self, socket):
        self.socket = socket

    async def send(self, message):
        await self.socket.send_message(json.dumps(message))

    async def message(self):
        with trio.fail_after(DEADLINE_S):
            return json.loads(await self.socket.get_message())

    async def messages(self, count):
        return [await self.message() for _ in range(count)]

    async def ask(self, message):
        await self.send(message)
        return await self.message()

    async def follow(self, **selector):
        answer = await self.ask({"type": "subscribe", "ref": "f", **selector})
        assert answer["type"] == "ack", answer
        return answer

    async def silent(self):
        """Nothing is on its way: the answer to a ping comes next."""
        assert await self.ask({"type": "ping"}) == {"type": "pong"}


def held(hub, monkeypatch):
    """Nobody catches up until the event is set."""
    go, catch_up = trio.Event(), hub.catch_up

    async def later(asked):
        await go.wait()
        return await catch_up(asked)

    monkeypatch.setattr(hub, "catch_up", later)
    return go


def positions(messages):
    return [int(message["position"]) for message in messages]


async def test_an_update_says_what_rest_says(server, commit, store):
    async with opened(server) as client:
        await client.follow(streamId=stream(0))
        await commit(created(0, ledger=10))
        update = await client.message()
    (stored,) = await store.events(EventQuery(after=0, limit=10))
    shown = (await server.get("/api/events")).json()["events"][0]
    assert update == {
        "type": "stream_update",
        "streamId": stream(0),
        "eventId": stored.event_id,
        "payload": shown["payload"],
        "event": "stream.created",
        "action": "created",
        "position": "1",
        "ledger": 10,
        "timestamp": timestamp_text(stored.timestamp_ms),
    }
    assert {name: update[name] for name in shown if name in update} == {
        name: value for name, value in shown.items() if name in update
    }


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ({"streamId": "*"}, [1, 2, 3, 4, 5]),
        ({"streamId": stream(0)}, [1, 4]),
        ({"streamId": stream(7)}, []),
        ({"sender": ALICE}, [1, 2, 4]),
        ({"recipient": BOB}, [1, 4]),
        ({"recipient": CAROL}, [2]),
        ({"sender": CAROL}, [3]),
    ],
)
async def test_subscriptions_choose_what_comes(server, commit, selector, wanted):
    async with opened(server) as client:
        await client.follow(**selector)
        await client.follow(streamId=stream(9))  # the end mark
        await commit(
            created(0, ledger=10),
            created(1, ledger=10, index=1, recipient=CAROL),
            created(2, ledger=10, index=2, sender=CAROL, recipient=ALICE),
            event("paused", {"stream_id": 0, "reason": "Operational"}, ledger=11),
            event("gl_pause", {"paused": True}, ledger=12),
            created(9, ledger=13, sender=BOB, recipient=CAROL),
        )
        got = []
        while True:
            position = int((await client.message())["position"])
            if position == 6:
                break
            got.append(position)
        expected = [p for p in wanted if p != 6]
        assert got == expected


async def test_an_event_that_matches_twice_comes_once(server, commit):
    async with opened(server) as client:
        for selector in ({"streamId": "*"}, {"streamId": stream(0)}, {"sender": ALICE}, {"recipient": BOB}):
            await client.follow(**selector)
        await commit(created(0, ledger=10), event("cancelled", {"stream_id": 0}, ledger=11))
        assert positions(await client.messages(2)) == [1, 2]
        await client.silent()


async def test_what_is_given_up_comes_no_more(server, commit, told):
    async with opened(server) as client:
        await client.follow(streamId=stream(0))
        await commit(created(0, ledger=10))
        await client.message()
        assert (await client.ask({"type": "unsubscribe", "streamId": stream(0), "ref": "u"}))["position"] == "1"
        await commit(event("cancelled", {"stream_id": 0}, ledger=11))
        await told(2)
        await client.silent()


async def test_the_barrier_an_event_committed_behind_the_acknowledgement_is_delivered(server, commit, nursery):
    """Subscribers come while events are committed as fast as they can be: each misses nothing above its ack."""
    total, ledger, got = 40, iter(range(10, 10_000)), {}

    async def subscriber(nth: int) -> None:
        async with opened(server) as client:
            position = int((await client.follow(streamId="*"))["position"])
            wanted = list(range(position + 1, total + 1))
            got[nth] = (wanted, positions(await client.messages(len(wanted))))

    async with trio.open_nursery() as crowd:
        for nth in range(total):
            await commit(created(nth, ledger=next(ledger)))
            if nth % 4 == 0:
                crowd.start_soon(subscriber, nth)
    assert len(got) == total // 4
    for wanted, received in got.values():
        assert received == wanted


async def test_a_resume_gives_exactly_what_was_missed_and_then_what_comes(server, commit):
    async with opened(server) as client:
        await client.follow(streamId="*")
        await commit(*[created(nth, ledger=10, index=nth) for nth in range(3)])
        last = (await client.messages(3))[-1]["position"]
    await commit(*[created(nth, ledger=11, index=nth) for nth in range(3, 10)])
    async with opened(server) as client:
        await client.send({"type": "subscribe", "streamId": "*", "after": last, "ref": "r"})
        assert positions(await client.messages(7)) == list(range(4, 11))
        assert await client.message() == {"type": "ack", "ref": "r", "position": "10", "recovered": True}
        await commit(created(20, ledger=12))
        assert positions(await client.messages(1)) == [11]
        await client.silent()


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [({"streamId": stream(1)}, [2, 5]), ({"recipient": CAROL}, [2, 3, 5]), ({"sender": BOB}, [])],
)
async def test_a_resume_gives_what_matches_and_no_more(server, commit, told, selector, wanted):
    await commit(
        created(0, ledger=10),
        created(1, ledger=10, index=1, recipient=CAROL),
        created(2, ledger=10, index=2, recipient=CAROL),
        event("cancelled", {"stream_id": 0}, ledger=11),
        event("cancelled", {"stream_id": 1}, ledger=12),
    )
    async with opened(server) as client:
        await client.send({"type": "subscribe", **selector, "after": "0", "ref": "r"})
        assert positions(await client.messages(len(wanted))) == wanted
        assert (await client.message())["recovered"] is True


@pytest.mark.parametrize("seed", range(5))
async def test_however_often_a_client_reconnects_it_gets_every_position_once(server, commit, store, seed):
    """It leaves after some messages, while others commit, and comes back behind the last one that it had."""
    chance = Random(seed)
    before = await store.position()
    received: list[int] = []
    after = before
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_commit_all, commit, [chance.randint(1, 5) for _ in range(30)])
        for leave_after in [chance.randint(0, 12) for _ in range(12)]:
            async with opened(server) as client:
                await client.send({"type": "subscribe", "streamId": "*", "after": str(after), "ref": "r"})
                for _ in range(leave_after):
                    message = await client.message()
                    if message["type"] == "ack":
                        break
                    received.append(int(message["position"]))
                    after = received[-1]
    end = await store.position()
    async with opened(server) as client:
        await client.send({"type": "subscribe", "streamId": "*", "after": str(after), "ref": "r"})
        while (message := await client.message())["type"] != "ack":
            received.append(int(message["position"]))
        assert int(message["position"]) == end
        await client.silent()
    assert received == list(range(before + 1, end + 1))


async def _commit_all(commit, sizes):
    for ledger, size in enumerate(sizes, 10):
        await commit(*[created(ledger * 10 + nth, ledger=ledger, index=nth) for nth in range(size)])


async def test_a_resume_point_above_the_log_is_told_to_reload(server, commit, told):
    await commit(created(0, ledger=10))
    await told(1)
    async with opened(server) as client:
        answer = await client.ask({"type": "subscribe", "streamId": "*", "after": "1000", "ref": "r"})
        assert (answer["type"], answer["position"]) == ("reset", "1")
        assert answer["reason"]
        await commit(created(1, ledger=11))
        await told(2)
        await client.silent()  # it follows nothing
        assert (await client.follow(streamId="*"))["position"] == "2"


async def test_broadcast_clients_get_every_event_as_the_first_protocol_had_it(server, commit):
    async with opened(server, subprotocols=[BROADCAST]) as client:
        assert client.socket.subprotocol == BROADCAST
        await commit(created(0, ledger=10), event("gl_pause", {"paused": True}, ledger=11))
        first, second = await client.messages(2)
        shown = (await server.get("/api/events")).json()["events"]
    assert first == {name: shown[0][name] for name in ("event", "streamId", "payload", "timestamp")}
    assert (second["event"], second["streamId"]) == ("contract.updated", None)


async def test_a_client_that_does_not_read_delays_nobody_and_is_ended_with_4001(server, commit, live):
    async with await connect(server) as stalled, opened(server) as client:
        await stalled.ask({"type": "subscribe", "streamId": "*", "ref": "r"})
        await client.follow(streamId="*")
        memo = "6d" * 50_000
        with trio.fail_after(STUCK_S + 2 * DEADLINE_S):
            for seen in count(1):  # a fast machine commits thousands before it is taken for stuck
                await commit(created(seen, ledger=9 + seen, memo=memo))
                assert positions(await client.messages(1)) == [seen]
                if server.backend.sockets.closed or live.hub.status.dropped:
                    break
        assert live.hub.status.dropped == 1
        event = None
        while getattr(event, "code", None) is None:
            event = await stalled.event()
        assert event.code == 4001
    assert live.hub.status.subscribers <= 1


async def test_the_server_closes_as_clients_expect(server):
    async with opened(server) as client:
        server.backend.stopping.set()
        with trio.fail_after(DEADLINE_S), pytest.raises(ConnectionClosed) as raised:
            await client.socket.get_message()
        assert (raised.value.reason.code, raised.value.reason.reason) == (1001, "server going away")


async def test_a_resume_that_fails_for_a_defect_ends_the_connection(server, monkeypatch):
    async def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(server.backend.hub, "catch_up", broken)
    async with await connect(server) as client:
        await client.send({"type": "subscribe", "streamId": "*", "after": "0"})
        assert await client.closed() == 4003


async def test_a_client_that_leaves_while_it_catches_up_leaves_nothing_behind(server, monkeypatch, live):
    waiting = trio.Event()
    ended = trio.Event()

    async def forever(*_):
        waiting.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    monkeypatch.setattr(server.backend.hub, "catch_up", forever)
    async with await connect(server) as client:
        await client.send({"type": "subscribe", "streamId": "*", "after": "0"})
        with trio.fail_after(DEADLINE_S):
            await waiting.wait()
            await trio.aclose_forcefully(client.stream)
            await ended.wait()
    assert live.hub.status.subscribers == 0


async def test_what_waits_to_be_resumed_has_no_task_and_is_resumed_in_its_turn(server, commit, told, monkeypatch):
    monkeypatch.setattr("fluxora.http.session.WINDOW_S", 0.0)
    for number in range(3):
        await commit(created(number, ledger=10 + number))
    await told(3)
    hub = server.backend.hub
    go = held(hub, monkeypatch)
    wanted = [{"streamId": "*"}, *({"streamId": f"stream-{number}"} for number in range(199))]
    async with opened(server) as client:
        before = trio.lowlevel.current_statistics().tasks_living
        for nth, one in enumerate(wanted):
            await client.send({"type": "subscribe", "after": "0", "ref": str(nth), **one})
        with trio.fail_after(DEADLINE_S):
            while hub.status.catching_up < len(wanted):
                await trio.lowlevel.checkpoint()
        assert trio.lowlevel.current_statistics().tasks_living <= before + 2
        for gone in (5, 199):
            await client.send({"type": "unsubscribe", **wanted[gone], "ref": f"not {gone}"})
            assert (await client.message())["ref"] == f"not {gone}"
        assert hub.status.catching_up == len(wanted) - 2
        go.set()
        messages = await client.messages(3 + len(wanted) - 2)
        assert positions(messages[:3]) == [1, 2, 3]
        assert [one["ref"] for one in messages[3:]] == [str(nth) for nth in range(200) if nth not in {5, 199}]
        assert hub.status.subscriptions == len(wanted) - 2


async def test_what_has_ended_while_history_is_told_counts_until_it_has_been(server, commit, told, monkeypatch):
    """Or nobody could remember what not to tell twice."""
    monkeypatch.setattr("fluxora.http.session.MOST_SUBSCRIPTIONS", 2)
    await commit(created(0, ledger=10))
    await told(1)
    hub = server.backend.hub
    go = held(hub, monkeypatch)
    one, other = {"streamId": "*"}, {"streamId": stream(1)}
    async with opened(server) as client:
        await client.send({"type": "subscribe", **other, "after": "0", "ref": "history"})
        for number in range(1, 3):
            await client.ask({"type": "subscribe", **one, "ref": "r"})
            await commit(created(number, ledger=10 + number))
            assert positions(await client.messages(1)) == [number + 1]
            await client.ask({"type": "unsubscribe", **one, "ref": "r"})
        refused = await client.ask({"type": "subscribe", **one, "ref": "r"})
        assert (refused["type"], refused["code"], refused["ref"]) == ("error", "SUBSCRIPTION_LIMIT", "r")
        go.set()
        assert (await client.message())["ref"] == "history"
        assert (await client.ask({"type": "subscribe", **one, "ref": "r"}))["type"] == "ack"


async def test_what_is_given_up_in_the_breath_in_which_it_was_asked_for_is_not_followed(server, commit, told):
    await commit(created(0, ledger=10))
    await told(1)
    async with await connect(server) as client:
        wanted = [
            {"type": "subscribe", "streamId": "*", "after": "0", "ref": "s"},
            {"type": "unsubscribe", "streamId": "*", "ref": "u"},
            {"type": "ping"},
        ]
        await client.raw(*(frame(TEXT, json.dumps(message).encode()) for message in wanted))
        answers = await client.messages(2)
        while answers[-1] != {"type": "pong"}:
            answers.append(await client.message())  # it may have been told of what came before it gave it up
        await commit(created(1, ledger=11))
        await told(2)
        assert await client.ask({"type": "ping"}) == {"type": "pong"}
        assert server.backend.hub.status.subscriptions == 0
        (socket,) = server.backend.sockets._open
        assert not socket.follows


async def test_what_is_asked_for_again_is_followed(server, commit, told):
    await commit(created(0, ledger=10))
    await told(1)
    async with await connect(server) as client:
        wanted = [
            {"type": "subscribe", "streamId": "*", "after": "0", "ref": "first"},
            {"type": "unsubscribe", "streamId": "*", "ref": "u"},
            {"type": "subscribe", "streamId": "*", "after": "0", "ref": "second"},
        ]
        await client.raw(*(frame(TEXT, json.dumps(message).encode()) for message in wanted))
        answers = []
        while not answers or answers[-1].get("ref") != "second":
            answers.append(await client.message())
        refs = [answer.get("ref") for answer in answers]
        assert "first" not in refs[refs.index("u") :]
        assert positions([answer for answer in answers if answer["type"] == "stream_update"])[-1] == 1
        await commit(created(1, ledger=11))
        assert (await client.message())["position"] == "2"


async def test_a_resume_that_fails_takes_no_other_subscription_to_the_same_with_it(server, commit, told):
    await commit(created(0, ledger=10))
    await told(1)
    async with await connect(server) as client:
        wanted = [
            {"type": "subscribe", "streamId": "*", "after": "7"},  # above the log
            {"type": "subscribe", "streamId": "*", "ref": "live"},
        ]
        await client.raw(*(frame(TEXT, json.dumps(message).encode()) for message in wanted))
        answers = await client.messages(2)
        assert {answer["type"] for answer in answers} == {"ack", "reset"}
        (socket,) = server.backend.sockets._open
        assert len(socket.follows) == server.backend.hub.status.subscriptions == 1
        await commit(created(1, ledger=11))
        assert (await client.message())["position"] == "2"


async def test_what_is_only_being_caught_up_with_counts_against_the_limit(server, commit, told, monkeypatch):
    monkeypatch.setattr("fluxora.http.session.MOST_SUBSCRIPTIONS", 3)
    await commit(created(0, ledger=10))
    await told(1)
    async with await connect(server) as client:
        for nth in range(2):
            await client.ask({"type": "subscribe", "streamId": f"stream-{nth}", "ref": "live"})
        wanted = [
            {"type": "subscribe", "streamId": f"stream-{nth}", "after": "0", "ref": str(nth)} for nth in range(2, 5)
        ]
        await client.raw(*(frame(TEXT, json.dumps(message).encode()) for message in wanted))
        answers = await client.messages(3)
        assert sorted(answer.get("code", "") for answer in answers) == ["", *2 * ["SUBSCRIPTION_LIMIT"]]
        assert server.backend.hub.status.subscriptions == 3
