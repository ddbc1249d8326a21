"""Readers of live events: sockets of one process, read as soon as anything comes, and every byte of it checked.

Each line of its input is answered with one:
  {"follows": [[stream id, ...], ...]}  open a reader for each ("*": all; of `sse` it is one); answered once each has
                                        been told that its subscriptions are made
  {"begin": true}                       what comes from now on is a new round; it is read as it comes
  Round                                 go on until that has come, or `within_s` is over: what it was like (Heard)
  {"seconds": N}                        only answer pings for so long: how many there were since this was asked last,
                                        and how many readers are left
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

import msgspec

from bench.child import say
from bench.latencies import bucket
from bench.openings import PING, PONG, Kind, opened
from bench.stories import Flaws, Story, chunks, frames, judge

AT_A_TIME = 100  # openings under way
INPUT = 0
ONCE = 1 << 16  # bytes read from one reader before the next has its turn
LINGER_S = 0.1  # after the last delivery that is due: whatever comes then is one too many


class Task(msgspec.Struct, kw_only=True):
    """Whom to listen to."""

    port: int
    kind: Kind


class Round(msgspec.Struct, kw_only=True):
    """What was published: position and stream of each event in order, and for each commit its last position and when.

    Times are those of CLOCK_MONOTONIC, which is one for all processes of a machine.
    """

    events: list[tuple[int, str]]
    commits: list[tuple[int, float]]
    within_s: float


class Heard(msgspec.Struct, kw_only=True):
    """What a round was like; `latencies`: deliveries by bucket (bench/latencies.py), from publishing to here.

    `differing`: readers that were told other bytes than the first one with the same subscriptions.
    """

    deliveries: int
    due: int
    flaws: Flaws
    differing: int
    gone: int  # readers whose connection has ended
    last_at: float
    cpu_s: float  # of this process, since the round began
    latencies: list[tuple[int, int]]


class Reader:
    """One socket; it has received `at` bytes of its story, and in them `told` whole messages."""

    __slots__ = ("at", "follows", "gone", "sock", "story", "told")

    def __init__(self, sock: socket.socket, follows: tuple[str, ...], story: Story) -> None:
        self.sock = sock
        self.follows = follows
        self.story = story
        self.at = self.told = 0
        self.gone = False


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(task)
    gc.disable()  # pauses of its own are not the server's
    while line := crowd.next_line():
        asked: dict[str, Any] = json.loads(line)
        if "follows" in asked:
            say(crowd.open(asked["follows"]))
        elif "begin" in asked:
            say(crowd.begin())
        elif "seconds" in asked:
            say(crowd.keep(asked["seconds"]))
        else:
            say(crowd.hear(msgspec.convert(asked, Round)))
        gc.collect()


class Crowd:
    """All readers, and what has come of a round."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._readers: dict[int, Reader] = {}
        self._epoll = select.epoll()
        self._samples: list[tuple[Story, int, int, float]] = []  # whose messages from, to, when
        self._heard = 0
        self._cpu_began = 0.0
        self._stories: dict[tuple[str, ...], Story] = {}
        self._input = b""
        self._pings = 0
        self._epoll.register(INPUT, select.EPOLLIN)

    def open(self, wanted: list[list[str]]) -> dict[str, int]:
        """Open readers."""
        for start in range(0, len(wanted), AT_A_TIME):
            for sock, follows in opened(self._task.port, self._task.kind, wanted[start : start + AT_A_TIME]):
                sock.settimeout(0)
                self._readers[sock.fileno()] = Reader(sock, follows, self._story(follows))
                self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._read(0)  # nobody may wait for a pong until all are open
        return {"opened": len(self._readers)}

    def next_line(self) -> bytes:
        """The next line of input, b"" at its end; readers are read until it is here."""
        while b"\n" not in self._input:
            if self._read(-1):
                data = os.read(INPUT, ONCE)
                if not data:
                    return b""
                self._input += data
        line, _, self._input = self._input.partition(b"\n")
        return line

    def _story(self, follows: tuple[str, ...]) -> Story:
        walk = frames if self._task.kind == "ws" else chunks
        return self._stories.setdefault(follows, Story(walk))

    def begin(self) -> dict[str, bool]:
        """Forget the last round."""
        self._stories.clear()
        self._samples.clear()
        self._heard = 0
        self._cpu_began = time.process_time()
        for reader in self._readers.values():
            reader.story, reader.at, reader.told = self._story(reader.follows), 0, 0
        return {"begun": True}

    def hear(self, wanted: Round) -> Heard:
        """Read until everything is here, or time is up, and a little longer."""
        due_of = {follows: _due(follows, wanted) for follows in self._stories}
        due = sum(len(due_of[reader.follows]) for reader in self._readers.values())
        until = time.monotonic() + wanted.within_s
        while self._heard < due and (left := until - time.monotonic()) > 0:
            self._read(left)
        until = time.monotonic() + LINGER_S
        while (left := until - time.monotonic()) > 0:
            self._read(left)
        cpu_s = time.process_time() - self._cpu_began
        flaws = Flaws()
        alike = Counter((id(reader.story), reader.follows, reader.told) for reader in self._readers.values())
        stories = {id(reader.story): reader.story for reader in self._readers.values()}
        shared = {id(story) for story in self._stories.values()}
        for (which, follows, told), readers in alike.items():
            flaws.add(judge(stories[which].positions[:told], due_of[follows]), readers)
        return Heard(
            deliveries=self._heard,
            due=due,
            flaws=flaws,
            differing=sum(id(reader.story) not in shared for reader in self._readers.values()),
            gone=sum(reader.gone for reader in self._readers.values()),
            last_at=max((at for *_, at in self._samples), default=0.0),
            cpu_s=cpu_s,
            latencies=_latencies(self._samples, wanted),
        )

    def _read(self, timeout_s: float) -> bool:
        """Take in what has come, or wait for it (-1: without end); True where there is input, too."""
        readers, samples = self._readers, self._samples
        asked = False
        for fd, _ in self._epoll.poll(timeout_s):
            if fd == INPUT:
                asked = True
                continue
            reader = readers[fd]
            data = _received(reader.sock)
            if not data:
                if data is not None:
                    self._lose(fd, reader)
                continue
            if data.startswith(PING) and data == PING * (len(data) // len(PING)):
                self._pings += len(data) // len(PING)
                reader.sock.send(PONG)
                continue
            at = time.monotonic()
            if not reader.story.take(reader.at, data):
                reader.story = reader.story.apart(reader.at)
                reader.story.take(reader.at, data)
            reader.at += len(data)
            told = reader.story.told(reader.at, reader.told)
            if told > reader.told:
                samples.append((reader.story, reader.told, told, at))
                self._heard += told - reader.told
                reader.told = told
        return asked

    def _lose(self, fd: int, reader: Reader) -> None:
        reader.gone = True
        self._epoll.unregister(fd)

    def keep(self, seconds: float) -> dict[str, int]:
        """Answer pings; nothing else is expected."""
        self.begin()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._read(left):
                sys.exit()  # one thing is asked for at a time, so this is the end
        gone = sum(reader.gone for reader in self._readers.values())
        pings, self._pings = self._pings, 0
        return {"pings": pings, "strange": self._heard, "left": len(self._readers) - gone}


def _received(sock: socket.socket) -> bytes | None:
    """What has come, b"" where the connection has ended, None where nothing is there after all."""
    try:
        return sock.recv(ONCE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _due(follows: tuple[str, ...], wanted: Round) -> list[int]:
    return [position for position, stream_id in wanted.events if stream_id in follows or "*" in follows]


def _latencies(samples: list[tuple[Story, int, int, float]], wanted: Round) -> list[tuple[int, int]]:
    published: dict[int, float] = {}
    commits = iter(wanted.commits)
    last, when = next(commits)
    for position, _ in wanted.events:
        while position > last:
            last, when = next(commits)
        published[position] = when
    counted: Counter[int] = Counter()
    for story, start, end, at in samples:
        since = Counter(published.get(position) for position in story.positions[start:end])
        for began, deliveries in since.items():
            if began is not None:  # else it is none of this round's, and judged for that
                counted[bucket(at - began)] += deliveries
    return list(counted.items())


if __name__ == "__main__":
    main()
