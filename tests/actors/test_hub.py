"""The hub: whatever happens in whatever order, nothing that was promised is lost, told twice, or out of order."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hub_world import PATIENCE_S, PEOPLE, SELECTORS, STREAMS, Log, Reader, World
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxora.actors.hub import ResumeLost
from fluxora.errors import InvariantError
from fluxora.protocol.sockets import ALL, Selector

WRITES = ["create", "update", "update", "update", "transfer", "revert", "remove", "contract"]
ACTS = ["subscribe", "subscribe", "unsubscribe", "resume", "resume", "resume", "resume"]
OTHERS = [
    "grow",
    "turn",
    "turn",
    "turn",
    "turn",
    "stall",
    "read",
    "go",
    "leave",
    "connect",
    "away",
    "crash",
    "announce",
]
NUMBER = st.integers(0, 60)
STEPS = st.lists(
    st.tuples(st.sampled_from([*WRITES, *ACTS, *ACTS, *OTHERS]), NUMBER, NUMBER, NUMBER), min_size=5, max_size=60
)
EARLY = st.lists(st.tuples(st.sampled_from(WRITES), NUMBER), max_size=12)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn for the others after every subscriber and every other event, pages of three and pieces of two."""
    for where, name, value in (
        ("hub", "FAIR_EVERY", 1),
        ("hub", "BATCH_EVENTS", 3),
        ("catch_up", "FAIR_EVERY", 2),
        ("catch_up", "PAGE", 3),
        ("catch_up", "PIECE_BYTES", 300),
        ("parties", "_PAGE", 3),
        ("hub", "_RETRY_S", 0),
    ):
        monkeypatch.setattr(f"fluxora.actors.{where}.{name}", value)


@given(early=EARLY, steps=STEPS)
@settings(max_examples=500, deadline=None)
async def test_nothing_is_lost_or_doubled_or_out_of_order(
    early: list[tuple[str, int]], steps: list[tuple[str, int, int, int]]
) -> None:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            await world.begin(early)
            world.connect(0)
            world.connect(1)
            for what, first, second, third in steps:
                await act(world, what, first, second, third)
            await world.finish()
            nursery.cancel_scope.cancel()
    world.judge()


async def act(world: World, what: str, first: int, second: int, third: int) -> None:
    here = [reader for reader in world.readers if not reader.dropped]
    if what in WRITES:
        for number in range(1 + second % 3):
            world.log.write(what, first + number)
        if third % 2:
            world.log.grow()
    elif what == "grow":
        world.log.grow()
    elif what == "turn":
        for _ in range(1 + first % 4):
            await trio.lowlevel.checkpoint()
    elif what == "connect":
        world.connect(first)
    elif what == "away":
        world.log.away = first % 2 == 0
    elif what == "crash":
        await world.crash()
    elif what == "announce":
        world.nursery.start_soon(world.hub.announce, "service.degraded", "database", 0)
    elif here:
        act_for(world, here[first % len(here)], what, SELECTORS[second % len(SELECTORS)], third)


def act_for(world: World, reader: Reader, what: str, selector: Selector, number: int) -> None:
    if what == "subscribe":
        world.subscribe(reader, selector)
    elif what == "unsubscribe":
        world.unsubscribe(reader, selector)
    elif what == "resume":
        world.resume(reader, selector, number % (len(world.log.events) + 1))
    elif what == "stall":
        reader.stall(stalled=True)
    elif what == "read":
        reader.stall(stalled=False)
    elif what == "go":
        reader.go()
    else:
        world.leave(reader)


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    made = World(nursery)
    await made.begin([("create", number) for number in range(6)])
    made.connect(0)
    return made


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_every_protocol_is_told_in_its_own_form(world: World) -> None:
    v2, sse, first = (world.joined(Reader(protocol)) for protocol in ("v2", "sse", "broadcast"))
    for reader in (v2, sse, first):
        world.hub.subscribe(reader, ALL)
    world.log.write("update", 1)
    world.log.write("contract", 0)
    world.log.grow()
    await settled()
    assert v2.told == sse.told == [7, 8]
    assert [one["event"] for one in first.notices] == ["stream.updated"] * 2
    assert [one["streamId"] for one in first.notices] == ["s1", None]
    await world.hub.announce("service.degraded", "database", 0)
    assert [one.get("type") or one["event"] for one in (v2.notices[-1], sse.notices[-1], first.notices[-1])] == [
        "service.degraded"
    ] * 3


