"""Health: the whole report for people and alarms, and two bare answers for orchestrators."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from fluxora.actors.status import HealthReport
from fluxora.errors import StorageUnavailable, Unavailable
from fluxora.http.exchange import Reply, Request
from fluxora.http.replies import json_reply

if TYPE_CHECKING:
    from fluxora.http.backend import Backend

READY_DEADLINE_S = 2.0
KEPT_S = 0.02


def health(_request: Request, backend: Backend) -> Reply:
    """The report as the runtime keeps it; nothing is asked of the database for it. 503 where it says unavailable."""
    return backend.health_reply.now()


class HealthReply:
    """The reply of /health, made anew when it is older than `KEPT_S`: to make one costs more than to send it."""

    def __init__(self, health: Callable[[], HealthReport]) -> None:
        self._health = health
        self._made_at = -math.inf
        self._reply = Reply(503)

    def now(self) -> Reply:
        """The reply, at most `KEPT_S` old."""
        now = time.monotonic()
        if now - self._made_at >= KEPT_S:
            report = self._health()
            self._reply = json_reply(report, status=503 if report.status == "unavailable" else 200)
            self._made_at = now
        return self._reply


def live(_request: Request, _backend: Backend) -> Reply:
    """The process serves requests; says nothing of what it depends on."""
    return json_reply({"status": "ok"})


async def ready(_request: Request, backend: Backend) -> Reply:
    """The database answers and the service is not stopping.

    Raises:
        Unavailable: it does not, or not within 2 s.
    """
    if backend.stopping.is_set():
        raise Unavailable("The service is shutting down")
    try:
        with trio.fail_after(READY_DEADLINE_S):
            latency_s = await backend.store.ping()
    except (StorageUnavailable, trio.TooSlowError) as error:
        raise Unavailable("The database does not answer") from error
    return json_reply({"status": "ok", "dependencies": {"database": {"latencyMs": round(latency_s * 1000, 3)}}})
