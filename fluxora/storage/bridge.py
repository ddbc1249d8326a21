"""The bridge: one thread with one asyncio loop, reached from trio one unit of work at a time.

Promises: a unit of work is one coroutine (a whole transaction), so it costs one hop there and one back. What it returns
or raises comes back to the caller. A cancelled caller cancels the coroutine and waits for its end, but no longer than
`GRACE_S`; then the coroutine's connections are cut and the caller goes on. If the work had ended after all, its outcome
is returned rather than lost (as trio's own calls do). If the thread dies, every waiting and later call fails with
StorageError, which is not retryable: only a new bridge helps.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, TypeVarTuple

import msgspec
import trio

from fluxora import logs, tracing
from fluxora.errors import StorageError, StorageUnavailable
from fluxora.tallies import Histogram

try:
    from uvloop import new_event_loop
except ImportError:  # uvloop has no Windows build; the standard loop does the same, slower
    from asyncio import new_event_loop  # type: ignore[assignment]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

GRACE_S = 2.0  # longest wait for a cancelled coroutine: time enough for a cancel request and a rollback
CLOSE_S = 5.0  # longest wait for the thread to end
# The interpreter runs one of the two threads at a time. Each answer of PostgreSQL waits for its turn, and a transaction
# is many answers: at Python's usual 5 ms each, a busy trio thread leaves PostgreSQL without work.
SWITCH_INTERVAL_S = 0.0005

log = logs.get("bridge")


class _Call(Generic[T]):
    """One unit of work on its way: written by the loop's thread, read by trio after `done` is set."""

    __slots__ = ("cuts", "done", "error", "finished", "task", "token", "value")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.token = trio.lowlevel.current_trio_token()
        self.task: asyncio.Task[T] | None = None
        self.cuts: list[Callable[[], None]] = []
        self.finished = False
        self.value: T | None = None
        self.error: BaseException | None = None

    def outcome(self) -> T:
        if isinstance(self.error, asyncio.CancelledError):  # nobody here cancelled it: the bridge is closing
            raise StorageUnavailable("the storage is closing") from self.error
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # set together with `finished`


class BridgeStatus(msgspec.Struct, frozen=True):
    """For metrics: units of work that are under way, those of them that have not begun, and counts since the start.

    `timeouts` were not done by their deadline, `abandoned` did not even end when they were cancelled; `durations` are
    of all, in seconds, from the caller's asking to its having the outcome.
    """

    in_flight: int
    waiting: int
    timeouts: int
    abandoned: int
    durations: Histogram


