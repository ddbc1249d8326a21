"""Followers of live events: as many as are wanted at each moment, each checked on its own.

The first line of its input is the scene; then:
  Wanted     open or close followers until there are so many; a Told says once a second how it is
  Until      read on until each has the last event that is due to it, or time is up; answered with one End
"""

from __future__ import annotations

import gc
import random
import resource
import select
import signal
import socket
import time
from collections import Counter
from typing import Any

import msgspec

from bench.child import Input, say
from bench.latencies import bucket
from bench.profiles.endpoint import received
from bench.profiles.scene import Scene
from bench.profiles.traffic import FOLLOWERS
from bench.profiles.traffic.forms import Followers, Message, Sort, Wrong, one_in

WINDOW_S = 1.0
AT_A_TIME = 50  # openings in one turn, so that the others are read in between
OPEN_WITHIN_S = 30.0
LINGER_S = 0.2  # after the last event that is due: whatever comes then is one too many
ALL_ONE_IN = 10  # of so many of a scenario the first follows everything, the others a stream each


class Wanted(msgspec.Struct, kw_only=True):
    """How many followers of each scenario there shall be."""

    wanted: dict[str, int]


class Until(msgspec.Struct, kw_only=True):
    """The last position of each stream ("*": of all), and how long to wait for it."""

    lasts: dict[str, int]
    within_s: float


class Count(msgspec.Struct):
    """What a window saw of one scenario; `tried`: openings, `live`: followers that have begun, at its end."""

    tried: int = 0
    live: int = 0
    deliveries: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=Counter)
    latencies: dict[int, int] = msgspec.field(default_factory=Counter)


class Told(msgspec.Struct, kw_only=True):
    """A second; times are those of the run. `deliveries_on`: the server's connections to a receiver."""

    ended: float
    counts: dict[str, Count]
    busy: float
    deliveries_on: int | None = None


class Story(msgspec.Struct):
    """What one follower was told: positions as runs, first and last, in the order in which they came.

    `whole`: it was there to the end, so that everything above `start` was due to it, and not only what it was told.
    """

    scenario: str
    follows: str
    start: int
    runs: list[tuple[int, int]]
    whole: bool


class End(msgspec.Struct):
    """Every follower that there was, and whoever was still opening."""

    stories: list[Story]
    told: Told


class Follower:
    """One connection. Its buffer begins with the message that is not whole yet."""

    __slots__ = ("buffer", "form", "opened", "sock", "story", "welcomed")

    def __init__(self, form: Followers, sock: socket.socket, follows: str) -> None:
        self.form = form
        self.sock = sock
        self.opened = time.monotonic()
        self.buffer = bytearray()
        self.welcomed = False
        self.story = Story(form.name, follows, -1, [], whole=False)

    @property
    def begun(self) -> bool:
        """Whether it was told where it begins."""
        return self.story.start >= 0

    @property
    def last(self) -> int:
        """The position of the event that it was told last, or where it begins."""
        return self.story.runs[-1][1] if self.story.runs else self.story.start


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the profile ends it, in order
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()  # pauses of its own are not the server's
    lines = Input()
    crowd = Crowd(msgspec.json.decode(lines.next_line(), type=Scene), lines)
    while line := crowd.next_line():
        asked: dict[str, Any] = msgspec.json.decode(line)
        if "wanted" in asked:
            crowd.wanted = msgspec.convert(asked, Wanted).wanted
        else:
            say(crowd.end(msgspec.convert(asked, Until)))


