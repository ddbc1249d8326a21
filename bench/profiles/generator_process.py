"""A load generator: sends each request when it is due, however long the answers before it take, and counts latencies
from there. Nothing in it waits for a single connection.

The first line of its input is the scene; then, each answered by a Window a second:
  Leg               send what is due in it; after its end a Window with `over`, once everything is answered or given up
  {"stop": true}    no more arrivals in this leg; what is on its way is still waited for
"""

from __future__ import annotations

import gc
import random
import select
import signal
import sys
import time
from collections import Counter
from typing import Any

import msgspec

from bench.child import Input, say
from bench.latencies import bucket
from bench.profiles import stages
from bench.profiles.lanes import Job, Lanes
from bench.profiles.mix import Chooser
from bench.profiles.scene import Scene
from bench.profiles.stages import Stage
from bench.profiles.traffic import REQUESTS

WINDOW_S = 1.0
GRACE_S = 35.0  # after the last arrival: an answer that takes longer is one that never came
GIVEN_UP = "no answer before the end"


class Task(msgspec.Struct, kw_only=True):
    """Which part of the arrivals is its own: those whose number leaves `nth` when divided by `of`."""

    nth: int
    of: int
    connections: int


class Leg(msgspec.Struct, kw_only=True):
    """Stages of arrivals a second, from a moment of the run on, and the weights of the scenarios."""

    begins: float
    stages: list[Stage]
    weights: dict[str, float]
    seed: int


class Done(msgspec.Struct):
    """What a window saw of one scenario; `dropped` were never sent, since too many waited."""

    due: int = 0
    answered: int = 0
    dropped: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=Counter)
    latencies: dict[int, int] = msgspec.field(default_factory=Counter)
    stored: list[str] = []


class Window(msgspec.Struct, kw_only=True):
    """A second, or the rest of one; times are those of the run.

    `busy`: the share of a core that this process used; `late_s`: how far behind its time it sent a request at most;
    `oldest_s`: for how long the oldest request has been without an answer.
    """

    began: float
    ended: float
    done: dict[str, Done]
    busy: float
    late_s: float
    oldest_s: float
    connections: int
    over: bool = False


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the profile ends it, in order
    task = msgspec.json.decode(sys.argv[1], type=Task)
    gc.disable()  # pauses of its own are not the server's
    asked = Input()
    generator = Generator(task, msgspec.json.decode(asked.next_line(), type=Scene), asked)
    while line := generator.next_line():
        order: dict[str, Any] = msgspec.json.decode(line)
        if "stop" not in order:  # else it came when the leg was over already
            generator.play(msgspec.convert(order, Leg))
        gc.collect()


class Generator:
    """One process's part of the load."""

    def __init__(self, task: Task, scene: Scene, asked: Input) -> None:
        self._task = task
        self._scene = scene
        self._epoll = select.epoll()
        self._epoll.register(asked, select.EPOLLIN)
        chance = random.Random(scene.seed + task.nth)
        self._scenarios = {name: form(scene, chance) for name, form in REQUESTS.items()}
        shared = Lanes(scene.endpoint, self._epoll, task.connections, self._ended)
        self._lanes = {
            name: shared
            if one.connections is None
            else Lanes(scene.endpoint, self._epoll, one.connections, self._ended)
            for name, one in self._scenarios.items()
        }
        self._pools = list({id(lanes): lanes for lanes in self._lanes.values()}.values())
        self._input = asked
        self._reset()

    def next_line(self) -> bytes:
        """The next line of input, b"" at its end; connections are looked after until it is here."""
        while (line := self._input.line()) is None:
            if self._turn(1.0) and not self._input.take():
                return b""
            self._tidy()
        return line

    def play(self, leg: Leg) -> None:
        """Send what is due, and say a window each second."""
        chooser = Chooser(leg.weights, leg.seed)
        dues = stages.arrivals(leg.stages)
        due, number = next(dues, None), 0
        ends = leg.begins + stages.length_s(leg.stages)
        self._reset(max(leg.begins, self._now()))
        while True:
            now = self._now()
            while due is not None and leg.begins + due <= now:
                name = chooser.draw()
                if self._owns(name, number):
                    self._send(name, leg.begins + due, now)
                due, number = next(dues, None), number + 1
            if now - self._began >= WINDOW_S:
                self._tell()
            if due is None and now >= ends and (not self._unanswered or now > ends + GRACE_S):
                break
            wait = min(
                self._began + WINDOW_S, ends if now < ends else now + 1, now + 1 if due is None else leg.begins + due
            )
            if self._turn(max(0.0, wait - now)) and not self._input.take():
                sys.exit()
            if self._input.line() is not None:  # there is one thing that is said within a leg
                due, ends = None, self._now()
        for pool in self._pools:
            pool.give_up(GIVEN_UP)
        self._tell(over=True)

    def _owns(self, name: str, number: int) -> bool:
        """Requests with connections of their own are the first process's, so that there are no more of them."""
        if self._scenarios[name].connections is not None:
            return self._task.nth == 0
        return number % self._task.of == self._task.nth

    @property
    def _unanswered(self) -> int:
        return sum(pool.unanswered for pool in self._pools)

    def _now(self) -> float:
        return time.monotonic() - self._scene.zero

    def _reset(self, began: float = 0.0) -> None:
        self._began, self._cpu_s, self._late_s = began, time.process_time(), 0.0
        self._done = {name: Done() for name in self._scenarios}

    def _send(self, name: str, due: float, now: float) -> None:
        done = self._done[name]
        done.due += 1
        self._late_s = max(self._late_s, now - due)
        if not self._lanes[name].put(Job(name, due, self._scenarios[name].ask(due))):
            done.dropped += 1

    def _ended(self, job: Job, at: float, wrong: str | None, stored: tuple[str, ...]) -> None:
        done = self._done[job.scenario]
        done.answered += 1
        if wrong is not None:
            done.errors[wrong] += 1
        else:
            done.latencies[bucket(at - self._scene.zero - job.due)] += 1
            done.stored += stored

    def _turn(self, seconds: float) -> bool:
        """Take in what has come within so long; True where there is input, too."""
        # epoll counts in milliseconds; select, which does not, waits for the one descriptor that stands for all.
        select.select([self._epoll], [], [], seconds)
        asked = False
        for fd, event in self._epoll.poll(0):
            if fd == self._input.fileno():
                asked = True
            else:
                _ = any(pool.ready(fd, event) for pool in self._pools)
        return asked

    def _tidy(self) -> None:
        for pool in self._pools:
            pool.tidy()

    def _tell(self, *, over: bool = False) -> None:
        """Say what this window was like, and begin the next."""
        self._tidy()
        now = self._now()
        dues = [due for pool in self._pools if (due := pool.oldest_due()) is not None]
        say(
            Window(
                began=self._began,
                ended=now,
                done={name: done for name, done in self._done.items() if done.due or done.answered},
                busy=(time.process_time() - self._cpu_s) / max(1e-3, now - self._began),
                late_s=self._late_s,
                oldest_s=now - min(dues) if dues else 0.0,
                connections=sum(pool.open for pool in self._pools),
                over=over,
            )
        )
        self._reset(now)


if __name__ == "__main__":
    main()
