"""What an attempt's end means: for its delivery, and for the counts that are shown of all of them."""

from __future__ import annotations

from typing import Final

import msgspec
from structlog.typing import FilteringBoundLogger

from fluxora.actors.webhook_sender import Sent
from fluxora.protocol.retries import delay_ms
from fluxora.storage.webhook_records import AttemptOutcome, Due, Result
from fluxora.tallies import Histogram

LATENCY_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)
_GONE: Final = 410


def result_of(due: Due, sent: Sent, draw: float) -> Result:
    """What the attempt does to its delivery. `draw` is a random number in [0, 1), for the jitter."""
    outcome: AttemptOutcome
    delay: int | None = 0
    if sent.delivered:
        outcome = "delivered"
    elif sent.status == _GONE and sent.error is None:
        outcome = "gone"
    elif sent.hopeless:
        outcome = "dead"
    else:
        delay = delay_ms(due.attempts + 1, draw, sent.retry_after_ms)
        outcome = "dead" if delay is None else "retry"
    return Result(
        endpoint_id=due.endpoint_id,
        position=due.event.position,
        outcome=outcome,
        delay_ms=delay or 0,
        status=sent.status,
        error=sent.error,
        latency_ms=sent.latency_ms,
        response=sent.response,
        url=due.url,
        endpoint_created_ms=due.endpoint_created_ms,
        attempts=due.attempts,
    )


def tell(log: FilteringBoundLogger, due: Due, result: Result) -> None:
    """Log the attempt's end: what is given up is worth a warning, all else only a look."""
    dead = result.outcome == "dead"
    write = log.warning if dead else log.debug
    write(
        "dispatcher.delivery_dead" if dead else "dispatcher.attempt_ended",
        outcome=result.outcome,
        attempt=due.attempts + 1,
        status=result.status,
        error=result.error,
        latency_ms=result.latency_ms,
    )


class DispatcherStatus(msgspec.Struct, frozen=True):
    """For health and metrics: how much waits, and counts since the start.

    `concurrency` is how many attempts may be under way before those that take long are counted apart.
    `attempts` has a count for each outcome (delivered, retry, dead, gone), `latencies` how long they took, in seconds.
    """

    pending: int
    oldest_pending_ms: int | None
    dead_lettered: int
    in_flight: int
    breakers_open: int
    attempts: dict[str, int]
    latencies: Histogram
    concurrency: int = 0


class Tally:
    """Counts attempts."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = dict.fromkeys(("delivered", "retry", "dead", "gone"), 0)
        self.latencies = Histogram(LATENCY_BOUNDS_S)

    def count(self, result: Result) -> None:
        """One more attempt has ended."""
        self.attempts[result.outcome] += 1
        self.latencies.add(result.latency_ms / 1000)