class Crowd:
    """All followers of this process."""

    def __init__(self, scene: Scene, asked: Input) -> None:
        self._scene = scene
        self._forms = {name: form() for name, form in FOLLOWERS.items()}
        self.wanted: dict[str, int] = {}
        self._of: dict[str, list[Follower]] = {name: [] for name in self._forms}
        self._followers: dict[int, Follower] = {}
        self._ended: list[Story] = []
        self._epoll = select.epoll()
        self._epoll.register(asked, select.EPOLLIN)
        self._chance = random.Random(scene.seed)
        self._input = asked
        self._opened: Counter[str] = Counter()
        self._reset()

    def next_line(self) -> bytes:
        """The next line of input, b"" at its end; until it is here, followers are read, opened and closed."""
        while (line := self._input.line()) is None:
            left = self._began + WINDOW_S - time.monotonic()
            if self._turn(0.0 if self._settle() else max(0.0, left)) and not self._input.take():
                return b""
            if left <= 0:
                self._give_up()
                say(self._told())
        return line

    def end(self, until: Until) -> End:
        """Read on to the last event, and tell everything."""
        deadline = time.monotonic() + until.within_s
        while time.monotonic() < deadline and any(
            not one.begun or one.last < until.lasts.get(one.story.follows, 0) for one in self._followers.values()
        ):
            self._turn(0.1)
        deadline = time.monotonic() + LINGER_S
        while (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        for follower in [one for one in self._followers.values() if not one.begun]:
            self._fail(follower, "not begun before the end")
        told = self._told()
        for follower in list(self._followers.values()):
            follower.story.whole = True
            self._close(follower)
        stories = [story for story in self._ended if story.start >= 0]
        return End(stories, told)

    def _reset(self) -> None:
        self._began, self._cpu_s = time.monotonic(), time.process_time()
        self._counts = {name: Count() for name in self._forms}

    def _told(self) -> Told:
        now = time.monotonic()
        for name, followers in self._of.items():
            self._counts[name].live = sum(follower.begun for follower in followers)
        busy = (time.process_time() - self._cpu_s) / max(1e-3, now - self._began)
        told = Told(ended=now - self._scene.zero, counts=self._counts, busy=busy)
        self._reset()
        gc.collect(0)
        return told

    def _settle(self) -> bool:
        """Open or close a few, towards what is wanted; True where there is more to do."""
        left = AT_A_TIME
        for name, wanted in self.wanted.items():
            followers = self._of[name]
            while left and len(followers) != wanted:
                left -= 1
                if len(followers) > wanted:
                    self._close(followers[-1])
                elif not self._open(name):
                    return False  # the next turn tries again
        return not left

    def _open(self, name: str) -> bool:
        counts, scene, form = self._counts[name], self._scene, self._forms[name]
        everything = self._opened[name] % ALL_ONE_IN == 0 or not scene.hot
        self._opened[name] += 1
        follows = "*" if everything else one_in(self._chance, scene.hot)
        counts.tried += 1
        try:
            sock = scene.endpoint.connect()
            sock.send(form.hello(scene, follows))
        except OSError as error:
            counts.errors[f"{type(error).__name__} while connecting"] += 1
            return False
        follower = Follower(form, sock, follows)
        self._followers[sock.fileno()] = follower
        self._of[name].append(follower)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return True

    def _close(self, follower: Follower) -> None:
        del self._followers[follower.sock.fileno()]
        self._epoll.unregister(follower.sock.fileno())
        self._of[follower.form.name].remove(follower)
        self._ended.append(follower.story)
        follower.sock.close()

    def _fail(self, follower: Follower, why: str) -> None:
        self._counts[follower.form.name].errors[why] += 1
        self._close(follower)

    def _give_up(self) -> None:
        now = time.monotonic()
        for follower in list(self._followers.values()):
            if not follower.begun and now - follower.opened > OPEN_WITHIN_S:
                self._fail(follower, f"not begun within {OPEN_WITHIN_S:.0f} s")

    def _turn(self, seconds: float) -> bool:
        """Read whoever was told something within so long; True where there is input, too."""
        asked = False
        for fd, _ in self._epoll.poll(seconds):
            if fd == self._input.fileno():
                asked = True
                continue
            follower = self._followers[fd]
            data = received(follower.sock)
            at = time.monotonic() - self._scene.zero
            if data is None:
                continue
            if not data:
                self._fail(follower, "the connection ended")
                continue
            try:
                self._take(follower, data, at)
            except (Wrong, ValueError) as error:
                self._fail(follower, str(error))
        return asked

    def _take(self, follower: Follower, data: bytes, at: float) -> None:
        buffer = follower.buffer
        buffer += data
        if not follower.welcomed:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            answer = follower.form.welcome(bytes(buffer[:end]), follower.story.follows)
            if answer:
                follower.sock.send(answer)
            follower.welcomed = True
            del buffer[: end + 4]
        taken = 0
        for message in follower.form.messages(buffer):
            taken = message.end
            if message.sort is Sort.EVENT:
                self._heard(follower, message, at)
            elif message.sort is Sort.START:
                follower.story.start = message.position
            elif message.sort is Sort.PING:
                follower.sock.send(follower.form.pong)
            elif message.sort is Sort.END:
                raise Wrong("the server closed it")
        del buffer[:taken]

    def _heard(self, follower: Follower, message: Message, at: float) -> None:
        counts, runs = self._counts[follower.form.name], follower.story.runs
        counts.deliveries += 1
        if runs and message.position == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], message.position)
        else:
            runs.append((message.position, message.position))
        due = self._scene.due_of(message.event_id)
        if due is not None:
            counts.latencies[bucket(at - due)] += 1


if __name__ == "__main__":
    main()
