"""Health: the whole report for people and alarms, and two bare answers for orchestrators."""

from __future__ import annotations

import trio

from fluxora.errors import StorageUnavailable, Unavailable
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request
from fluxora.http.replies import json_reply

READY_DEADLINE_S = 2.0


def health(_request: Request, backend: Backend) -> Reply:
    """The report as the runtime keeps it; nothing is asked of the database for it. 503 where it says unavailable."""
    report = backend.health()
    return json_reply(report, status=503 if report.status == "unavailable" else 200)


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
