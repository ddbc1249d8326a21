"""One run: the processes that load the system, the legs that they play, and what is found when they have ended."""

from __future__ import annotations

import http.client
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import msgspec

from bench.child import Child
from bench.harness import Run
from bench.latencies import percentile_ms
from bench.profiles import followers_process, generator_process, mix, readback, receivers_process, stages, system
from bench.profiles.followers_process import End, Story, Told, Until, Wanted
from bench.profiles.generator_process import Leg, Window
from bench.profiles.measures import Measures
from bench.profiles.progress import Progress
from bench.profiles.readback import Reader, Unreadable
from bench.profiles.stages import Stage
from bench.profiles.stopping import Stopping
from bench.profiles.system import System
from bench.profiles.traffic import RECEIVERS, REQUESTS, TOLD
from bench.profiles.warm_up import fill
from bench.profiles.watch import Watch
from bench.stories import Flaws

LEAD_S = 0.5  # from the order to the first arrival
SAMPLE_S = 1.0
SILENCE_S = 30.0  # of a load generator: it should say something each second
OPEN_S = 60.0
HEAR_S = 30.0  # longest that followers wait for what is due to them
AFTER_S = 60.0


class Drive:
    """A run under way; a context manager that ends all that it has started. `full`: caches are filled before."""

    def __init__(
        self, run: Run, target: System, *, weights: Mapping[str, float], stopping: Stopping, full: bool = False
    ) -> None:
        options = run.options
        self.measures = Measures()
        self.stopping = stopping
        self.requests = {name: weight for name, weight in weights.items() if name in REQUESTS}
        self._followers = {name: weight for name, weight in weights.items() if name in TOLD and options.followers}
        self._run = run
        self._system = target
        self._full = full
        self._legs = 0
        self._most = 0.0  # the highest share of the followers that was wanted so far: they come, and stay
        self._stack = ExitStack()
        self._progress = Progress()
        self._reader = Reader(target.endpoint, target.headers)
        self.options = options

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._reader.close)
            with self._run.stage("prepare"):
                self._scene = system.scene(self._system, self._reader, self.options.seed)
            if self._full:
                with self._run.stage("fill the caches"):
                    streams, events = fill(self._scene, self._reader)
                self._run.note(
                    f"before the load {streams} streams were listed and {events} events pushed, to fill caches"
                )
            with self._run.stage("begin"):
                self._before = self._reader.position()
                self._generators = [self._child(stack, generator_process.__name__, nth) for nth in self._each()]
                self._crowds = (
                    [self._child(stack, followers_process.__name__, nth) for nth in self._each()]
                    if self._followers.keys() - RECEIVERS
                    else []
                )
                self._listeners = {f"followers {nth}": crowd for nth, crowd in enumerate(self._crowds, 1)}
                if endpoints := self._endpoints():
                    receivers = self._child(stack, receivers_process.__name__, 0)
                    self._listeners["receivers"] = receivers
                    receivers.tell(Wanted(wanted=endpoints))
                    while self.measures.tried.total() < sum(endpoints.values()):
                        self.measures.told("receivers", _told(receivers.read(within_s=OPEN_S)))
            self._watch = stack.enter_context(Watch(self._system, self._reader, self._scene.zero, self._note))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.clear()
        self._stack.close()

    def leg(self, title: str, steps: Sequence[Stage]) -> Measures:
        """Play stages of arrivals a second to their end, or until it is to stop; what was measured in them alone.

        Raises:
            ChildFailed: a process of the run ended; its last words are in the error.
        """
        own = Measures()
        self._legs += 1
        begins = self.now() + LEAD_S
        with self._run.stage(title):
            leg = Leg(begins=begins, stages=list(steps), weights=self.requests, seed=self.options.seed + self._legs)
            for generator in self._generators:
                generator.tell(leg)
            self._play(_Playing(title, begins, steps, [deque() for _ in self._generators]), own)
        self._progress.clear()
        return own

    def finish(self) -> None:
        """Have the followers hear the last of it, read the log back, and hold both to it.

        Raises:
            ChildFailed: a process of the followers ended.
        """
        with self._run.stage("read the log back"):
            try:
                rows = self._reader.log(self._before)
            except (OSError, http.client.HTTPException, Unreadable) as error:
                self._run.equal("the log can be read back", f"no: {type(error).__name__}: {error}", "yes")
                return
            lasts = readback.lasts(rows)
            stories = [story for who in self._listeners for story in self._hear(who, lasts)]
            flaws = Flaws()
            flaws.add(readback.of_writes(self.measures.stored, rows))
            flaws.add(readback.of_followers([one for one in stories if one.scenario not in RECEIVERS], rows))
            sent = readback.of_followers([one for one in stories if one.scenario in RECEIVERS], rows)
        self.measures.flaws.update(
            lost=flaws.lost + sent.lost,
            doubled=flaws.doubled,
            redelivered=sent.doubled,
            disordered=sum(one.disordered + one.strange for one in (flaws, sent)),
        )
        self._run.figure("events in the log", len(rows), "")
        self._run.figure("writes that were answered as stored", len(self.measures.stored), "")
        self._run.figure("followers, all that there were", len(stories) - self.measures.endpoints, "")
        if self.measures.endpoints:
            self._run.figure("webhook endpoints", self.measures.endpoints, "")

    @property
    def taking_part(self) -> dict[str, float]:
        """The scenarios and their weights."""
        return {**self.requests, **self._followers}

    def _child(self, stack: ExitStack, module: str, nth: int) -> Child:
        options = self.options
        connections = max(1, options.connections // options.generators)
        task = generator_process.Task(nth=nth, of=options.generators, connections=connections)
        child = stack.enter_context(Child(module, task, log=self._system.folder / f"load-{nth}.log"))
        child.tell(self._scene)
        return child

    def _each(self) -> range:
        return range(self.options.generators)

    def now(self) -> float:
        """The time of the run, in seconds."""
        return time.monotonic() - self._scene.zero

    def note(self, text: str) -> None:
        """Say something that a reader of the figures must know."""
        self._run.note(text)

    def _note(self, name: str, at: float, value: float) -> None:
        self.measures.series[name].append((at, value))

    def _play(self, playing: _Playing, own: Measures) -> None:
        """Take in what the processes say until every generator is through."""
        asked, heard = False, time.monotonic()
        sample_at = 0.0
        while not playing.over:
            if self.stopping and not asked:
                asked = True
                for generator in self._generators:
                    generator.tell({"stop": True})
            ready, _, _ = select.select([*self._generators, *self._listeners.values()], [], [], 0.1)
            if any(generator in ready for generator in self._generators):
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                raise TimeoutError(f"the load generators have said nothing for {SILENCE_S:.0f} s")
            for nth, generator in enumerate(self._generators):
                playing.waiting[nth].extend(_window(line) for line in generator.lines())
            self._told([self.measures, own])
            for windows in playing.together():
                middle = (windows[0].began + windows[0].ended) / 2
                target = stages.target_at(playing.steps, middle - playing.begins)
                for measures in (self.measures, own):
                    measures.windows(windows, target=target)
            if time.monotonic() >= sample_at:
                sample_at = time.monotonic() + SAMPLE_S
                self._want(playing)
                self._watch.sample(self.connections)
                self._show(playing)

    def _told(self, several: Sequence[Measures]) -> None:
        for who, child in self._listeners.items():
            for line in child.lines():
                for measures in several:
                    measures.told(who, _told(line))

    @property
    def connections(self) -> int:
        """Those that are held to the server, as far as was told; those to read and watch it among them."""
        requests = self.measures.series.get("Connections: requests", [(0.0, 0.0)])[-1][1]
        live = self.measures.all_live - self.measures.endpoints
        return int(requests) + live + self.measures.deliveries_on + 1

    def _want(self, playing: _Playing) -> None:
        at = max(0.0, self.now() - playing.begins)  # those that a jump brings are there before the first arrival
        share = stages.target_at(playing.steps, at) / stages.peak(playing.steps)
        self._most = max(self._most, share)
        wanted = self._shares(self._most) if self._crowds else {}
        for nth, crowd in enumerate(self._crowds):
            own = {
                name: count // len(self._crowds) + (nth < count % len(self._crowds))
                for name, count in wanted.items()
                if name not in RECEIVERS
            }
            crowd.tell(Wanted(wanted=own))

    def _shares(self, of: float) -> dict[str, int]:
        """How many of each scenario that is told of events, at a share of the load."""
        return mix.shares(self._followers, round(self.options.followers * of))

    def _endpoints(self) -> dict[str, int]:
        """Those of the peak, one at least: they are there from the beginning on."""
        shares = self._shares(1.0) if self._followers else {}
        return {name: max(1, count) for name, count in shares.items() if name in RECEIVERS}

    def _hear(self, who: str, lasts: dict[str, int]) -> list[Story]:
        child = self._listeners[who]
        child.tell(Until(lasts=lasts, within_s=HEAR_S))
        while True:
            line = child.read(within_s=HEAR_S + AFTER_S)
            if "stories" in line:
                end = msgspec.convert(line, End, str_keys=True)
                self.measures.told(who, end.told)
                return end.stories
            self.measures.told(who, _told(line))

    def _show(self, playing: _Playing) -> None:
        measures, at = self.measures, max(0.0, self.now() - playing.begins)
        answers = measures.series.get("Throughput, /s: answers", [(0.0, 0.0)])[-1][1]
        p99 = percentile_ms(measures.last, 0.99) if measures.last else 0.0
        cpu = sum(points[-1][1] for name, points in measures.series.items() if name.startswith("CPU, share"))
        length, target = stages.length_s(playing.steps), stages.target_at(playing.steps, at)
        self._progress.show(
            f"{playing.title} {min(at, length):.0f}/{length:.0f} s  {answers:.0f}/s of {target:.0f}  p99 {p99:.0f} ms  "
            f"errors {measures.all_errors}  followers {measures.all_live}  system {cpu * 100:.0f} % of a core"
        )


class _Playing:
    """A leg under way: windows of each generator that wait for those of the others."""

    def __init__(self, title: str, begins: float, steps: Sequence[Stage], waiting: list[deque[Window]]) -> None:
        self.title = title
        self.begins = begins
        self.steps = steps
        self.waiting = waiting
        self._over = [False] * len(waiting)

    @property
    def over(self) -> bool:
        """Whether every generator has said its last window."""
        return all(self._over)

    def together(self) -> list[list[Window]]:
        """The windows of the same second of each generator that is not over, as far as they are there."""
        found = []
        while any(self.waiting) and all(queue or over for queue, over in zip(self.waiting, self._over, strict=True)):
            windows = []
            for nth, queue in enumerate(self.waiting):
                if queue:
                    windows.append(queue.popleft())
                    self._over[nth] = windows[-1].over
            found.append(windows)
        return found


def _told(line: dict[str, Any]) -> Told:
    return msgspec.convert(line, Told, str_keys=True)


def _window(line: dict[str, Any]) -> Window:
    return msgspec.convert(line, Window, str_keys=True)
