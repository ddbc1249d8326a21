"""What every process of a run knows of it: the server, the streams, and how the time is written into pushed events.

An event's id carries when its push was due, in its operation position: so whoever is told of it knows how old it is.
Ledgers are five seconds long and numbered by the clock of the machine, so that runs against the same server follow one
upon the other; a ledger's hash is that of its number, the same in every run.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime

import msgspec

from bench.profiles.endpoint import Endpoint

LEDGER_S = 5
GENESIS_S = 1_600_000_000
TICKS_PER_S = 10_000
TICKS_PER_LEDGER = LEDGER_S * TICKS_PER_S
_OURS = re.compile(rb"[0-9]+-([0-9]{19})-[0-9]{10}")


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `zero`: CLOCK_MONOTONIC at its time 0, and `offset_s` how far into its first ledger that is.

    `hot`: the streams that pushed events are of, and their numbers. `headers` go with every request, `admin_headers`
    with an operator's (None: there is no credential for those); neither is shown. `people`: addresses for streams.
    """

    endpoint: Endpoint
    zero: float
    first_ledger: int
    offset_s: float
    contract_id: str
    hot: list[str]
    hot_numbers: list[int]
    ids: list[str]
    people: list[str]
    headers: dict[str, str]
    admin_headers: dict[str, str] | None
    worker_token: str | None
    seed: int

    def __repr__(self) -> str:
        return f"Scene({self.endpoint}, {len(self.ids)} streams, {len(self.hot)} hot ones)"

    def event_id(self, due_s: float, nth: int) -> str:
        """The id of event `nth` of a push that was due then."""
        ticks = round((due_s + self.offset_s) * TICKS_PER_S)
        return f"{(self.ledger(ticks) << 32) + ticks:019d}-{nth:010d}"

    def ledger(self, ticks: int) -> int:
        """The ledger of a moment."""
        return self.first_ledger + ticks // TICKS_PER_LEDGER

    def due_of(self, event_id: bytes) -> float | None:
        """When the push of an event was due, in the time of the run; None where it is none of this run's."""
        match = _OURS.fullmatch(event_id)
        if match is None:
            return None
        place = int(match[1])
        ticks = place & 0xFFFFFFFF
        return ticks / TICKS_PER_S - self.offset_s if place >> 32 == self.ledger(ticks) else None


def pushed(scene: Scene, due_s: float, nth: int, topic: str, payload: dict[str, object]) -> dict[str, object]:
    """An event as a worker pushes it."""
    event_id = scene.event_id(due_s, nth)
    ledger = int(event_id[:19]) >> 32
    return {
        "eventId": event_id,
        "ledger": ledger,
        "ledgerHash": hashlib.sha256(str(ledger).encode()).hexdigest(),
        "contractId": scene.contract_id,
        "topic": topic,
        "txHash": hashlib.sha256(event_id.encode()).hexdigest(),
        "txIndex": 0,
        "operationIndex": 0,
        "eventIndex": nth,
        "happenedAt": datetime.fromtimestamp(GENESIS_S + ledger * LEDGER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "payload": payload,
    }
