"""Turns: never more than there are, each caller in its turn, and none is lost by who gives up waiting."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fluxora.actors.turns import Turns


class Desk:
    """Where turns are taken: who has one, and in which order they had theirs."""

    def __init__(self, at_once: int, of_one: int) -> None:
        self.turns = Turns(at_once, of_one=of_one)
        self.served: list[str] = []
        self.here: Counter[str] = Counter()
        self.go = trio.Event()
        self._limits = at_once, of_one

    async def take(self, caller: str, turns: int = 0) -> None:
        """Have a turn until it is told to go on, or for a number of turns of the event loop."""
        async with self.turns.taken(caller):
            self.served.append(caller)
            self.here[caller] += 1
            try:
                assert self.here.total() <= self._limits[0]
                assert self.here[caller] <= self._limits[1]
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                if not turns:
                    await self.go.wait()
            finally:
                self.here[caller] -= 1


async def test_one_with_many_that_wait_costs_the_others_one_turn(nursery: trio.Nursery) -> None:
    desk = Desk(1, 1)
    for caller in "aaaaaabcc":
        nursery.start_soon(desk.take, caller)
        await trio.testing.wait_all_tasks_blocked()
    assert desk.served == ["a"]
    desk.go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert "".join(desk.served) == "aabcacaaa"


async def test_one_caller_has_no_more_than_its_own_while_others_have_theirs(nursery: trio.Nursery) -> None:
    desk = Desk(3, 1)
    for caller in "aaabcd":
        nursery.start_soon(desk.take, caller)
        await trio.testing.wait_all_tasks_blocked()
    assert "".join(desk.served) == "abc"


async def test_it_is_not_waited_for_where_there_is_one() -> None:
    turns = Turns(1)
    with trio.testing.assert_no_checkpoints():
        async with turns.taken("a"):
            pass


async def test_who_gives_up_waiting_or_was_just_given_a_turn_leaves_it_to_the_next(nursery: trio.Nursery) -> None:
    desk = Desk(1, 1)
    scopes = [trio.CancelScope() for _ in range(3)]

    async def waiting(scope: trio.CancelScope, caller: str) -> None:
        with scope:
            await desk.take(caller)

    nursery.start_soon(desk.take, "first")
    await trio.testing.wait_all_tasks_blocked()
    for scope, caller in zip(scopes, ("gone", "given", "last"), strict=True):
        nursery.start_soon(waiting, scope, caller)
        await trio.testing.wait_all_tasks_blocked()
    scopes[0].cancel()
    await trio.testing.wait_all_tasks_blocked()
    desk.go.set()
    await trio.lowlevel.checkpoint()  # the first one has left, and the turn is another's, who does not know it yet
    scopes[1].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert desk.served in (["first", "last"], ["first", "given", "last"])
    assert desk.served[-1] == "last"
    assert not desk.turns._waiting
    assert not desk.turns._taken


@given(
    at_once=st.integers(1, 3),
    of_one=st.integers(1, 2),
    wanted=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 12)), max_size=25),
)
async def test_all_are_served_whatever_happens_and_nothing_is_kept(
    at_once: int, of_one: int, wanted: list[tuple[str, int, int]]
) -> None:
    desk = Desk(at_once, of_one)

    async def one(caller: str, turns: int, patience: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.take, caller, turns)
            if patience > 6:
                return
            for _ in range(patience):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for caller, turns, patience in wanted:
            nursery.start_soon(one, caller, turns, patience)
    patient = Counter(caller for caller, _, patience in wanted if patience > 6)
    assert patient <= Counter(desk.served)
    assert not desk.turns._waiting
    assert not desk.turns._taken
    with trio.testing.assert_no_checkpoints():
        async with desk.turns.taken("a"):
            pass


async def test_to_give_a_turn_back_costs_the_same_however_many_wait() -> None:
    assert await calls_for_a_turn(waiting=1_000) <= await calls_for_a_turn(waiting=10) + 5


async def calls_for_a_turn(waiting: int) -> int:
    """How many functions are called while the one turn there is goes from its caller to the next of those who wait."""
    desk, calls = Desk(1, 1), 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    async with trio.open_nursery() as nursery:
        for nth in range(waiting):
            nursery.start_soon(desk.take, f"caller {nth}")
        async with desk.turns.taken("first"):
            await trio.testing.wait_all_tasks_blocked()
            sys.setprofile(count)
        sys.setprofile(None)
        nursery.cancel_scope.cancel()
    return calls


async def test_a_failure_gives_the_turn_back() -> None:
    turns = Turns(1)
    with pytest.raises(KeyError):
        async with turns.taken("a"):
            raise KeyError
    with trio.testing.assert_no_checkpoints():
        async with turns.taken("b"):
            pass
