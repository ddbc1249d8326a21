"""What an append has to write, gathered in memory and written in as few round trips as there are tables."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fluxora.protocol.chain import LedgerHeader
from fluxora.protocol.messages import LogEvent, StreamRecord
from fluxora.storage import rows
from fluxora.storage import statements as sql
from fluxora.storage.pool import Connection
from fluxora.storage.slots import Slot

COPY_ROWS = 512  # log rows sent at once: PostgreSQL indexes them while the next ones are folded
FAIR_EVERY = 1_000  # streams' rows made between two chances for other work of the thread
UPDATED_AT_ONCE = 10_000  # streams whose rows are sent by one statement

T = TypeVar("T")


class Writer:
    """Gives log rows their positions and writes them; keeps headers, wants and the head until `finish`.

    Log rows are sent behind the caller's back by `push`, so the connection is the caller's only after `idle`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[bytes] = []
        self._copy: asyncio.Task[None] | None = None
        self._runs: dict[int, list[int]] = {}  # first position: last position, first ledger, last ledger
        self._run_position: int | None = None
        self._run_ledger: int | None = None
        self.position = 0
        self.events: list[LogEvent] = []
        self.streams: dict[str, StreamRecord | None] = {}  # rows that were written, as they are now
        self.headers: dict[tuple[int, int], LedgerHeader] = {}  # by epoch and sequence
        self.wants: dict[str, tuple[str, int, int]] = {}  # stream: contract, its id there, ledger

    def start(self, head: Mapping[str, Any]) -> None:
        """Go on from the log's head."""
        self.position = head["position"]
        self._run_position = head["run_position"]
        self._run_ledger = head["run_ledger"]

    def add(self, epoch: int, event: LogEvent, raw: bytes | None) -> None:
        """Take the next log row; its position is the one after `position`."""
        self.position += 1
        self.events.append(event)
        self._rows.append(rows.event_row(epoch, event, raw))
        ledger = event.ledger
        if ledger is None:
            return
        first = self._run_position
        if first is None or self._run_ledger is None or ledger < self._run_ledger:
            first = self._run_position = self.position
        run = self._runs.setdefault(first, [self.position, ledger, ledger])
        run[0], run[2] = self.position, ledger
        self._run_ledger = ledger

    def forget_headers(self, epoch: int, ledger: int) -> None:
        """Drop the headers above `ledger` that wait here."""
        for key in [key for key in self.headers if key[0] == epoch and key[1] > ledger]:
            del self.headers[key]

    def push(self, least: int = COPY_ROWS) -> None:
        """Begin to send the log rows at hand, if there are `least` of them and none are on their way."""
        if len(self._rows) >= least and (self._copy is None or (self._copy.done() and not self._copy.exception())):
            data = b"".join((rows.COPY_HEADER, *self._rows, rows.COPY_TRAILER))
            self._rows.clear()
            self._copy = asyncio.create_task(self._send(data))

    async def _send(self, data: bytes) -> None:
        await self._connection.copy_to_table(
            "events", source=io.BytesIO(data), columns=rows.EVENT_COLUMNS, format="binary"
        )

    async def idle(self) -> None:
        """Wait until the connection is free, and raise what sending raised."""
        if self._copy is not None:
            copy, self._copy = self._copy, None
            await copy

    async def abandon(self) -> None:
        """After a failure: have nothing run on the connection any more."""
        if self._copy is not None:
            copy, self._copy = self._copy, None
            copy.cancel()
            await asyncio.wait((copy,))

    async def flush(self, slots: Iterable[Slot]) -> None:
        """Write the log rows and the streams that changed."""
        await self.idle()
        self.push(1)
        await asyncio.sleep(0)  # on their way while the streams' rows are made
        new: list[tuple[StreamRecord, str]] = []
        old: list[tuple[StreamRecord, str]] = []
        gone: list[str] = []
        for slot in slots:
            if not slot.dirty:
                continue
            slot.dirty = False
            record = slot.record()
            if record is not None or slot.exists:
                self.streams[slot.id] = record
            if record is not None:
                (old if slot.exists else new).append((record, slot.last_event_id))
            elif slot.exists:
                gone.append(slot.id)
            slot.exists = record is not None
        created = b"".join(await _made(rows.stream_row, new))
        changed = await _made(rows.changing, old)
        await self.idle()
        if new:
            await self._connection.copy_to_table(
                "streams", source=io.BytesIO(created), columns=rows.STREAM_COLUMNS, format="text"
            )
        for first in range(0, len(old), UPDATED_AT_ONCE):
            ids = [record.id for record, _ in old[first : first + UPDATED_AT_ONCE]]
            columns = list(zip(*changed[first : first + UPDATED_AT_ONCE], strict=True))
            await self._connection.execute(sql.UPDATE_STREAMS, ids, *columns)
        if gone:
            await self._connection.execute(sql.DELETE_STREAMS, gone)

    async def finish(self, epoch: int, complete_through: int | None, newest: str) -> None:
        """Write the headers, the wants, the cursor and the head, and ring the doorbell at the commit."""
        headers, wants = self.headers, self.wants
        await self._connection.execute(
            sql.FINISH,
            self.position,
            self._run_position,
            self._run_ledger,
            epoch,
            complete_through,
            newest,
            list(self._runs),
            *(_column(self._runs.values(), at) for at in range(3)),
            [key[0] for key in headers],
            [header.sequence for header in headers.values()],
            [header.hash for header in headers.values()],
            [header.previous_hash for header in headers.values()],
            [header.closed_at for header in headers.values()],
            list(wants),
            [contract_id for contract_id, _, _ in wants.values()],
            [str(chain_id) for _, chain_id, _ in wants.values()],
            [ledger for _, _, ledger in wants.values()],
            str(self.position),
        )


async def _made(make: Callable[[StreamRecord, str], T], streams: Sequence[tuple[StreamRecord, str]]) -> list[T]:
    """What `make` makes of each; others have the thread in between, for a rollback may bring very many."""
    made: list[T] = []
    for first in range(0, len(streams), FAIR_EVERY):
        if first:
            await asyncio.sleep(0)
        made += [make(*one) for one in streams[first : first + FAIR_EVERY]]
    return made


def _column(runs: Iterable[list[int]], at: int) -> list[int]:
    return [run[at] for run in runs]
