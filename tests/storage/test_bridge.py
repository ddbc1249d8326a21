from __future__ import annotations

import asyncio
import threading

import pytest
import trio

from fluxora.errors import StorageError, StorageUnavailable
from fluxora.storage import bridge as bridges
from fluxora.storage.bridge import Bridge, open_bridge


async def test_run_returns_what_the_work_returns_from_the_other_thread() -> None:
    async def work(left: int, right: int) -> tuple[int, str]:
        await asyncio.sleep(0)
        return left + right, threading.current_thread().name

    async with open_bridge() as bridge:
        total, thread = await bridge.run(work, 2, 3)
    assert total == 5
    assert thread == "fluxora-storage"


async def test_run_raises_what_the_work_raises() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise LookupError("told by the work")

    async with open_bridge() as bridge:
        with pytest.raises(LookupError, match="told by the work"):
            await bridge.run(work)


async def test_deadline_cancels_the_work_and_is_unavailable_in_time() -> None:
    cancelled = threading.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with open_bridge() as bridge:
        started = trio.current_time()
        with pytest.raises(StorageUnavailable):
            await bridge.run(work, deadline_s=0.3)
        assert trio.current_time() - started < 0.3 + 0.2
        assert cancelled.is_set()


async def test_cancelled_caller_cancels_the_work_and_waits_for_its_end() -> None:
    ended = threading.Event()
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def work() -> None:
        token.run_sync_soon(begun.set)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # a rollback takes a round trip
            ended.set()

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, work)
        await begun.wait()
        nursery.cancel_scope.cancel()
    assert ended.is_set()


async def test_work_that_ignores_a_cancel_is_cut_and_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridges, "GRACE_S", 0.1)
    cut = trio.Event()
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async with open_bridge() as bridge:

        async def work() -> None:
            stuck = asyncio.Event()
            loop = asyncio.get_running_loop()
            bridge.on_abandon(lambda: (token.run_sync_soon(cut.set), loop.call_soon(stuck.set)))
            token.run_sync_soon(begun.set)
            while not stuck.is_set():
                try:
                    await stuck.wait()
                except asyncio.CancelledError:
                    continue

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, work)
            await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(2):
            await cut.wait()


async def test_work_that_finished_despite_the_cancel_is_not_lost() -> None:
    outcome: list[str] = []
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def work() -> str:
        token.run_sync_soon(begun.set)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "committed"
        raise AssertionError

    async def call(bridge: Bridge) -> None:
        outcome.append(await bridge.run(work))

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(call, bridge)
        await begun.wait()
        nursery.cancel_scope.cancel()
    assert outcome == ["committed"]


async def test_death_of_the_thread_fails_waiting_and_later_calls() -> None:
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()
    errors: list[BaseException] = []

    async def wait() -> None:
        token.run_sync_soon(begun.set)
        await asyncio.Event().wait()

    async def die() -> None:
        raise SystemExit("the thread dies")

    async def call(bridge: Bridge) -> None:
        with pytest.raises(StorageError, match="thread has ended") as caught:
            await bridge.run(wait)
        errors.append(caught.value)

    async with open_bridge() as bridge:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, bridge)
            await begun.wait()
            with pytest.raises((SystemExit, StorageError)):
                await bridge.run(die)
        with pytest.raises(StorageError, match="thread has ended"):
            await bridge.run(wait)
    assert len(errors) == 1
    assert not isinstance(errors[0], StorageUnavailable)  # trying again cannot help


async def test_close_ends_the_thread_and_whatever_runs() -> None:
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def forever() -> None:
        token.run_sync_soon(begun.set)
        await asyncio.Event().wait()

    async with open_bridge() as bridge:
        bridge.spawn(forever)
        await begun.wait()
    assert not any(thread.name == "fluxora-storage" for thread in threading.enumerate())


async def test_calls_run_concurrently() -> None:
    async with open_bridge() as bridge:
        meeting = await bridge.run(_make_barrier)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(bridge.run, meeting.wait)


async def _make_barrier() -> asyncio.Barrier:
    return asyncio.Barrier(5)
