"""Erlang's supervisor on trio: what runs, in which order, and what happens when it crashes, as data.

Rules
- Start in order: the next child starts when the one before has called `task_status.started()`, that is, can serve.
- Stop in reverse: each child is asked to drain and has `drain_s` to end by itself; cancellation is only the deadline.
- A crash is any `Exception`, a late start, or the end of a permanent child that nobody asked to end. It restarts that
  child (one_for_one) or all of them (one_for_all, and each `Group`) after a jittered backoff. One crash more than
  `max_restarts` within `max_seconds` stops everything in order and raises RestartIntensityExceeded.
- An error that calls itself `retryable` restarts its unit in the same way, but does not count: it says that the world
  failed, not the actor. Where siblings fail together, one such error explains the others.
- A ConfigError of a first incarnation is no crash: no restart mends it, so it stops everything in order and is raised.
- KeyboardInterrupt, SystemExit and Cancelled pass through untouched.

A unit (one child, or a whole group) has one nursery per incarnation, so whatever an incarnation spawned dies with it.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import trio

from fluxora import logs
from fluxora.actors.status import ActorStatus
from fluxora.errors import ConfigError, FluxoraError, RestartIntensityExceeded, StartTimeout, SupervisionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

log = logs.get("supervisor")


@dataclass(frozen=True)
class ChildSpec:
    """One child. `start` is its whole life: `await start(task_status=...)` returns when it has ended.

    `drain` asks it, at once and at most once, to end by itself; without one it is expected to end because its input
    does. `restart`: a permanent child may end only when the supervisor stops, a transient one whenever it likes.
    `inbox` counts what waits for it, of at most `inbox_size`; `inner` are the statuses of what it supervises itself.
    """

    name: str
    start: Callable[..., Awaitable[object]]
    restart: Literal["permanent", "transient"] = "permanent"
    start_timeout_s: float = 30.0
    drain: Callable[[], None] | None = None
    drain_s: float = 5.0
    inbox: Callable[[], int] | None = None
    inbox_size: int | None = None
    inner: Callable[[], list[ActorStatus]] | None = None


@dataclass(frozen=True)
class Group:
    """Children that live and die together: each incarnation calls `children` again, which makes them fresh channels."""

    name: str
    children: Callable[[], Sequence[ChildSpec]]


Child: TypeAlias = "ChildSpec | Group | Supervisor"


class Supervisor:
    """Keeps its children running by the rules above; itself a child of another supervisor when listed there.

    `children` may be a function that makes them for each run: a child that was drained cannot be started again, so a
    supervisor that its parent may restart needs one.
    `restart_delay_s` doubles with every restart in the window, up to `max_seconds`; `jitter` draws from [0, 1) and
    takes up to half of it off.
    """

    def __init__(
        self,
        name: str,
        children: Sequence[Child] | Callable[[], Sequence[Child]],
        *,
        strategy: Literal["one_for_one", "one_for_all"] = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        restart_delay_s: float = 0.1,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._children = children
        self._strategy = strategy
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._restart_delay_s = restart_delay_s
        self._jitter = jitter
        self._units: list[_Unit] = []
        self._recent: deque[tuple[float, bool]] = deque()  # restarts in the window: when, and whether it counts
        self._starting = trio.CancelScope()
        self._stopping = trio.Event()
        self._failure: FluxoraError | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the children, keep them up until `stop()`, then stop them; all are down when this returns or raises.

        May be run again after it raised or was cancelled. A stop that comes before the last child is up counts as
        started, so the caller's `nursery.start` returns.

        Raises:
            RestartIntensityExceeded: the children crash faster than allowed; its cause is the last crash.
            ConfigError: a child cannot start with the configuration that it was given.
        """
        self._renew()
        async with trio.open_nursery() as nursery:
            launched: list[_Unit] = []
            with trio.CancelScope() as self._starting:
                for unit in self._units:
                    if self._stopping.is_set():
                        break
                    launched.append(unit)
                    nursery.start_soon(self._keep, unit)
                    await unit.up.wait()
            if self._failure is None:
                task_status.started()
            await self._stopping.wait()
            for unit in reversed(launched):
                await unit.stop()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Begin the orderly stop; `run` returns when it is complete. May be called at any time and more than once."""
        self._stopping.set()
        self._starting.cancel(reason=f"{self.name} is stopping")

    def statuses(self) -> list[ActorStatus]:
        """Every actor in start order, those of nested supervisors after the supervisor's own line."""
        return [status for unit in self._units for status in unit.statuses()]

    def _renew(self) -> None:
        """Forget the run before; a stop that was asked for from outside still holds."""
        if self._failure is not None:
            self._stopping = trio.Event()
            self._failure = None
        self._recent.clear()
        children = self._children() if callable(self._children) else self._children
        groups = [_group(child) for child in children]
        if self._strategy == "one_for_all":
            parts = groups
            groups = [Group(self.name, lambda: [spec for part in parts for spec in part.children()])]
        self._units = [_Unit(group) for group in groups]

    async def _keep(self, unit: _Unit) -> None:
        """Run incarnation after incarnation of one unit until it is stopped or may not be restarted."""
        try:
            while True:
                crash: Exception | None = None
                try:
                    await unit.live()
                except* Exception as group:  # noqa: BLE001 - any crash counts; the actor's own line has its traceback
                    crash = _cause(group)
                if crash is None:
                    return
                if unit.stopping.is_set():
                    log.error("supervisor.stop_disturbed", unit=unit.name, error=_text(crash))
                    return
                if isinstance(crash, ConfigError) and unit.restarts == 0:
                    self._failure = self._failure or crash
                    self.stop()
                    return
                delay_s = self._next_delay(unit.name, crash)
                if delay_s is None:
                    return
                log.warning("supervisor.unit_restarting", unit=unit.name, error=_text(crash), delay_s=round(delay_s, 3))
                await unit.rest(delay_s)
        finally:
            unit.up.set()
            unit.down.set()

    def _next_delay(self, name: str, crash: Exception) -> float | None:
        """Seconds to wait before the restart that `crash` asks for; None when the intensity is exceeded."""
        now = trio.current_time()
        self._recent.append((now, not _retryable(crash)))
        while self._recent[0][0] < now - self._max_seconds:
            self._recent.popleft()
        count = sum(counts for _, counts in self._recent)
        if count <= self._max_restarts:
            delay_s = min(self._restart_delay_s * 2.0 ** (len(self._recent) - 1), self._max_seconds)
            return delay_s * (1 - self._jitter() / 2)
        text = f"{self.name}: {count} crashes within {self._max_seconds} s, the last in {name}: {_text(crash)}"
        if self._failure is None:
            self._failure = RestartIntensityExceeded(text)
            self._failure.__cause__ = crash
        log.critical("supervisor.escalated", supervisor=self.name, unit=name, error=text)
        self.stop()
        return None


