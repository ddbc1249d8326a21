"""What a rollback and a new epoch do to the tables before anything is folded again.

Rows of the log are never removed: an undone event is marked with the position of the `stream.reverted` row that takes
it back. There is such a row for each stream touched, in the order of their ids, and then one for each contract of which
events that concern no stream were undone. Where there is more to name than one row should, several follow each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from fluxora.protocol.contract import CORRECTED
from fluxora.protocol.messages import LogEvent, reverted_payload
from fluxora.storage import statements as sql
from fluxora.storage.pool import Connection
from fluxora.storage.refold import BIRTH
from fluxora.storage.slots import Slot

REVERTED: Final = "stream.reverted"
FAIR_EVERY: Final = 1_000  # rows looked at between two chances for other work of the thread
NAMED_AT_ONCE: Final = 2_000
"""Events that one row names: about 90 kB, so that it fits with its stream into what receivers of webhooks take."""


class Retraction(msgspec.Struct, frozen=True):
    """One `stream.reverted`: of a stream, or (None) of a contract's events that concern none, and what it names."""

    stream_id: str | None
    contract_id: str | None
    reverts: list[str]


class Undone(msgspec.Struct):
    """Marked events: their positions, the streams that they concern, and the rows that say so.

    `count` are those of the chain. The rows begin at `first_position`. `corrected` are the streams that lost what a
    ledger entry had told, and so need it read again.
    """

    epoch: int
    ledger: int
    first_position: int
    count: int
    positions: list[int]
    streams: set[str]
    retractions: list[Retraction]
    corrected: set[str]

    def rows(self, slots: Mapping[str, Slot], now_ms: int) -> Iterator[LogEvent]:
        """The log rows that say so; `slots` hold the restored states, each valued at the second of its last event."""
        for position, each in enumerate(self.retractions, self.first_position):
            if each.stream_id is None:
                yield self._row(position, each, each.contract_id, now_ms, reverted_payload(None, each.reverts, 0))
                continue
            slot = slots[each.stream_id]
            slot.touch(position)
            payload = reverted_payload(slot.record(), each.reverts, slot.updated_ms // 1000)
            yield self._row(position, each, slot.contract_id or None, now_ms, payload)

    def _row(self, position: int, each: Retraction, contract_id: str | None, now_ms: int, payload: bytes) -> LogEvent:
        event_id = f"{self.epoch}-reverted-{position}-{now_ms}"  # a database that was restored gives positions again
        return LogEvent(
            position, event_id, REVERTED, "reverted", each.stream_id, self.ledger, None, contract_id, now_ms, payload
        )


async def take_back(connection: Connection, epoch: int, ledger: int, first_position: int) -> Undone:
    """Mark the live events above `ledger` as undone and forget the ledgers there.

    What was to be read because of an undone event is read as of `ledger` instead: the need may be older.
    """
    await connection.execute(sql.FORGET_LEDGERS, epoch, ledger)
    await connection.execute(sql.AGE_WANTS, ledger)
    rows = await connection.fetch(sql.UNDONE, epoch, ledger)
    streams: dict[str, list[Any]] = {}
    contracts: dict[str, list[Any]] = {}
    for count, row in enumerate(rows):
        if count % FAIR_EVERY == 0:
            await asyncio.sleep(0)
        if row["stream_id"] is None:
            contracts.setdefault(row["contract_id"], []).append(row)
        else:
            streams.setdefault(row["stream_id"], []).append(row)
    positions: list[int] = []
    marks: list[int] = []
    retractions: list[Retraction] = []
    corrected: set[str] = set()
    told, since = 0, 0
    for stream_id, contract_id, some in _pieces(streams, contracts):
        since += 1 + len(some)
        if since >= FAIR_EVERY:
            since = 0
            await asyncio.sleep(0)
        positions += [row["position"] for row in some]
        marks += [first_position + len(retractions)] * len(some)
        retractions.append(Retraction(stream_id, contract_id, [row["event_id"] for row in some]))
        told += sum(not row["event_id"].endswith(BIRTH) for row in some)
        if stream_id is not None and any(row["action"] == CORRECTED for row in some):
            corrected.add(stream_id)
    await connection.execute(sql.MARK_REVERTED, positions, marks)
    return Undone(
        epoch=epoch,
        ledger=ledger,
        first_position=first_position,
        count=told,
        positions=sorted(positions),
        streams=set(streams),
        retractions=retractions,
        corrected=corrected,
    )


def _pieces(
    streams: Mapping[str, Sequence[Any]], contracts: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str | None, str | None, Sequence[Any]]]:
    """What one row names, in the order of the rows: of which stream or contract, and the events."""
    for stream_id, of_stream in sorted(streams.items()):
        for first in range(0, len(of_stream), NAMED_AT_ONCE):
            yield stream_id, None, of_stream[first : first + NAMED_AT_ONCE]
    for contract_id, of_contract in sorted(contracts.items()):
        for first in range(0, len(of_contract), NAMED_AT_ONCE):
            yield None, contract_id, of_contract[first : first + NAMED_AT_ONCE]


async def park(connection: Connection) -> None:
    """Take the chain's streams out of every list, and forget what was to be read of them."""
    await connection.execute(sql.PARK)
    await connection.execute(sql.FORGET_WANTS)
