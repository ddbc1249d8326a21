"""The hub: whatever happens in whatever order, nothing that was promised is lost, told twice, or out of order."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing
from hub_world import PEOPLE, SELECTORS, STREAMS, Log, Reader, World, until
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxora.actors.hub import READERS, ResumeLost
from fluxora.actors.lag import BEHIND_S, STUCK_S
from fluxora.actors.retelling import Retelling
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
    "stall",
    "take",
    "take",
    "read",
    "go",
    "stick",
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
        ("retelling", "FAIR_EVERY", 2),
        ("catch_up", "PAGE", 3),
        ("retelling", "PIECE_BYTES", 300),
        ("catch_up", "PAGE_BYTES", 300),
        ("parties", "_PAGE", 3),
        ("parties", "_PAGE_BYTES", 300),
        ("hub", "_RETRY_S", 0),
    ):
        monkeypatch.setattr(f"fluxora.actors.{where}.{name}", value)


@given(early=EARLY, steps=STEPS, remembered=st.integers(0, 12))
@settings(max_examples=500, deadline=None)
async def test_nothing_is_lost_or_doubled_or_out_of_order(
    early: list[tuple[str, int]], steps: list[tuple[str, int, int, int]], remembered: int
) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        world.log.remembered = remembered
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
    elif what == "take":
        reader.take(50 * number)
    elif what == "stick":
        reader.stick()
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


async def lagging(world: World, *selectors: Selector, rows: int = 20) -> Reader:
    """A live reader who could not take all of `rows` events, and what could be taken of them it has not read."""
    slow = world.joined(Reader("v2", room=700, stalled=True))
    for selector in selectors or (ALL,):
        world.hub.subscribe(slow, selector)
    for number in range(rows):
        world.log.write("update", number)
    world.log.grow()
    await settled()
    assert 0 < len(slow.told) < rows
    assert world.hub.status.behind == 1
    return slow


async def test_who_reads_nothing_is_dropped_and_delays_nobody(world: World, mock_clock: trio.testing.MockClock) -> None:
    (reader,) = world.readers
    world.hub.subscribe(reader, ALL)
    slow = await lagging(world)
    assert reader.told == list(range(7, 27))
    told = list(slow.told)
    assert told == list(range(7, 7 + len(told)))
    mock_clock.jump(STUCK_S - 0.1)
    await settled()
    assert not slow.dropped
    mock_clock.jump(0.2)
    await settled()
    assert slow.dropped == ["slow"]
    status = world.hub.status
    assert (status.dropped, status.subscribers, status.behind) == (1, 1, 0)
    assert slow.told == told
    offers = slow.offers
    world.log.write("update", 1)
    world.log.grow()
    await settled()
    assert slow.offers == offers
    assert reader.told == list(range(7, 28))


async def test_who_takes_something_now_and_then_is_told_all_of_it_and_is_live_again(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    slow = await lagging(world)
    while world.hub.status.behind:
        mock_clock.jump(STUCK_S - 0.1)
        await settled()
        slow.take(300)
        await settled()
    assert slow.told == list(range(7, 27))
    assert mock_clock.current_time() > 2 * STUCK_S
    slow.stall(stalled=False)
    world.log.write("update", 1)
    world.log.grow()
    await settled()
    assert slow.told == list(range(7, 28))
    assert (slow.lagged, slow.dropped) == (1, [])


async def test_who_is_told_from_memory_does_not_wait_for_those_who_wait_for_the_database(world: World) -> None:
    world.log.remembered = 20
    async with AsyncExitStack() as stack:
        for nth in range(READERS):
            await stack.enter_async_context(world.hub.reading.taken(f"another {nth}"))
        slow = await lagging(world)
        slow.stall(stalled=False)
        await until(lambda: not world.hub.status.behind)
        assert slow.told == list(range(7, 27))


async def test_who_does_not_come_back_in_time_is_dropped_though_it_reads(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    slow = await lagging(world)
    while not slow.dropped:
        assert mock_clock.current_time() < BEHIND_S
        slow.take(100)
        await settled()
        for _ in range(4):
            world.log.write("update", 1)
        world.log.grow()
        mock_clock.jump(STUCK_S - 0.1)
        await settled()
    assert mock_clock.current_time() >= BEHIND_S
    assert slow.told == list(range(7, 7 + len(slow.told)))
    assert world.hub.status.subscribers == 1


async def test_what_is_asked_for_while_it_is_behind_is_told_in_its_place(world: World) -> None:
    slow = await lagging(world, Selector("stream", "s0"), rows=40)
    last = slow.told[-1]
    assert world.hub.subscribe(slow, Selector("stream", "s1")) == 46
    assert last <= world.hub.unsubscribe(slow, Selector("stream", "s0")) < last + 3, "nothing above it comes"
    world.resume(slow, Selector("stream", "s2"), 40)
    for number in range(3):
        world.log.write("update", number)
    world.log.grow()
    slow.stall(stalled=False)
    await settled()
    assert slow.told[slow.told.index(last) + 1 :] in ([48, 42, 45, 49], [42, 45, 48, 49], [42, 45, 49, 48])
    assert (world.hub.status.behind, world.resuming) == (0, 0)


async def test_an_announcement_for_which_there_is_no_room_comes_when_there_is(world: World) -> None:
    (reader,) = world.readers
    slow = world.joined(Reader("v2", room=250, stalled=True))
    for one in (reader, slow):
        world.hub.subscribe(one, ALL)
    world.log.write("update", 0)
    world.log.grow()
    await settled()
    assert slow.told == [7]
    await world.hub.announce("service.degraded", "database", 0)
    await world.hub.announce("service.recovered", "database", 0)
    assert not slow.notices
    world.log.write("update", 0)
    world.log.grow()
    await settled()
    assert slow.told == [7]
    slow.stall(stalled=False)
    await settled()
    assert [one["type"] for one in slow.notices] == ["service.recovered"]
    assert slow.told == [7, 8]
    assert reader.told == [7, 8]


async def test_an_announcement_in_the_middle_of_a_batch_costs_nobody_its_part_of_it(world: World) -> None:
    others = await on_its_way(world, 0)
    last = others[-1]
    last.room, last.stalled = 10, True
    world.nursery.start_soon(world.hub.announce, "service.degraded", "database", 0)
    await until(lambda: world.hub.status.behind == 1)
    assert not last.told
    last.stall(stalled=False)
    await settled()
    assert last.told == [7]
    assert len(last.notices) == 1


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


class Passes(trio.abc.Instrument):
    """Counts how often the event loop has come round."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, _timeout: float) -> None:
        self.count += 1


