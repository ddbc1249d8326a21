"""Rows put into the store directly: states that no short history of events leads to, and many rows at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from story import ALICE, BOB, FIRST, GENESIS_S

from fluxora.protocol.messages import KIND_NAMES, STATUS_NAMES, StreamRecord
from fluxora.protocol.streams import StreamState, StreamStatus, pack_state
from fluxora.storage.pool import Connection
from fluxora.storage.store import Store

_INSERT = """
INSERT INTO streams (id, origin, epoch, contract_id, chain_stream_id, decimals, status, kind, sender, recipient,
  deposit_amount, rate_per_second, withdrawn_amount, start_time, cliff_time, end_time, created_position, position,
  ledger, created_ms, updated_ms, last_event_id, state)
VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, $9, 0, 0, 0, 0, 0, 0, $10, $10, $11, $12, $12, '', $13)
"""

# One row for each n, all of one state; position n.
_MANY_STREAMS = """
INSERT INTO streams (id, origin, epoch, contract_id, chain_stream_id, decimals, status, kind, sender, recipient,
  deposit_amount, rate_per_second, withdrawn_amount, start_time, cliff_time, end_time, created_position, position,
  ledger, created_ms, updated_ms, last_event_id, state)
SELECT 'stream-many-' || n, 'chain', 1, $2, n, 7, 'active', 'linear', $3, $4, 0, 0, 0, 0, 0, 0, n, n, 1, 0, 0, '', $5
FROM generate_series(1, $1::bigint) n
"""
_MANY_EVENTS = """
INSERT INTO events (position, event_id, epoch, ledger, contract_id, stream_id, event, action, timestamp_ms, payload)
SELECT n, '1-' || lpad(n::text, 19, '0'), 1, n, $2, 'stream-many-' || n, 'stream.updated', 'withdrew', 1700000000000,
  ('{"number":' || n || ',"filling":"' || repeat('x', $3) || '"}')::json
FROM generate_series(1, $1::bigint) n
"""


def state(**changes: object) -> StreamState:
    """A stream of a token a second for 1,000 seconds, with whatever is changed."""
    fields: dict[str, object] = {
        "sender": ALICE,
        "recipient": BOB,
        "deposit_amount": 1000 * 10**7,
        "rate_per_second": 10**7,
        "start_time": GENESIS_S,
        "cliff_time": GENESIS_S,
        "end_time": GENESIS_S + 1000,
        "checkpointed_at": GENESIS_S,
    }
    if changes.get("status") is StreamStatus.CANCELLED:
        fields["cancelled_at"] = GENESIS_S + 100
    return StreamState(**{**fields, **changes})  # type: ignore[arg-type]


async def plant(
    store: Store, states: Iterable[StreamState], *, contract_id: str | None = FIRST, first: int = 1
) -> None:
    """Streams of these states, created at the positions from `first` on; of origin "api" without a contract."""
    records = [
        StreamRecord(
            f"stream-planted-{position}",
            "api" if contract_id is None else "chain",
            1,
            contract_id,
            7,
            one,
            position,
            position,
            None if contract_id is None else 1,
            0,
            0,
        )
        for position, one in zip(itertools.count(first), states)
    ]

    async def insert(connection: Connection) -> None:
        for one in records:
            await connection.execute(
                _INSERT,
                one.id,
                one.origin,
                one.contract_id,
                None if contract_id is None else one.position,
                one.decimals,
                STATUS_NAMES[one.state.status],
                KIND_NAMES[one.state.kind],
                one.state.sender,
                one.state.recipient,
                one.position,
                one.ledger,
                one.created_at,
                pack_state(one.state),
            )
        await connection.execute("UPDATE log_head SET position = greatest(position, $1)", first + len(records) - 1)

    await store._write(insert)


async def plant_many(store: Store, *, streams: int = 0, events: int = 0, filling: int = 1000) -> None:
    """So many streams and events, at the positions from 1 on; `filling` bytes in each event's payload."""

    async def insert(connection: Connection) -> None:
        await connection.execute(_MANY_STREAMS, streams, FIRST, ALICE, BOB, pack_state(state()))
        await connection.execute(_MANY_EVENTS, events, FIRST, filling)
        await connection.execute("UPDATE log_head SET position = $1", max(streams, events))

    await store._write(insert)
