"""Several RPC endpoints as one: which to ask, when to ask again, and what to say of it.

Rules
- One endpoint is in use until it fails; then the next one that is not cooling down. An endpoint is asked for its
  network before the first call after each switch and after each lost connection; one of another network is never used.
- A failure that time may cure is retried after a backoff with jitter, never before a Retry-After; what only another
  endpoint can cure is not asked twice of the same one. Attempts and time are bounded, then the error is raised.
- What the endpoints report as their latest ledger is kept as a maximum; a smaller value speaks of the node.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from fluxora import logs
from fluxora.actors.sources import SourceStatus
from fluxora.actors.sources.failures import TREATMENTS, Failure, NodeRange
from fluxora.actors.sources.jsonrpc import Endpoint
from fluxora.errors import ChainDiverged, HistoryLost, SourceError, SourceUnavailable

log = logs.get("source")
T = TypeVar("T")

_BROKEN_CONNECTION = {Failure.UNREACHABLE, Failure.TLS, Failure.TIMEOUT, Failure.CONNECTION_DROPPED}


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds of one call: at most `attempts` (at least one per endpoint), no new one after `budget_s`.

    The wait after the n-th failure in a row of an endpoint is `base_s` * 2^(n-1), at most `cap_s`, of which the upper
    half is random. `height_memory_s` is how long a reported latest ledger counts without being confirmed.
    """

    attempts: int = 4
    base_s: float = 0.25
    cap_s: float = 5.0
    budget_s: float = 20.0
    height_memory_s: float = 30.0


