"""Any actor of the pipeline crashes at any moment: its group begins anew, and nothing is lost or doubled for it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial, wraps
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from in_process import config
from processes import following, serve
from proof import LONG, chance
from truth import Books, assert_in_order, caught_up, judge, nothing_wanted
from waiting import eventually

import fluxora
from fluxora.actors.corrector import Corrector
from fluxora.actors.dedup import Deduplicator
from fluxora.actors.guard import Guard
from fluxora.actors.ingester import Ingester
from fluxora.actors.recorder import Recorder
from fluxora.errors import RestartIntensityExceeded
from fluxora.localnet import Network, Script, open_localnet
from fluxora.storage.append import Append

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 31
CRASHES = 12 if LONG else 2
# Where each breaks: before it has done its work, in the middle of it, or after it is done and before anyone is told.
PLACES: dict[str, tuple[type, str, str]] = {
    "ingester": (Ingester, "_send", "before"),
    "ingester, having sent": (Ingester, "_send", "after"),
    "guard": (Guard, "_judge", "before"),
    "guard, having judged": (Guard, "_judge", "after"),
    "dedup": (Deduplicator, "sift", "after"),
    "recorder": (Recorder, "_record", "before"),
    "recorder, having committed": (Recorder, "_note", "before"),
    "recorder, inside the transaction": (Append, "_apply", "after"),
    "corrector": (Corrector, "_correction", "after"),
}


class Injected(Exception):
    """No error of the program's own."""


class Fault:
    """Breaks one method at some of its calls: each time `due` calls have gone by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, when: str) -> None:
        self.due: int | None = None
        self._struck: list[float] = []
        original: Callable[..., Any] = getattr(owner, method)

        @wraps(original)
        async def broken_async(*args: Any, **kwargs: Any) -> Any:
            self.strike_if(when == "before")
            result = await original(*args, **kwargs)
            self.strike_if(when == "after")
            return result

        @wraps(original)
        def broken(*args: Any, **kwargs: Any) -> Any:
            self.strike_if(when == "before")
            result = original(*args, **kwargs)
            self.strike_if(when == "after")
            return result

        monkeypatch.setattr(owner, method, broken_async if inspect.iscoroutinefunction(original) else broken)

    def strike_if(self, now: bool) -> None:
        if not now or self.due is None:
            return
        self.due -= 1
        if self.due <= 0:
            self.due = None
            self._struck.append(time.monotonic())
            raise Injected(f"fault {len(self._struck)}")

    def recent(self) -> int:
        """How often it struck within the supervisor's window."""
        return sum(at > time.monotonic() - 5.5 for at in self._struck)


@pytest.mark.parametrize("place", PLACES)
async def test_an_actor_crashes(
    place: str, postgres_url: str, books_of: OpenBooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = chance(SEED)
    fault = Fault(monkeypatch, *PLACES[place])
    books = await books_of(postgres_url)
    followed: list[int] = []
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=2), retention=None) as net:
        async with (
            fluxora.open_runtime(config(net, postgres_url, corrected_soon=True, page_limit=10)) as rt,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(follow, rt, followed)
            for number in range(1, CRASHES + 1):
                await strike(fault, net, rng)
                await eventually(partial(group_restarted, rt, number), "the group begins anew")
                await caught_up(books, net)
            await nothing_wanted(books)
            head = await books.position()
            await eventually(lambda: len(followed) == head, "the follower has it all")
            assert rt.health().status == "ok"
            alone = {actor.restarts for actor in rt.health().actors if actor.name in {"monitor", "feed", "http"}}
            assert alone == {0}
            nursery.cancel_scope.cancel()
        print(place, await judge(books, net))
    assert_in_order(followed)


async def strike(fault: Fault, net: Network, rng: Random) -> None:
    """Arm the fault for one of the next calls, and let the chain grow and fork until it has struck."""
    await eventually(lambda: fault.recent() < 3, "a crash may happen that does not end it all")
    fault.due = rng.randint(1, 6)

    async def struck() -> bool:
        await net.close_ledger()
        if rng.random() < 0.05:
            await net.fork(2)
        return fault.due is None

    await eventually(struck, "the fault strikes")


async def follow(rt: fluxora.Runtime, seen: list[int]) -> None:
    async with aclosing(rt.events()) as batches:
        async for batch in batches:
            seen += [event.position for event in batch]


def group_restarted(rt: fluxora.Runtime, times: int) -> bool:
    return {actor.restarts for actor in rt.health().actors if actor.name == "recorder"} == {times}


async def test_four_crashes_in_five_seconds_end_it(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_args: Any) -> None:
        raise Injected("always")

    monkeypatch.setattr(Guard, "_judge", broken)
    began = trio.current_time()
    async with open_localnet(seed=SEED, script=Script(SEED)) as net:
        await net.close_ledgers(3)
        with pytest.raises(
            RestartIntensityExceeded, match=r"4 crashes within 5.0 s, the last in ingest: Injected: always"
        ):
            await stay(config(net, postgres_url, corrected_soon=True, page_limit=10))
    assert trio.current_time() - began < 5


async def stay(settings: fluxora.Config) -> None:
    async with fluxora.open_runtime(settings):
        await trio.sleep_forever()  # the runtime's own end cancels it


BROKEN_GUARD = """
import sys
from fluxora.actors.guard import Guard
from fluxora.__main__ import main

async def judge(self, parcel):
    raise ZeroDivisionError("injected")

Guard._judge = judge
sys.exit(main(["serve"]))
"""


async def test_the_command_ends_with_one_clear_line(postgres_url: str, tmp_path: Path) -> None:
    async with open_localnet(seed=SEED, script=Script(SEED)) as net:
        await net.close_ledgers(3)
        environ = following(net, url=postgres_url)
        async with serve(environ, tmp_path / "serve.log", ("-c", BROKEN_GUARD)) as served:
            assert await served.ended() == 1
    plain = [line for line in served.text.splitlines() if not line.startswith("{")]
    why = "fluxora: 4 crashes within 5.0 s, the last in ingest: ZeroDivisionError: injected"
    assert plain == [f"fluxora: RestartIntensityExceeded: {why}"]
    assert len(served.lines("supervisor.actor_crashed")) == 4
    assert "injected" in served.lines("supervisor.actor_crashed")[0]["exception"], "with its traceback"
