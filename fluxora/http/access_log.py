"""One log line for each served request.

It is on the path of every request. Where log lines are our JSON it is written without the logger's machinery, to the
same effect, and lines are written together: those of one turn of the event loop, before the loop waits for more. So an
idle server's line is out at once, and a busy one's cost a hundredth of a system call each. Elsewhere (a terminal, an
embedder's own set-up) it is an ordinary line of the logger.

Where only a sample is wanted, what went wrong and what took long is written all the same. A 404 is no such failure:
anybody can cause as many as they like, and as a rule nothing is wrong here.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
import trio

from fluxora import logs

MOST_LINES = 256
SLOW_S = 1.0
_FAILED = 400
_NOT_FOUND = 404

_log = logs.get("http")


class _Line(msgspec.Struct, frozen=True, gc=False):
    method: str
    route: str
    status: int
    duration_ms: float
    request_id: str
    timestamp: str
    actor: str = "http"
    event: str = "http.request_served"
    level: str = "info"


class _TracedLine(_Line, frozen=True, gc=False, kw_only=True):
    trace_id: str


_encode = msgspec.json.Encoder().encode


class AccessLog(trio.abc.Instrument):
    """Writes lines; as an instrument of the trio run it does so whenever the run is about to wait.

    `sample` is the part of what went well and quickly that gets a line, from 0 to 1. `draw` draws from [0, 1).
    """

    def __init__(self, sample: float = 1.0, *, draw: Callable[[], float] = random.random) -> None:
        self._sample = sample
        self._draw = draw
        self._lines: list[bytes] = []
        self._users = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Have lines written while the block is open; several may be, of what serves requests in one process."""
        if not self._users:
            trio.lowlevel.add_instrument(self)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                trio.lowlevel.remove_instrument(self)
            self.flush()

    def served(
        self, method: str, route: str, status: int, seconds: float, request_id: str, *, trace_id: str = ""
    ) -> None:
        """Note a request: its method, its route's pattern, the status of its answer and how long that took.

        `trace_id` is that of its trace, "" where there is none.
        """
        if self._sample < 1.0 and self._is_usual(status, seconds) and self._draw() >= self._sample:
            return
        duration_ms = round(seconds * 1000, 3)
        if not logs.are_plain_json():
            _log.info(
                "http.request_served",
                method=method,
                route=route,
                status=status,
                duration_ms=duration_ms,
                request_id=request_id,
                **({"trace_id": trace_id} if trace_id else {}),
            )
        elif logs.takes_info():
            told = (method, route, status, duration_ms, request_id, _now())
            self._lines.append(_encode(_TracedLine(*told, trace_id=trace_id) if trace_id else _Line(*told)))
            if len(self._lines) >= MOST_LINES:
                self.flush()

    @staticmethod
    def _is_usual(status: int, seconds: float) -> bool:
        return (status < _FAILED or status == _NOT_FOUND) and seconds < SLOW_S

    def flush(self) -> None:
        """Write the lines at hand."""
        if self._lines:
            text = b"\n".join(self._lines).decode() + "\n"
            self._lines.clear()
            sys.stderr.write(text)

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 (trio's signature)
        """Trio calls this before it waits for sockets and timers."""
        if self._lines:
            self.flush()


def _now() -> str:
    """As the logger's other lines have it; the date and the time are made once a second."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{nanoseconds // 1000:06d}Z"


@lru_cache(maxsize=2)
def _second(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%S}"