class Rotation:
    """Runs calls on one endpoint at a time. `verify` is awaited on each switch and raises if it must not be used."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        verify: Callable[[Endpoint], Awaitable[None]],
        *,
        policy: RetryPolicy,
        jitter: Callable[[], float] = random.random,
        status: SourceStatus | None = None,
    ) -> None:
        self._endpoints = list(endpoints)
        self._verify = verify
        self._policy = policy
        self._jitter = jitter
        self._current = self._endpoints[0]
        self._entered: Endpoint | None = None
        self._failing: dict[str, SourceError] = {}  # by operation: what has not been cured yet
        self._highest = 0
        self._highest_at = 0.0
        self.status = status or SourceStatus()
        self.status.endpoint = self._current.name

    async def run(self, operation: str, attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
        """Await `attempt` on an endpoint, on others or again as its failures allow.

        Raises:
            HistoryLost: an endpoint has pruned what is needed and no other has it.
            ChainDiverged: every endpoint serves another network.
            SourceUnavailable: anything else, once attempts or time are used up.
        """
        excluded: set[Endpoint] = set()
        attempts = 0
        last: dict[Endpoint, SourceError] = {}  # what each endpoint said last
        give_up_at = trio.current_time() + self._policy.budget_s
        while True:
            endpoint = self._choose(excluded)
            wait_s = 0.0 if endpoint is None else endpoint.ready_at - trio.current_time()
            out_of_attempts = attempts >= max(self._policy.attempts, len(self._endpoints))
            if endpoint is None or out_of_attempts or trio.current_time() + wait_s > give_up_at:
                raise self._conclusion(list(last.values()), wait_s)
            if wait_s > 0:
                await trio.sleep(wait_s)
            try:
                await self._enter(endpoint)
                result = await attempt(endpoint)
            except SourceError as error:
                attempts += 1
                last.pop(endpoint, None)  # so that the newest stands last
                last[endpoint] = error
                if not self._failed(endpoint, operation, error):
                    excluded.add(endpoint)
            else:
                self._succeeded(endpoint, operation)
                return result

    @property
    def highest(self) -> int:
        """The latest ledger that any endpoint has reported, while some endpoint has confirmed it lately; 0: none."""
        return self._highest

    def note_latest(self, latest: int) -> None:
        """Take note of a node's latest ledger."""
        now = trio.current_time()
        if latest >= self._highest or now - self._highest_at > self._policy.height_memory_s:
            self._highest, self._highest_at = latest, now

    def forget_heights(self, latest: int) -> None:
        """Take `latest` for the highest: every endpoint ends far below what was known, so that was another history."""
        self._highest, self._highest_at = latest, trio.current_time()

    def warn(self, failure: Failure, endpoint: Endpoint, message: str) -> None:
        """Count and log what does not keep the endpoint from being used."""
        self._count(failure)
        log.warning("source.endpoint_doubtful", failure=failure.value, endpoint=endpoint.name, message=message)

    async def _enter(self, endpoint: Endpoint) -> None:
        if endpoint is self._entered and endpoint.verified:
            return
        endpoint.verified = False
        await self._verify(endpoint)
        endpoint.verified = True
        if self._entered is not endpoint:
            log.info("source.endpoint_entered", endpoint=endpoint.name, version=endpoint.version)
        self._entered = endpoint
        self.status.endpoint = endpoint.name

    def _choose(self, excluded: set[Endpoint]) -> Endpoint | None:
        start = self._endpoints.index(self._current)
        ring = [e for e in self._endpoints[start:] + self._endpoints[:start] if e not in excluded]
        if not ring:
            return None
        now = trio.current_time()
        endpoint = next((e for e in ring if e.avoid_until <= now and e.ready_at <= now), None)
        if endpoint is None:
            endpoint = min(ring, key=lambda e: e.ready_at)
        self._current = endpoint
        return endpoint

    def _failed(self, endpoint: Endpoint, operation: str, error: SourceError) -> bool:
        """Record a failure; return whether the same endpoint may be asked again in this call."""
        failure = Failure(error.failure)
        treatment = TREATMENTS[failure]
        now = trio.current_time()
        endpoint.avoid_until = now + treatment.cooldown_s
        if failure in _BROKEN_CONNECTION:
            endpoint.verified = False  # another process may stand there when it answers again
        if treatment.retry:
            endpoint.failures_in_a_row += 1
            step = min(self._policy.cap_s, self._policy.base_s * 2.0 ** min(endpoint.failures_in_a_row - 1, 30))
            backoff_s = step * (0.5 + 0.5 * self._jitter())
            endpoint.ready_at = now + max(backoff_s, error.retry_after_s or 0.0)
        self._count(failure)
        self._failing[operation] = error
        self._describe()
        log.warning(
            "source.call_failed",
            operation=operation,
            failure=failure.value,
            endpoint=endpoint.name,
            message=str(error),
            retry_after_s=error.retry_after_s,
        )
        return treatment.retry

    def _succeeded(self, endpoint: Endpoint, operation: str) -> None:
        endpoint.failures_in_a_row = 0
        endpoint.ready_at = endpoint.avoid_until = 0.0
        self.status.last_success_at = time.time()
        if self._failing:
            self._failing.pop(operation, None)
            for other, error in list(self._failing.items()):
                if not TREATMENTS[Failure(error.failure)].lasting:
                    del self._failing[other]
            self._describe()

    def _count(self, failure: Failure) -> None:
        self.status.failures[failure.value] = self.status.failures.get(failure.value, 0) + 1

    def _describe(self) -> None:
        """Bring the public status in line with what fails: what only an operator can cure comes first."""
        status = self.status
        final = next((e for e in self._failing.values() if not e.retryable), None)
        error = final or next(iter(self._failing.values()), None)
        if error is None:
            status.state, status.failure, status.message = "ok", None, ""
            return
        status.state = "failing" if error.retryable else "stalled"
        status.failure = str(error.failure)
        status.message = str(error)

    def _conclusion(self, errors: list[SourceError], wait_s: float) -> SourceError:
        """The one error that says most to the caller, of those that each endpoint ended with, the newest last."""
        if not errors:  # every endpoint asked for more time than there is
            failure = self.status.failure or Failure.THROTTLED.value
            return SourceUnavailable(failure, f"no endpoint is to be asked for {wait_s:.1f} s", retry_after_s=wait_s)
        pruned = [error for error in errors if isinstance(error, HistoryLost)]
        if pruned:
            return pruned[-1]
        ranges = [error for error in errors if isinstance(error, NodeRange)]
        if ranges:
            return max(ranges, key=lambda error: error.latest)
        curable = [error for error in errors if not isinstance(error, ChainDiverged)]
        error = (curable or errors)[-1]
        if error.retry_after_s is None and wait_s > 0:
            error.retry_after_s = wait_s
        return error
