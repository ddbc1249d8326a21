"""What a rollback and a new epoch do to the tables before anything is folded again.

Rows of the log are never removed: an undone event is marked with the position of the `stream.reverted` row that takes
it back. There is one such row for each stream touched, in the order of their ids, and then one for each contract of
which events that concern no stream were undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from fluxora.protocol.contract import CORRECTED
from fluxora.protocol.messages import LogEvent, reverted_payload
from fluxora.storage import statements as sql
from fluxora.storage.pool import Connection
from fluxora.storage.refold import BIRTH
from fluxora.storage.slots import Slot

REVERTED = "stream.reverted"


class Undone(msgspec.Struct):
    """Marked events: their positions, and their ids by stream and, where they concern none, by contract.

    The rows that say so begin at `first_position`.

    `corrected` are the streams that lost what a ledger entry had told, and so need it read again.
    """

    epoch: int
    ledger: int
    first_position: int
    count: int
    positions: list[int]
    streams: dict[str, list[str]]
    contracts: dict[str, list[str]]
    corrected: set[str]

    def rows(self, slots: Mapping[str, Slot], now_ms: int) -> Iterator[LogEvent]:
        """The log rows that say so; `slots` hold the restored states, each valued at the second of its last event."""
        for position, (key, reverts) in enumerate(sorted(self.streams.items()), self.first_position):
            slot = slots[key]
            slot.touch(position)
            payload = reverted_payload(slot.record(), reverts, slot.updated_ms // 1000)
            yield self._row(position, key, slot.contract_id or None, now_ms, payload)
        after = self.first_position + len(self.streams)
        for position, (contract_id, reverts) in enumerate(sorted(self.contracts.items()), after):
            yield self._row(position, None, contract_id, now_ms, reverted_payload(None, reverts, 0))

    def _row(self, position: int, key: str | None, contract_id: str | None, now_ms: int, payload: bytes) -> LogEvent:
        event_id = f"{self.epoch}-reverted-{position}-{now_ms}"  # a database that was restored gives positions again
        return LogEvent(position, event_id, REVERTED, "reverted", key, self.ledger, None, contract_id, now_ms, payload)


async def take_back(connection: Connection, epoch: int, ledger: int, first_position: int) -> Undone:
    """Mark the live events above `ledger` as undone and forget the ledgers there.

    What was to be read because of an undone event is read as of `ledger` instead: the need may be older.
    """
    await connection.execute(sql.FORGET_LEDGERS, epoch, ledger)
    await connection.execute(sql.AGE_WANTS, ledger)
    rows = await connection.fetch(sql.UNDONE, epoch, ledger)
    undone = Undone(epoch, ledger, first_position, 0, [row["position"] for row in rows], {}, {}, set())
    for row in rows:
        undone.count += not row["event_id"].endswith(BIRTH)
        if row["stream_id"] is None:
            undone.contracts.setdefault(row["contract_id"], []).append(row["event_id"])
        else:
            undone.streams.setdefault(row["stream_id"], []).append(row["event_id"])
            if row["action"] == CORRECTED:
                undone.corrected.add(row["stream_id"])
    marks = {key: first_position + at for at, key in enumerate(sorted(undone.streams))}
    contract_marks = {key: first_position + len(marks) + at for at, key in enumerate(sorted(undone.contracts))}
    await connection.execute(
        sql.MARK_REVERTED,
        undone.positions,
        [contract_marks[row["contract_id"]] if row["stream_id"] is None else marks[row["stream_id"]] for row in rows],
    )
    return undone


async def park(connection: Connection) -> None:
    """Take the chain's streams out of every list, and forget what was to be read of them."""
    await connection.execute(sql.PARK)
    await connection.execute(sql.FORGET_WANTS)
