"""Connections of a load generator: one request at a time on each, as many as it takes, and those who wait for one."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from bench.profiles.endpoint import Endpoint, Malformed, answer, received
from bench.profiles.traffic.forms import Asked, Wrong

ANSWER_WITHIN_S = 30.0
IDLE_S = 8.0  # servers close idle connections, and one that is just being closed must not be used
MOST_WAITING = 10_000

Ended = Callable[["Job", float, str | None, tuple[str, ...]], None]
"""Told of each request's end: the job, when, what was wrong with it (None: nothing), and what it has stored."""


class Job:
    """One request: of which scenario, when it was due in the run's time, and how it looks."""

    __slots__ = ("asked", "due", "scenario")

    def __init__(self, scenario: str, due: float, asked: Asked) -> None:
        self.scenario = scenario
        self.due = due
        self.asked = asked


class _Lane:
    __slots__ = ("buffer", "job", "since", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.unsent = b""
        self.job: Job | None = None
        self.since = 0.0


class Lanes:
    """Up to `most` connections. Jobs are sent at once where one is free, else in their order when one becomes so."""

    def __init__(self, endpoint: Endpoint, epoll: select.epoll, most: int, ended: Ended) -> None:
        self._endpoint = endpoint
        self._epoll = epoll
        self._most = most
        self._ended = ended
        self._all: dict[int, _Lane] = {}
        self._idle: list[_Lane] = []
        self._waiting: deque[Job] = deque()
        self._going_on = False

    @property
    def open(self) -> int:
        """Connections."""
        return len(self._all)

    @property
    def unanswered(self) -> int:
        """Jobs that are on their way, or wait."""
        return len(self._waiting) + len(self._all) - len(self._idle)

    def oldest_due(self) -> float | None:
        """When the job was due that has been without an answer for longest."""
        dues = [lane.job.due for lane in self._all.values() if lane.job is not None]
        return min([*dues, *(job.due for job in list(islice(self._waiting, 1)))], default=None)

    def put(self, job: Job) -> bool:
        """Send it, or have it wait; False, and nothing done, where too many wait."""
        lane = self._free()
        if lane is not None:
            self._send(lane, job)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append(job)
        else:
            return False
        return True

    def ready(self, fd: int, event: int) -> bool:
        """Something has come for one of these connections, or it takes more; False where the socket is none of them."""
        lane = self._all.get(fd)
        if lane is None:
            return False
        if event & select.EPOLLOUT and lane.unsent:
            self._push(lane)
        if event & ~select.EPOLLOUT:
            self._take(lane)
        return True

    def tidy(self) -> None:
        """Once a second: give up what was not answered in time, and let go of connections that nobody uses."""
        now = time.monotonic()
        for lane in list(self._all.values()):
            if lane.job is not None and now - lane.since > ANSWER_WITHIN_S:
                self._drop(lane, f"no answer within {ANSWER_WITHIN_S:.0f} s")
        while self._idle and now - self._idle[0].since > IDLE_S:
            self._close(self._idle.pop(0))

    def give_up(self, reason: str) -> None:
        """End every job, and every connection that has one."""
        waiting, self._waiting = self._waiting, deque()
        now = time.monotonic()
        for job in waiting:
            self._ended(job, now, reason, ())
        for lane in [lane for lane in self._all.values() if lane.job is not None]:
            self._drop(lane, reason)

    def _free(self) -> _Lane | None:
        """A connection without a job: the one that was used last, so that those that are not needed can be let go."""
        if self._idle:
            return self._idle.pop()
        if len(self._all) >= self._most:
            return None
        try:
            sock = self._endpoint.connect()
        except OSError:
            return None if self._all else _Lane(socket.socket())  # which fails at once, and is told
        lane = _Lane(sock)
        self._all[sock.fileno()] = lane
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return lane

    def _send(self, lane: _Lane, job: Job) -> None:
        lane.job, lane.since, lane.unsent = job, time.monotonic(), job.asked.octets
        self._push(lane)

    def _push(self, lane: _Lane) -> None:
        try:
            sent = lane.sock.send(lane.unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._drop(lane, f"{type(error).__name__} while sending")
            return
        lane.unsent = lane.unsent[sent:]
        self._epoll.modify(lane.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if lane.unsent else 0))

    def _take(self, lane: _Lane) -> None:
        data = received(lane.sock)
        if data is None:
            return
        if not data:
            self._drop(lane, "the connection ended before the answer")
            return
        lane.buffer += data
        try:
            found = answer(lane.buffer)
        except Malformed as error:
            self._drop(lane, str(error))
            return
        if found is None:
            return
        status, body, kept = found
        job, lane.job = lane.job, None
        lane.buffer.clear()
        if job is None:
            self._idle.remove(lane)
            self._close(lane)
            return
        self._judge(job, status, body)
        if not kept:
            self._close(lane)
        else:
            lane.since = time.monotonic()
            self._idle.append(lane)
        self._go_on()

    def _judge(self, job: Job, status: int, body: bytes) -> None:
        now = time.monotonic()
        try:
            stored = job.asked.judge(status, body)
        except Wrong as wrong:
            self._ended(job, now, str(wrong), ())
        else:
            self._ended(job, now, None, stored)

    def _go_on(self) -> None:
        """Send what waits, where a connection is free. (What fails at once leads here again.)"""
        if self._going_on:
            return
        self._going_on = True
        while self._waiting and (lane := self._free()) is not None:
            self._send(lane, self._waiting.popleft())
        self._going_on = False

    def _drop(self, lane: _Lane, reason: str) -> None:
        """Close a connection; its job, if it has one, has failed."""
        job, lane.job = lane.job, None
        if job is None and lane in self._idle:
            self._idle.remove(lane)
        self._close(lane)
        if job is not None:
            self._ended(job, time.monotonic(), reason, ())
        self._go_on()

    def _close(self, lane: _Lane) -> None:
        fd = lane.sock.fileno()
        if self._all.pop(fd, None) is not None:
            self._epoll.unregister(fd)
        lane.sock.close()