class _Unit:
    """What is restarted together. `up`: every child could serve once, or never will; `down`: nothing of it runs now."""

    def __init__(self, group: Group) -> None:
        self.name = group.name
        self.up = trio.Event()
        self.down = trio.Event()
        self.stopping = trio.Event()
        self._make = group.children
        self.restarts = 0
        self._starting = trio.CancelScope()
        self._actors: dict[str, _Actor] = {}

    async def live(self) -> None:
        """One incarnation; a child's crash cancels its siblings and comes out as a group."""
        before = self._actors
        try:
            self._actors = {spec.name: _Actor(spec, self.stopping, self.restarts) for spec in self._make()}
        except Exception as error:
            incarnation = self.restarts + 1
            log.exception("supervisor.actor_crashed", actor=self.name, incarnation=incarnation, error=_text(error))
            raise
        for name, actor in self._actors.items():
            actor.last_error = before[name].last_error if name in before else None
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as self._starting:
                if self.stopping.is_set():
                    return
                for name, actor in self._actors.items():
                    await nursery.start(actor.live, name=name)  # so that a task tells whose it is
                self.up.set()
            await self.stopping.wait()
            for actor in reversed(self._actors.values()):
                await actor.stop()

    async def rest(self, delay_s: float) -> None:
        """Wait before the next incarnation, or shorter when told to stop."""
        self.restarts += 1
        for actor in self._actors.values():
            actor.state = "restarting"
        with trio.move_on_after(delay_s):
            await self.stopping.wait()

    async def stop(self) -> None:
        """Stop the current incarnation in reverse order and start no other; bounded by the children's drain budgets."""
        self.stopping.set()
        self._starting.cancel(reason=f"{self.name} is stopping")
        await self.down.wait()
        for actor in self._actors.values():
            actor.state = "stopped"

    def statuses(self) -> list[ActorStatus]:
        if not self._actors:
            return [ActorStatus(name=self.name, state="stopped" if self.stopping.is_set() else "starting")]
        return [status for actor in self._actors.values() for status in actor.statuses()]


