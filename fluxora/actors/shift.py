"""One worker's life, as the store knows it: what it has on its way, and what it has not settled yet."""

from __future__ import annotations

from uuid import uuid4

import trio

from fluxora.storage.webhook_records import Result


class Shift:
    """One worker's life. `closing`: it claims no more. `in_flight` are the begins of its attempts, the oldest first.

    They go by numbers of their own: an endpoint that was deleted and made again under its id may have one event on its
    way twice.
    """

    def __init__(self) -> None:
        self.worker = uuid4().hex
        self.bell = trio.Event()
        self.closing = trio.Event()
        self.ended = trio.Event()
        self.lost = trio.CancelScope()
        self.in_flight: dict[int, float] = {}
        self.results: list[Result] = []
        self._attempts = 0

    def begin(self, now: float) -> int:
        """An attempt is in flight from `now` on; its number."""
        self._attempts += 1
        self.in_flight[self._attempts] = now
        return self._attempts

    def end(self, attempt: int, result: Result) -> None:
        """It has ended, and its result waits for the next turn."""
        del self.in_flight[attempt]
        self.results.append(result)
        self.bell.set()

    def take_results(self) -> list[Result]:
        """The results that wait; they wait no more."""
        results, self.results = self.results, []
        return results