async def test_many_who_catch_up_take_turns_and_each_client_has_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, the event loop comes round behind each slice, and one who has many waits for itself."""
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    looked: list[tuple[int, str]] = []
    look_through = Retelling._look_through

    def watched(self: Retelling, *args: Any) -> Any:
        looked.append((passes.count, self._subscriber.caller))
        return look_through(self, *args)

    monkeypatch.setattr(Retelling, "_look_through", watched)
    for number in range(30):
        world.log.write("update", number)
    world.log.grow()
    await settled()
    greedy = [world.joined(Reader("v2", caller="greedy")) for _ in range(20)]
    for reader in greedy:
        world.resume(reader, ALL, 0)
    for _ in range(100):
        await trio.lowlevel.checkpoint()
    modest = world.joined(Reader("v2", caller="modest"))
    world.resume(modest, ALL, 0)
    start = len(looked)
    await until(lambda: len(modest.told) == 36)
    had = Counter(caller for _, caller in looked[start:])
    assert had["greedy"] <= 3 * had["modest"], "it reads between its slices, when the turn is another's"
    await until(lambda: not world.resuming)
    assert {tuple(reader.told) for reader in (modest, *greedy)} == {tuple(range(1, 37))}
    in_a_pass = Counter(count for count, _ in looked)
    assert max(in_a_pass.values()) <= 2, "a last slice, and the first of who comes behind it"
    assert sum(times > 1 for times in in_a_pass.values()) <= 21
    trio.lowlevel.remove_instrument(passes)


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
    await world.hub.resume(reader, Selector("stream", "s0"), 4)
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
    for stream in (0, 1, 1):  # once there is nothing that could be taken back
        world.log.write("remove", stream)
    world.log.grow()
    await settled()
    assert world.log.asked > before
    told = {name: reader.told for name, reader in followers.items()}
    expected = {
        name: [at for at in (7, 8, 9) if Selector("recipient", name) in world.log.matched[at - 1]] for name in PEOPLE
    }
    assert told == expected
    assert sum(map(len, told.values())) == 2
    asked = world.log.asked
    for what in ("create", "update", "remove"):
        world.log.write(what, 0)
    world.log.grow()
    await settled()
    assert world.log.asked == asked, "all of the stream was seen, and it was always the same people's"
    later = world.joined(Reader("v2"))
    for name in PEOPLE:
        await world.hub.resume(later, Selector("recipient", name), 6)
    assert sorted(later.told) == [7, 8, 10, 11, 12]


async def test_of_a_long_past_all_are_told_who_had_a_part_in_it() -> None:
    log = Log()
    for what in ("create", "update", "update", "update", "transfer", "update", "update"):
        log.write(what, 0)
    hub = log.hub()
    followers = [Reader("v2") for _ in PEOPLE]
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        for name, reader in zip(PEOPLE, followers, strict=True):
            hub.join(reader)
            hub.subscribe(reader, Selector("recipient", name))
        log.write("remove", 0)
        log.grow()
        await settled()
        nursery.cancel_scope.cancel()
    assert [reader.told for reader in followers] == [[8], [8], []]


async def test_a_piece_is_in_the_order_of_the_log_whatever_brings_its_parts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxora.actors.hub.BATCH_EVENTS", 100)
    (reader,) = world.readers
    for stream in ("s0", "s1"):
        world.hub.subscribe(reader, Selector("stream", stream))
    await world.hub.publish(
        [world.log.write("update" if at in {1, 8, 64} else "contract", at == 8) for at in range(70)]
    )
    assert reader.told == [8, 15, 71]


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


async def on_its_way(world: World, *updates: int) -> list[Reader]:
    """A batch is being told to 50 readers who came first; those whom the test makes wait for theirs."""
    others = [world.joined(Reader("v2")) for _ in range(50)]
    for one in (*others, *world.readers):
        world.hub.subscribe(one, Selector("stream", "s0"))
    for number in updates:
        world.log.write("update", number)
    world.log.grow()
    while not others[0].told:
        await trio.lowlevel.checkpoint()
    assert not others[20].told
    return others


async def test_a_subscription_made_while_a_batch_is_on_its_way_begins_behind_it(world: World) -> None:
    (reader,) = world.readers
    late = world.joined(Reader("v2"))
    others = await on_its_way(world, 0)
    assert world.hub.subscribe(late, ALL) == 7
    assert reader.told == []
    assert world.hub.subscribe(reader, ALL) == 7
    assert reader.told == [7], "what comes later must be above the position that was returned"
    assert world.hub.unsubscribe(others[49], Selector("stream", "s0")) == 7
    assert others[49].told == [7], "its part of the batch comes first"
    world.leave(others[48])
    world.log.write("update", 0)
    world.log.grow()
    await settled()
    assert (late.told, reader.told, others[49].told, others[48].told) == ([8], [7, 8], [7], [])
    assert others[47].told == [7, 8]


async def test_who_has_caught_up_while_a_batch_is_on_its_way_has_its_part_of_it(world: World) -> None:
    (reader,) = world.readers
    await on_its_way(world, 0)
    world.resume(reader, Selector("stream", "s0"), 6)
    await until(lambda: not world.resuming)
    assert reader.told == [7]


async def test_what_is_live_comes_before_what_is_caught_up_with(world: World) -> None:
    (reader,) = world.readers
    await on_its_way(world, 0, 1)
    world.resume(reader, Selector("stream", "s1"), 6)
    await until(lambda: not world.resuming)
    assert reader.told == [7, 8]


async def test_a_batch_that_is_on_its_way_is_finished_before_the_next_one(world: World) -> None:
    world.hub.drain()
    readers = [world.joined(Reader("v2")) for _ in range(20)]
    for reader in readers:
        world.hub.subscribe(reader, ALL)
    events = [world.log.write("update", number) for number in range(2)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.hub.publish, events[:1])
        while not readers[0].told:
            await trio.lowlevel.checkpoint()
        await world.hub.publish(events[1:])
    assert [reader.told for reader in readers] == [[7, 8]] * 20


async def test_who_leaves_while_something_is_announced_is_left_alone(world: World) -> None:
    readers = [world.joined(Reader("v2")) for _ in range(20)]
    world.nursery.start_soon(world.hub.announce, "service.degraded", "database", 0)
    while not readers[0].notices:
        await trio.lowlevel.checkpoint()
    world.leave(readers[-1])
    await settled()
    assert [len(reader.notices) for reader in readers] == [1] * 19 + [0]


async def stalled(world: World, *selectors: Selector, rows: int = 30) -> Reader:
    """A reader with little room that reads nothing, and follows `selectors` from the first of `rows` on."""
    reader = world.joined(Reader("v2", room=700))
    for selector in selectors:
        world.hub.subscribe(reader, selector)
    for number in range(rows):
        world.log.write("update", number)
    world.log.grow()
    await settled()
    reader.stall(stalled=True)
    return reader


async def read_on(reader: Reader) -> None:
    for _ in range(60):
        reader.stall(stalled=False)
        reader.stall(stalled=True)
        await settled()


async def test_what_is_no_longer_wanted_is_not_caught_up_with(world: World) -> None:
    reader = await stalled(world)
    world.resume(reader, ALL, 0)
    await settled()
    told = len(reader.told)
    assert told < 36
    world.unsubscribe(reader, ALL)
    await read_on(reader)
    assert world.resuming == 0
    assert len(reader.told) == told
    world.log.write("update", 0)
    world.log.grow()
    await settled()
    assert len(reader.told) == told


async def test_what_a_subscription_told_before_it_ended_is_left_out(world: World) -> None:
    reader = await stalled(world, ALL)
    assert reader.told == list(range(7, 37))
    world.resume(reader, Selector("stream", "s0"), 0)
    await settled()
    world.unsubscribe(reader, ALL)
    await read_on(reader)
    assert world.resuming == 0
    assert sorted(reader.told) == [1, 4, *range(7, 37)]


async def test_what_was_caught_up_with_before_it_was_given_up_is_left_out_by_who_waited(world: World) -> None:
    reader = await stalled(world)
    world.resume(reader, ALL, 0)
    world.resume(reader, Selector("stream", "s0"), 0)
    await settled()
    told = set(reader.told)
    assert 1 in told
    assert len(told) < 30
    world.unsubscribe(reader, ALL)
    await read_on(reader)
    assert world.resuming == 0
    assert sorted(reader.told) == sorted(told | set(range(1, 37, 3)))


async def test_whatever_ended_while_history_is_told_is_left_out(world: World) -> None:
    """More often than anybody would subscribe and give up again: nothing of it is forgotten before it was passed."""
    reader = await stalled(world)
    world.resume(reader, ALL, 0)
    await settled()
    reader.room = 10**9
    stream = Selector("stream", "s0")
    for _ in range(300):
        world.subscribe(reader, stream)
        world.log.write("update", 0)
        world.log.grow()
        await settled()
        world.unsubscribe(reader, stream)
    assert world.hub.remembered(reader) == 300
    reader.stall(stalled=False)
    await settled()
    assert world.resuming == 0
    assert sorted(reader.told) == list(range(1, 337))
    assert world.hub.remembered(reader) == 0


async def test_who_refuses_because_of_what_is_live_is_waited_for(world: World) -> None:
    reader = await stalled(world, Selector("stream", "s1"), rows=0)
    for _ in range(2):
        world.log.write("update", 1)
    world.log.grow()
    await settled()
    world.resume(reader, Selector("stream", "s0"), 0)
    await settled()
    assert reader.told == [7, 8]
    await read_on(reader)
    assert reader.told == [7, 8, 1, 4]
    assert not reader.dropped


async def test_who_refuses_though_all_is_written_is_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (reader,) = world.readers
    monkeypatch.setattr(reader, "offer", lambda _: False)
    assert await world.hub.resume(reader, ALL, 0) is None
    assert reader.dropped == ["slow"]
    gone = world.joined(Reader("v2", gone=True))
    assert await world.hub.resume(gone, ALL, 0) is None
    assert gone.dropped == ["slow"]
    assert world.hub.status.subscribers == 0


async def test_who_was_dropped_follows_nothing_any_more(world: World) -> None:
    (reader,) = world.readers
    for selector in SELECTORS:
        world.hub.subscribe(reader, selector)
    assert world.hub.status.subscriptions == len(SELECTORS)
    world.hub.leave(reader)
    assert world.hub.subscribe(reader, ALL) == 6
    assert await world.hub.resume(reader, ALL, 0) is None
    world.hub.unsubscribe(reader, ALL)
    world.hub.leave(reader)
    assert (world.hub.status.subscribers, world.hub.status.subscriptions) == (0, 0)
    assert not world.hub._audience._followers


async def test_what_is_committed_and_not_told_yet_is_left_to_the_hub(world: World) -> None:
    (reader,) = world.readers
    for _ in range(20):
        world.log.write("update", 0)
    assert await world.hub.resume(reader, Selector("stream", "s0"), 0) == 6
    assert reader.told == [1, 4]
    world.log.grow()
    await settled()
    assert reader.told == [1, 4, *range(7, 27)]


async def test_an_address_that_is_followed_meanwhile_is_not_told_twice_of_a_retraction(world: World) -> None:
    """Whom it concerns is not known yet to who began to catch up when no address was followed."""
    reader = world.joined(Reader("v2", room=2_000))
    reader.stall(stalled=True)
    world.log.write("remove", 0)
    (recipient,) = (one for one in world.log.matched[6] if one.kind == "recipient")
    world.resume(reader, ALL, 4)
    await settled()
    assert reader.told == [5, 6]
    world.hub.subscribe(reader, recipient)
    world.log.grow()
    await settled()
    assert reader.told == [5, 6, 7]
    await read_on(reader)
    assert world.resuming == 0
    assert reader.told == [5, 6, 7]


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
    await until(lambda: not world.resuming)
    assert reader.told == [1, 4]