class Bridge:
    """A running loop thread. Made by `open_bridge`; `run` may be called from any task of that trio run."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop = new_event_loop()
        self._background: set[asyncio.Task[None]] = set()  # kept here, for the loop holds tasks weakly
        self._calls: set[_Call[Any]] = set()
        self._lock = threading.Lock()  # guards _calls and _dead between the two threads
        self._dead: BaseException | None = None
        self._timeouts = 0
        self._abandoned = 0
        self._durations = Histogram()
        self._thread = threading.Thread(target=self._main, name="fluxora-storage", daemon=True)

    @property
    def status(self) -> BridgeStatus:
        """For metrics."""
        with self._lock:
            waiting = sum(call.task is None for call in self._calls)
            return BridgeStatus(len(self._calls), waiting, self._timeouts, self._abandoned, self._durations)

    async def run(
        self,
        work: Callable[[*Ts], Awaitable[T]],
        *args: *Ts,
        deadline_s: float | None = None,
        operation: str | None = None,
        heartbeat: bool = False,
    ) -> T:
        """Await `work(*args)` on the loop's thread, in the caller's context.

        `deadline_s` bounds the whole call, the end of the cancelled coroutine included. None means that the work
        bounds itself or is meant to last (a listener). `operation` is what it is called in traces, None for nothing;
        a `heartbeat` begins none.

        Raises:
            StorageUnavailable: the deadline passed.
            StorageError: the thread is gone.
        """
        with tracing.database(operation, begins=not heartbeat):
            return await self._timed(work, args, deadline_s)

    async def _timed(self, work: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts], deadline_s: float | None) -> T:
        call: _Call[T] = _Call()
        asked = time.perf_counter()
        try:
            return await self._run(call, work, args, deadline_s)
        finally:
            self._durations.add(time.perf_counter() - asked)

    async def _run(
        self, call: _Call[T], work: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts], deadline_s: float | None
    ) -> T:
        self._submit(call, work, args)
        grace_s = GRACE_S if deadline_s is None else min(GRACE_S, deadline_s / 5)
        try:
            with trio.move_on_after(_patience_s(deadline_s, grace_s)):
                await call.done.wait()
        except trio.Cancelled:
            if await self._stop(call, grace_s):
                return call.outcome()
            raise
        if call.finished or await self._stop(call, grace_s):
            return call.outcome()
        self._timeouts += 1
        raise StorageUnavailable(f"no answer within {deadline_s:g} s")

    def spawn(self, work: Callable[[*Ts], Coroutine[Any, Any, None]], *args: *Ts) -> None:
        """Run `work(*args)` beside the calls until it ends or the bridge closes. A crash is logged, not raised."""

        def start() -> None:
            task = self._loop.create_task(work(*args))
            self._background.add(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[None]) -> None:
            self._background.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("bridge.background_crashed", work=work.__qualname__, exc_info=error)

        with self._lock:
            if self._dead is not None:
                raise StorageError("the storage thread has ended") from self._dead
            self._loop.call_soon_threadsafe(start)

    def on_abandon(self, cut: Callable[[], None]) -> Callable[[], None]:
        """Within a unit of work: have `cut` called if the work outlasts a cancel. Returns the undoing.

        Called on the loop's thread. `cut` must make whatever the work waits for fail at once.
        """
        task = asyncio.current_task()
        call = getattr(task, "fluxora_call", None)
        if call is None:  # a task of asyncio's own, with nobody waiting across the bridge
            return lambda: None
        call.cuts.append(cut)
        return lambda: call.cuts.remove(cut)

    def _submit(self, call: _Call[T], work: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts]) -> None:
        async def unit() -> T:
            return await work(*args)

        def start() -> None:
            call.task = _UnitOfWork(unit(), loop=self._loop)
            call.task.fluxora_call = call
            call.task.add_done_callback(lambda task: self._finish(call, task))

        with self._lock:
            if self._dead is not None:
                raise StorageError("the storage thread has ended") from self._dead
            self._calls.add(call)
            self._loop.call_soon_threadsafe(start)

    def _finish(self, call: _Call[T], task: asyncio.Task[T]) -> None:
        """On the loop's thread: keep the outcome and wake the caller."""
        if call.finished:  # told already that the thread is ending
            return
        with self._lock:
            self._calls.discard(call)
        if task.cancelled():
            call.error = asyncio.CancelledError()
        else:
            call.error = task.exception()
            if call.error is None:
                call.value = task.result()
        call.finished = True
        _wake(call)

    async def _stop(self, call: _Call[T], grace_s: float) -> bool:
        """Cancel the coroutine and wait for it, bounded. True when it ended with an outcome worth returning."""

        def cancel() -> None:
            if call.task is not None:
                call.task.cancel()

        def cut() -> None:
            for one in tuple(call.cuts):
                one()

        if self._dead is None:
            self._loop.call_soon_threadsafe(cancel)
            with trio.move_on_after(grace_s, shield=True):
                await call.done.wait()
            if not call.finished:
                self._abandoned += 1
                log.warning("bridge.work_abandoned", grace_s=grace_s)
                self._loop.call_soon_threadsafe(cut)
        return call.finished and not isinstance(call.error, asyncio.CancelledError)

    def _main(self) -> None:
        reason: BaseException = RuntimeError("the storage thread was stopped")
        try:
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()
        except BaseException as error:  # noqa: BLE001 (whatever ends the loop is told to every caller below)
            reason = error
        with self._lock:
            self._dead = reason
            left, self._calls = self._calls, set()
        for call in left:
            call.error = StorageError("the storage thread has ended")
            call.error.__cause__ = reason
            call.finished = True
            _wake(call)
        unfinished = asyncio.all_tasks(self._loop)  # only where the loop died: a close has ended them
        for task in unfinished:
            task.cancel()
        if unfinished:
            self._loop.run_until_complete(asyncio.wait(unfinished, timeout=1))
        asyncio.set_event_loop(None)
        self._loop.close()

    async def aclose(self) -> None:
        """Cancel what still runs, end the loop and join its thread; bounded by `CLOSE_S`, cancelled or not."""

        async def wind_down() -> None:
            running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running, timeout=CLOSE_S / 2)
            await self._loop.shutdown_asyncgens()
            self._loop.stop()

        def begin() -> None:
            self._background.add(self._loop.create_task(wind_down()))

        with self._lock:
            if self._dead is None:
                self._loop.call_soon_threadsafe(begin)
        with trio.move_on_after(CLOSE_S, shield=True):
            await trio.to_thread.run_sync(self._thread.join, CLOSE_S)
        if self._thread.is_alive():
            log.error("bridge.close_timed_out", budget_s=CLOSE_S)

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()


class _UnitOfWork(asyncio.Task[T]):
    """A task that knows the call it serves, so that the pool can find it without an argument in every signature."""

    fluxora_call: _Call[T]


def _patience_s(deadline_s: float | None, grace_s: float) -> float:
    """Seconds until the coroutine is cancelled: the deadline less the grace that its end may take."""
    return float("inf") if deadline_s is None else deadline_s - grace_s


def _wake(call: _Call[Any]) -> None:
    try:
        call.token.run_sync_soon(call.done.set)
    except trio.RunFinishedError:  # the trio run is over; nobody waits any more
        log.debug("bridge.caller_gone")


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """A bridge for the length of the block; its thread is joined at the end."""
    bridge = Bridge()
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(min(usual_s, SWITCH_INTERVAL_S))
    bridge.start()
    try:
        yield bridge
    finally:
        await bridge.aclose()
        sys.setswitchinterval(usual_s)
