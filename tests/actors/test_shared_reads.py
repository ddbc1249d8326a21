"""Shared reads: who asks for them, what goes together, and that nobody is left waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxora.actors.shared_reads import MOST_AT_ONCE, SharedReads
from fluxora.errors import StorageUnavailable
from fluxora.storage.store import Store


class Gate:
    """A store that answers each question when it is told to; a stream's record is its id."""

    def __init__(self) -> None:
        self.questions: list[list[str]] = []
        self._under_way: list[tuple[trio.Event, list[Exception]]] = []

    async def streams_of(self, stream_ids: Sequence[str]) -> dict[str, Any]:
        self.questions.append(list(stream_ids))
        gone: trio.Event = trio.Event()
        failure: list[Exception] = []
        self._under_way.append((gone, failure))
        try:
            await gone.wait()
        finally:
            self._under_way.remove((gone, failure))
        if failure:
            raise failure[0]
        return {stream_id: f"record of {stream_id}" for stream_id in stream_ids if stream_id != "nowhere"}

    @property
    def busy(self) -> int:
        return len(self._under_way)

    def answer(self, failure: Exception | None = None) -> None:
        for gone, failures in self._under_way:
            if failure is not None:
                failures.append(failure)
            gone.set()


class Readers:
    """Tasks that each read one stream; `ended` says how."""

    def __init__(self, reads: SharedReads, nursery: trio.Nursery) -> None:
        self._reads = reads
        self._nursery = nursery
        self.ended: dict[int, Any] = {}
        self.scopes: list[trio.CancelScope] = []

    def begin(self, stream_id: str) -> None:
        self.scopes.append(trio.CancelScope())
        self._nursery.start_soon(self._read, len(self.scopes) - 1, stream_id)

    async def _read(self, nth: int, stream_id: str) -> None:
        with self.scopes[nth] as scope:
            try:
                self.ended[nth] = await self._reads.stream(stream_id)
            except StorageUnavailable as error:
                self.ended[nth] = error
        if scope.cancelled_caught:
            self.ended[nth] = "cancelled"


async def blocked() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_what_waits_becomes_one_question_up_to_the_bound() -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        readers = Readers(SharedReads(cast("Store", gate)), nursery)
        readers.begin("first")
        await blocked()
        for n in range(MOST_AT_ONCE + 3):
            readers.begin("nowhere" if n == 7 else f"s{n}")
        await blocked()
        assert gate.questions == [["first"]], "a read is asked for by itself while nobody else waits"
        while gate.busy:
            gate.answer()
            await blocked()
    assert [len(question) for question in gate.questions] == [1, MOST_AT_ONCE, 3]
    assert readers.ended[0] == "record of first"
    assert readers.ended[8] is None
    assert readers.ended[9] == "record of s8"


async def test_where_the_database_is_away_nobody_waits_for_a_second_question() -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        readers = Readers(SharedReads(cast("Store", gate)), nursery)
        for n in range(5):
            readers.begin(f"s{n}")
            await blocked()
        gate.answer(StorageUnavailable("gone"))
    assert len(gate.questions) == 1
    assert {str(error) for error in readers.ended.values()} == {"gone"}
    assert len({id(error) for error in readers.ended.values()}) == 5  # one for each task that raises it


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_one_that_is_cancelled_leaves_nobody_waiting(which: int) -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        readers = Readers(SharedReads(cast("Store", gate)), nursery)
        for n in range(3):
            readers.begin(f"s{n}")
            await blocked()
        readers.scopes[which].cancel()
        await blocked()
        with trio.fail_after(5):
            while gate.busy:
                gate.answer()
                await blocked()
    expected = {n: f"record of s{n}" for n in range(3)}
    assert readers.ended == {**expected, which: "cancelled"}


async def test_one_that_was_cancelled_while_it_was_asked_for_is_not_asked_to_ask() -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        readers = Readers(SharedReads(cast("Store", gate)), nursery)
        for n in range(4):
            readers.begin(f"s{n}")
            await blocked()
        gate.answer()
        await blocked()
        assert gate.questions[-1] == ["s1", "s2", "s3"]
        for n in (2, 1):  # one that is asked for, and then the one that asks
            readers.scopes[n].cancel()
            await blocked()
        with trio.fail_after(5):
            while 3 not in readers.ended:
                assert gate.busy
                gate.answer()
                await blocked()
    assert readers.ended == {0: "record of s0", 1: "cancelled", 2: "cancelled", 3: "record of s3"}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["answer", "fail", "settle"]), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
async def test_everyone_is_answered_or_cancelled_whatever_happens(steps: list[tuple[str, int]]) -> None:
    gate = Gate()
    asked: list[str] = []
    async with trio.open_nursery() as nursery:
        readers = Readers(SharedReads(cast("Store", gate)), nursery)
        for step, n in steps:
            if step == "read":
                asked.append(f"s{n}")
                readers.begin(asked[-1])
            elif step == "cancel" and readers.scopes:
                readers.scopes[n % len(readers.scopes)].cancel()
            elif step == "settle":
                await blocked()
            else:
                gate.answer(StorageUnavailable("gone") if step == "fail" else None)
            assert gate.busy <= 1
        with trio.fail_after(5):
            await blocked()
            while gate.busy:
                gate.answer()
                await blocked()
    assert sorted(readers.ended) == list(range(len(asked)))
    for nth, found in readers.ended.items():
        if not isinstance(found, StorageUnavailable) and found != "cancelled":
            assert found == f"record of {asked[nth]}"
        if found == "cancelled":
            assert readers.scopes[nth].cancel_called
