"""API writes: any number of commands in one transaction, from any replica.

Order of things
- The log's head is locked first and until the commit. Nobody needs a lease: the lock alone puts these writes in one
  order with each other and with the appends of the chain, and `ingest_cursor` is only read.
- Then everything that the commands may touch is read at once. They are applied in memory, in their order, so that one
  sees what those before it did. One that cannot be carried out is an outcome like any other.
- What has changed is written by one statement, and what webhooks get of it behind that. Where nothing has, nothing is
  committed, and no flush is waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from fluxora.errors import ChainManaged, IdempotencyConflict, NotFound, RequestError
from fluxora.protocol import lifecycle
from fluxora.protocol.lifecycle import Step
from fluxora.protocol.messages import LogEvent, StreamRecord, encode_view, with_change
from fluxora.protocol.streams import unpack_state
from fluxora.storage import rows, webhook_outbox
from fluxora.storage import statements as sql
from fluxora.storage.pool import Connection
from fluxora.storage.records import (
    Appended,
    Change,
    Command,
    Committed,
    Create,
    IdempotencyKey,
    Outcome,
    Registered,
)

KEY_LIFE_MS = 24 * 3_600_000
FAIR_EVERY = 64  # commands between two chances for other work of the thread: about 3 ms


class _Answer(msgspec.Struct, frozen=True):
    """What a key was answered with."""

    fingerprint: bytes
    stream_id: str
    body: bytes


async def register(connection: Connection, commands: Sequence[Command]) -> Committed:
    """Carry out the commands in order, and commit. On the bridge's thread."""
    try:
        await connection.execute(sql.LOCK_FOR_COMMANDS)
        group = _Group(time.time_ns() // 1_000_000)
        group.read(await connection.fetch(sql.READ_FOR_COMMANDS, *_touched(commands), group.now_ms))
        outcomes: list[Outcome] = []
        for count, command in enumerate(commands, 1):
            if count % FAIR_EVERY == 0:
                await asyncio.sleep(0)
            outcomes.append(group.outcome(command))
        if group.events:
            await connection.execute(sql.RECORD_COMMANDS, *group.values())
            if group.webhooks:
                await webhook_outbox.record(connection, group.events, ())
        await connection.execute("COMMIT" if group.events else "ROLLBACK")
    except BaseException:
        await connection.execute("ROLLBACK")
        raise
    return Committed(group.appended(), outcomes)


async def purge_keys(connection: Connection, limit: int) -> int:
    """Delete up to `limit` keys that have expired; the number of them. On the bridge's thread."""
    purged: int = await connection.fetchval(sql.PURGE_KEYS, time.time_ns() // 1_000_000, limit)
    return purged


def _touched(commands: Iterable[Command]) -> tuple[list[str], list[str], list[str]]:
    """Ids of the streams that may change; scopes and keys of those that are registered with one."""
    streams = {command.stream_id for command in commands if isinstance(command, Change)}
    keys = {(one.key.scope, one.key.key) for one in commands if isinstance(one, Create) and one.key is not None}
    return list(streams), [scope for scope, _ in keys], [key for _, key in keys]


class _Group:
    """The transaction in memory: what was read, and what the commands have made of it so far. All at `now_ms`."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.events: list[LogEvent] = []
        self.webhooks = False  # True where an endpoint may be enabled
        self._position = 0
        self._epoch = 0
        self._streams: dict[str, StreamRecord] = {}
        self._chain: set[str] = set()
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._written: dict[str, str] = {}  # streams to write, with the id of their newest event
        self._answered: list[IdempotencyKey] = []

    def read(self, found: Sequence[Any]) -> None:
        """Take the rows of READ_FOR_COMMANDS."""
        self._position, self._epoch = found[0]["head"], found[0]["now_epoch"]
        self.webhooks = found[0]["webhooks"]
        for row in found:
            if row["key"] is not None:
                self._answers[row["scope"], row["key"]] = _Answer(row["fingerprint"], row["id"], row["body"])
            elif row["origin"] == "chain":
                self._chain.add(row["id"])
            elif row["id"] is not None:
                self._streams[row["id"]] = StreamRecord(
                    row["id"],
                    "api",
                    row["epoch"],
                    None,
                    row["decimals"],
                    unpack_state(row["state"]),
                    row["position"],
                    row["created_position"],
                    None,
                    row["created_ms"],
                    row["updated_ms"],
                )

    def outcome(self, command: Command) -> Outcome:
        """Carry out one command."""
        try:
            return self._create(command) if isinstance(command, Create) else self._change(command)
        except RequestError as error:
            return error.with_traceback(None)  # it is raised elsewhere, and would keep all of this in memory

    def _create(self, command: Create) -> Registered:
        key = command.key
        if key is not None and (answer := self._answers.get((key.scope, key.key))) is not None:
            if answer.fingerprint != key.fingerprint:
                raise IdempotencyConflict("The Idempotency-Key was used with another body; use a new key")
            return Registered(answer.stream_id, answer.body, replayed=True)
        step = lifecycle.begin(command.new, self.now_ms // 1000)
        first = self._position + 1
        body = self._record(
            StreamRecord(
                command.stream_id,
                "api",
                self._epoch,
                None,
                lifecycle.DECIMALS,
                step.state,
                first,
                first,
                None,
                self.now_ms,
                self.now_ms,
            ),
            step,
            command.event_id,
        )
        if key is not None:
            self._answers[key.scope, key.key] = _Answer(key.fingerprint, command.stream_id, body)
            self._answered.append(key)
        return Registered(command.stream_id, body, replayed=False)

    def _change(self, command: Change) -> StreamRecord:
        if command.stream_id in self._chain:
            raise ChainManaged("The stream lives on the chain; change it there, by its contract")
        record = self._streams.get(command.stream_id)
        if record is None:
            raise NotFound("No such stream")
        step = lifecycle.change_status(record.state, command.to, self.now_ms // 1000)
        changed = replace(record, state=step.state, position=self._position + 1, updated_at=self.now_ms)
        self._record(changed, step, command.event_id)
        return changed

    def _record(self, record: StreamRecord, step: Step, event_id: str) -> bytes:
        """Keep the stream and the log row of its step; the stream's JSON."""
        stream = encode_view(record, self.now_ms // 1000)
        payload = with_change(stream, step.change)
        self._position += 1
        self.events.append(
            LogEvent(
                self._position, event_id, step.event, step.action, record.id, None, None, None, self.now_ms, payload
            )
        )
        self._streams[record.id] = record
        self._written[record.id] = event_id
        return stream

    def values(self) -> list[Any]:
        """The parameters of RECORD_COMMANDS."""
        events, keys = self.events, self._answered
        answers = [self._answers[key.scope, key.key] for key in keys]
        streams = [self._streams[stream_id] for stream_id in self._written]
        changing = [rows.changing(self._streams[id_], event_id) for id_, event_id in self._written.items()]
        return [
            self._position,
            self._epoch,
            self.now_ms,
            [event.position for event in events],
            [event.event_id for event in events],
            [event.stream_id for event in events],
            [event.event for event in events],
            [event.action for event in events],
            [event.payload.decode() for event in events],
            *zip(*changing, strict=True),
            [record.id for record in streams],
            [record.epoch for record in streams],
            [record.decimals for record in streams],
            [record.created_position for record in streams],
            [key.scope for key in keys],
            [key.key for key in keys],
            [answer.fingerprint for answer in answers],
            [answer.stream_id for answer in answers],
            [answer.body for answer in answers],
            self.now_ms + KEY_LIFE_MS,
            str(self._position),
        ]

    def appended(self) -> Appended:
        """What the commit has added, for those who follow the log."""
        streams: dict[str, StreamRecord | None] = {stream_id: self._streams[stream_id] for stream_id in self._written}
        return Appended(self._position, self._epoch, self.events, [], streams)
