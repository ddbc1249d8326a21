"""How the calls of RPC endpoints ended, and how long they took: for metrics."""

from __future__ import annotations

from collections import Counter

from fluxora.tallies import Histogram

OK = "ok"
OUT_OF_RANGE = "out_of_range"
ABORTED = "aborted"


class CallTally:
    """`ended` counts by method and outcome: OK, OUT_OF_RANGE, ABORTED or the name of a failure.

    `durations`, by method, are of the calls that brought an answer, from the request to the whole answer having been
    read; one that is sent ahead waits there for whoever asked.
    """

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str]] = Counter()
        self.durations: dict[str, Histogram] = {}

    def count(self, method: str, outcome: str, seconds: float | None = None) -> None:
        """A call is over; `seconds` where it brought an answer."""
        self.ended[method, outcome] += 1
        if seconds is not None:
            durations = self.durations.get(method)
            if durations is None:
                durations = self.durations[method] = Histogram()
            durations.add(seconds)