class _Actor:
    """One incarnation of one child."""

    def __init__(self, spec: ChildSpec, stopping: trio.Event, restarts: int) -> None:
        self.state: Literal["starting", "running", "restarting", "stopped"] = "starting"
        self.last_error: str | None = None
        self._spec = spec
        self._stopping = stopping  # its unit's: from then on it may end
        self._restarts = restarts
        self._scope = trio.CancelScope()
        self._ended: trio.Event | None = None  # None while it was never started

    async def live(self, *, task_status: trio.TaskStatus[Any]) -> None:
        """Run the child; `started()` lifts the start deadline."""
        spec = self._spec
        self._ended = trio.Event()
        self._scope.deadline = trio.current_time() + spec.start_timeout_s
        try:
            with self._scope:
                await spec.start(task_status=_Started(self, task_status))
            if self._scope.cancelled_caught and self.state == "starting":
                raise StartTimeout(f"{spec.name} could not serve within {spec.start_timeout_s} s")  # noqa: TRY301
            if spec.restart == "permanent" and not self._stopping.is_set():
                await trio.lowlevel.checkpoint()  # it may have ended because a sibling crashed: then this is Cancelled
                raise SupervisionError(f"{spec.name} ended without being asked to")  # noqa: TRY301
        except* Exception as group:
            crash = _cause(group)
            self.last_error = _text(crash)
            line = log.bind(actor=spec.name, incarnation=self._restarts + 1, error=self.last_error)
            if isinstance(crash, ConfigError) and self._restarts == 0:
                line.error("supervisor.actor_misconfigured")
            elif _retryable(crash):
                line.warning("supervisor.actor_interrupted")
            else:
                line.exception("supervisor.actor_crashed", exc_info=group if len(group.exceptions) > 1 else crash)
            raise
        finally:
            self.state = "stopped"
            self._ended.set()

    def serving(self) -> None:
        """The child has reported that it can serve."""
        self.state = "running"
        self._scope.deadline = inf

    async def stop(self) -> None:
        """Ask, wait for the drain budget, then cancel."""
        if self._ended is None or self._ended.is_set():
            return
        if self._spec.drain is not None:
            self._spec.drain()
        with trio.move_on_after(self._spec.drain_s):
            await self._ended.wait()
        if not self._ended.is_set():
            log.warning("supervisor.drain_cut_short", actor=self._spec.name, drain_s=self._spec.drain_s)
            self._scope.cancel(reason=f"{self._spec.name} did not drain in time")
            await self._ended.wait()

    def statuses(self) -> list[ActorStatus]:
        spec = self._spec
        status = ActorStatus(
            name=spec.name,
            state=self.state,
            restarts=self._restarts,
            inbox=spec.inbox() if spec.inbox else None,
            inbox_size=spec.inbox_size,
            last_error=self.last_error,
        )
        return [status, *(spec.inner() if spec.inner else ())]


class _Started(trio.TaskStatus[Any]):
    """The child's `task_status`: tells the actor first, then whoever waits in `nursery.start`."""

    def __init__(self, actor: _Actor, task_status: trio.TaskStatus[Any]) -> None:
        self._actor = actor
        self._task_status = task_status

    def started(self, value: object = None) -> None:
        self._actor.serving()
        self._task_status.started(value)


def _group(child: Child) -> Group:
    """Every child as a group: a single one is a group of one, whose spec stays the same."""
    if isinstance(child, Group):
        return child
    if isinstance(child, Supervisor):  # its own children bound its start and its stop
        child = ChildSpec(
            child.name, child.run, start_timeout_s=inf, drain=child.stop, drain_s=inf, inner=child.statuses
        )
    spec = child
    return Group(spec.name, lambda: [spec])


def _cause(group: BaseExceptionGroup[Exception]) -> Exception:
    """The leaf that explains the rest: what the world did, else what crashed first."""
    leaves = list(_leaves(group))
    return next((error for error in leaves if _retryable(error)), leaves[0])


def _leaves(error: Exception | BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _retryable(error: Exception) -> bool:
    return isinstance(error, FluxoraError) and error.retryable


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