async def test_one_offer_for_each_subscriber_of_a_batch_and_one_piece_for_all_alike(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxora.actors.hub.BATCH_EVENTS", 100)
    pieces: list[tuple[Reader, bytes]] = []
    readers = [world.joined(Reader("v2")) for _ in range(4)]
    for reader in readers:
        monkeypatch.setattr(reader, "offer", lambda data, reader=reader: pieces.append((reader, data)) or True)
        for selector in (ALL, Selector("stream", "s1"), Selector("sender", PEOPLE[0])):
            world.hub.subscribe(reader, selector)
    await world.hub.publish([world.log.write("update", number) for number in range(9)])
    assert [reader for reader, _ in pieces] == sorted(readers, key=[reader for reader, _ in pieces].index)
    assert len(pieces) == 4
    assert len({id(data) for _, data in pieces}) == 1


async def test_an_event_is_framed_once_for_a_protocol_and_only_if_somebody_follows_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    framed: list[int] = []
    from fluxora.actors.audience import FRAMED

    frame = FRAMED["v2"]
    monkeypatch.setitem(FRAMED, "v2", lambda event: framed.append(event.position) or frame(event))
    for number in range(20):
        reader = world.joined(Reader("v2"))
        world.hub.subscribe(reader, Selector("stream", STREAMS[number % 2]))
        world.hub.subscribe(reader, Selector("stream", STREAMS[0]))
    monkeypatch.setattr("fluxora.actors.hub.BATCH_EVENTS", 100)
    await world.hub.publish([world.log.write("update", number) for number in range(9)])
    assert sorted(framed) == [7, 8, 10, 11, 13, 14]  # nothing of the third stream


async def test_a_slow_subscriber_is_dropped_and_delays_nobody(world: World) -> None:
    (reader,) = world.readers
    slow = world.joined(Reader("v2", room=400, stalled=True))
    world.hub.subscribe(reader, ALL)
    world.hub.subscribe(slow, ALL)
    for number in range(20):
        world.log.write("update", number)
    world.log.grow()
    await settled()
    assert reader.told == list(range(7, 27))
    assert slow.dropped == ["slow"]
    assert slow.told == list(range(7, 7 + len(slow.told)))
    assert (world.hub.status.dropped, world.hub.status.subscribers) == (1, 1)
    offers = slow.offers
    world.log.write("update", 1)
    world.log.grow()
    await settled()
    assert slow.offers == offers


async def test_who_catches_up_slowly_is_waited_for_and_nobody_else_is(world: World) -> None:
    (reader,) = world.readers
    slow = world.joined(Reader("v2", room=700))
    for number in range(30):
        world.log.write("update", number)
    world.log.grow()
    await settled()
    world.hub.subscribe(reader, ALL)
    slow.stall(stalled=True)
    world.resume(slow, ALL, 0)
    await settled()
    assert 0 < len(slow.told) < 10
    world.log.write("update", 1)
    world.log.grow()
    await settled()
    assert reader.told == [37]
    assert not slow.dropped
    for _ in range(40):
        slow.stall(stalled=False)
        slow.stall(stalled=True)
        await settled()
    assert slow.told == list(range(1, 38))
    assert world.hub.status.catching_up == 0
    assert world.resuming == 0


async def test_a_position_above_the_log_is_lost_and_one_that_others_know_is_waited_for(world: World) -> None:
    (reader,) = world.readers
    with pytest.raises(ResumeLost) as caught:
        await world.hub.resume(reader, ALL, 7)
    assert caught.value.position == 6
    assert world.hub.status.catching_up == 0
    world.log.write("update", 0)  # of which only the database knows
    world.resume(reader, ALL, 7)
    await settled()
    assert world.resuming == 1
    world.log.grow()
    world.log.write("update", 0)
    await settled()
    assert world.resuming == 0
    assert reader.told == [8]


async def test_an_address_is_not_searched_for_through_the_whole_log() -> None:
    log = Log()
    for number in range(6):
        log.write("update", number)
    hub = log.hub(reach=5)
    hub.join(reader := Reader("v2"))
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        for kind in ("sender", "recipient"):
            with pytest.raises(ResumeLost, match="too far"):
                await hub.resume(reader, Selector(kind, PEOPLE[0]), 0)
            assert await hub.resume(reader, Selector(kind, PEOPLE[0]), 1) == 6
        assert await hub.resume(reader, ALL, 0) == 6
        assert await hub.resume(reader, Selector("stream", STREAMS[0]), 0) == 6
        nursery.cancel_scope.cancel()


async def test_what_is_followed_already_is_told_once_and_what_was_given_up_again(world: World) -> None:
    (reader,) = world.readers
    assert await world.hub.resume(reader, Selector("stream", "s0"), 0) == 6
    assert reader.told == [1, 4]
    await world.hub.resume(reader, Selector("stream", "s0"), 0)
    await world.hub.resume(reader, ALL, 0)
    assert reader.told == [1, 4, 2, 3, 5, 6]
    for selector in (ALL, Selector("stream", "s0")):
        world.hub.unsubscribe(reader, selector)
    await world.hub.resume(reader, Selector("stream", "s0"), 1)
    assert reader.told == [1, 4, 2, 3, 5, 6, 4]


async def test_a_retraction_reaches_those_who_were_told_what_it_takes_back(world: World) -> None:
    """Of a stream whose events this process has not seen: what they were is in the log."""
    followers = {name: world.joined(Reader("v2")) for name in PEOPLE}
    for name, reader in followers.items():
        world.hub.subscribe(reader, Selector("recipient", name))
    before = world.log.asked
    for stream in (0, 1, 1):
        world.log.write("remove", stream)
    world.log.grow()
    await settled()
    assert world.log.asked > before
    told = {name: reader.told for name, reader in followers.items()}
    expected = {
        name: [at for at in (7, 8, 9) if Selector("recipient", name) in world.log.matched[at - 1]] for name in PEOPLE
    }
    assert told == expected
    assert sum(map(len, told.values())) == 3
    later = world.joined(Reader("v2"))
    for name in PEOPLE:
        await world.hub.resume(later, Selector("recipient", name), 6)
    assert sorted(later.told) == [7, 8, 9]


async def test_a_gap_is_refused_and_loses_nothing(world: World) -> None:
    (reader,) = world.readers
    world.hub.subscribe(reader, ALL)
    events = [world.log.write("update", 0) for _ in range(3)]
    for wrong in (events[1:], [events[0], events[2]]):
        with pytest.raises(InvariantError):
            await world.hub.publish(wrong)
    assert reader.told == []
    await world.hub.publish(events)
    assert reader.told == [7, 8, 9]


async def test_a_batch_that_was_begun_is_told_to_all_though_the_hub_is_stopped(world: World) -> None:
    readers = [world.joined(Reader("v2")) for _ in range(50)]
    for reader in readers:
        world.hub.subscribe(reader, ALL)
    world.log.write("update", 0)
    world.log.grow()
    while not any(reader.told for reader in readers):
        await trio.lowlevel.checkpoint()
    assert not all(reader.told for reader in readers)
    world.hub.drain()
    await settled()
    assert [reader.told for reader in readers] == [[7]] * 50


async def test_a_subscription_made_while_a_batch_is_on_its_way_begins_behind_it(world: World) -> None:
    others = [world.joined(Reader("v2")) for _ in range(10)]
    for one in others:
        world.hub.subscribe(one, ALL)
    (late,) = world.readers
    early = world.joined(Reader("v2"))
    world.hub.subscribe(early, ALL)
    world.log.write("update", 0)
    world.log.grow()
    while not any(one.told for one in others):
        await trio.lowlevel.checkpoint()
    early.told.clear()
    assert world.hub.subscribe(late, ALL) == 7
    missing = [one for one in others if not one.told]
    assert world.hub.unsubscribe(missing[0], ALL) == 7
    assert missing[0].told == [7]  # its part of the batch came first
    world.log.write("update", 0)
    world.log.grow()
    await settled()
    assert (late.told, missing[0].told, missing[1].told) == ([8], [7], [7, 8])


async def test_it_can_be_run_again_and_goes_on_where_it_was(world: World) -> None:
    (reader,) = world.readers
    world.hub.subscribe(reader, ALL)
    for number in range(4):
        await world.crash()
        world.log.write("update", number)
        world.log.grow()
        await settled()
    assert reader.told == [7, 8, 9, 10]


async def test_it_waits_for_a_database_that_is_away(world: World) -> None:
    (reader,) = world.readers
    world.log.away = True
    world.resume(reader, Selector("stream", "s0"), 0)
    for _ in range(50):
        await trio.lowlevel.checkpoint()
    assert reader.told == []
    world.log.away = False
    with trio.fail_after(PATIENCE_S):
        while world.resuming:
            await trio.lowlevel.checkpoint()
    assert reader.told == [1, 4]
