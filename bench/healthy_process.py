"""A well-behaved client: a few connections that are kept, one request at a time, at a steady pace.

For each line {"seconds": N} of its input it asks for N seconds and says what it saw. It sleeps between requests, so
that what it measures is how long an answer takes, and not how many there can be.
"""

from __future__ import annotations

import gc
import http.client
import sys
import time
from itertools import cycle

import msgspec

from bench.child import say

TIMEOUT_S = 10.0


class Task(msgspec.Struct, kw_only=True):
    """What to ask for, over how many connections, how often in all."""

    port: int
    paths: list[str]
    connections: int
    per_second: int


class Window(msgspec.Struct, kw_only=True):
    """How long to ask."""

    seconds: float


class Seen(msgspec.Struct, kw_only=True):
    """What one window saw; `failed`: answers other than 200, and connections that broke."""

    requests: int
    failed: int
    p50_ms: float
    p99_ms: float


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    gc.disable()  # pauses of its own are not the server's
    kept = [http.client.HTTPConnection("127.0.0.1", task.port, timeout=TIMEOUT_S) for _ in range(task.connections)]
    for line in sys.stdin:
        window = msgspec.json.decode(line, type=Window)
        say(_measured(task, kept, window.seconds))
        gc.collect()


def _measured(task: Task, kept: list[http.client.HTTPConnection], seconds: float) -> Seen:
    durations: list[float] = []
    failed = 0
    pace_s = 1 / task.per_second
    due = time.perf_counter()
    until = due + seconds
    for connection, path in zip(cycle(kept), cycle(task.paths), strict=False):
        began = time.perf_counter()
        if began >= until:
            break
        failed += not _asked(connection, path)
        ended = time.perf_counter()
        durations.append(ended - began)
        due = max(due + pace_s, ended)
        time.sleep(max(0.0, due - time.perf_counter()))
    durations.sort()
    return Seen(
        requests=len(durations),
        failed=failed,
        p50_ms=durations[len(durations) // 2] * 1e3,
        p99_ms=durations[len(durations) * 99 // 100] * 1e3,
    )


def _asked(connection: http.client.HTTPConnection, path: str) -> bool:
    """True after a whole answer of 200. A connection that broke is opened anew for its next request."""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return False
    return answer.status == http.HTTPStatus.OK


if __name__ == "__main__":
    main()
