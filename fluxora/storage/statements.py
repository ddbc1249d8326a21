"""The append's SQL. Reads for clients stand beside their functions in reads.py."""

from __future__ import annotations

from fluxora.storage.rows import CHANGING_COLUMNS

# Both rows are locked, and so are read as of the moment the lock is held, not as of the statement's start.
LOCK_HEAD = """
SELECT h.position, h.run_position, h.run_ledger, c.epoch, c.complete_through, c.newest_event_id
FROM log_head h, ingest_cursor c WHERE h.lease = $1 FOR UPDATE OF h, c
"""

LIVE_IDS = "SELECT event_id FROM events WHERE event_id = ANY($1) AND reverted_by IS NULL"

NEWEST_LIVE = """
SELECT event_id FROM events WHERE reverted_by IS NULL AND event_id >= $1 AND event_id < $2
ORDER BY event_id DESC LIMIT 1
"""

LOAD_STREAMS = """
SELECT id, epoch, contract_id, decimals, state, position, created_position, ledger, created_ms, updated_ms,
       last_event_id
FROM streams WHERE id = ANY($1)
"""

_NUMERIC = {"deposit_amount", "rate_per_second", "withdrawn_amount", "start_time", "cliff_time", "end_time"}
_TYPES = {"position": "bigint", "ledger": "bigint", "created_ms": "bigint", "updated_ms": "bigint", "state": "bytea"}

UPDATE_STREAMS = (
    "UPDATE streams s SET "  # noqa: S608 (names of our own columns)
    + ", ".join(f"{name} = v.{name}{'::numeric' if name in _NUMERIC else ''}" for name in CHANGING_COLUMNS)
    + " FROM unnest($1::text[], "
    + ", ".join(f"${at}::{_TYPES.get(name, 'text')}[]" for at, name in enumerate(CHANGING_COLUMNS, 2))
    + f") AS v(id, {', '.join(CHANGING_COLUMNS)}) WHERE s.id = v.id"
)

DELETE_STREAMS = "DELETE FROM streams WHERE id = ANY($1)"

FINISH = """
WITH head AS (
    UPDATE log_head SET position = $1, run_position = $2, run_ledger = $3
), cursor AS (
    UPDATE ingest_cursor SET epoch = $4, complete_through = $5, newest_event_id = $6
), run AS (
    INSERT INTO log_runs (first_position, last_position, first_ledger, last_ledger)
    SELECT * FROM unnest($7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[])
    ON CONFLICT (first_position) DO UPDATE
    SET last_position = EXCLUDED.last_position, last_ledger = EXCLUDED.last_ledger
), header AS (
    INSERT INTO ledgers (epoch, sequence, hash, previous_hash, closed_at)
    SELECT * FROM unnest($11::integer[], $12::bigint[], $13::text[], $14::text[], $15::bigint[])
    ON CONFLICT (epoch, sequence) DO UPDATE
    SET hash = EXCLUDED.hash, previous_hash = EXCLUDED.previous_hash, closed_at = EXCLUDED.closed_at
), want AS (
    INSERT INTO entry_wants (stream_id, contract_id, chain_stream_id, ledger)
    SELECT id, contract_id, chain::numeric, ledger
    FROM unnest($16::text[], $17::text[], $18::text[], $19::bigint[]) AS v(id, contract_id, chain, ledger)
    ON CONFLICT (stream_id) DO UPDATE SET ledger = greatest(entry_wants.ledger, EXCLUDED.ledger)
)
SELECT pg_notify('fluxora_log', $20)
"""

# A rollback or a new epoch may touch any number of rows.
NO_TIMEOUT = "SET LOCAL statement_timeout = 0"

UNDONE = """
SELECT position, event_id, stream_id, contract_id, action FROM events
WHERE epoch = $1 AND ledger > $2 AND reverted_by IS NULL AND raw IS NOT NULL ORDER BY position
"""

MARK_REVERTED = """
UPDATE events SET reverted_by = v.by FROM unnest($1::bigint[], $2::bigint[]) AS v(position, by)
WHERE events.position = v.position
"""

FORGET_LEDGERS = "DELETE FROM ledgers WHERE epoch = $1 AND sequence > $2"

PARK = "UPDATE streams SET parked = true WHERE origin = 'chain' AND NOT parked"

AGE_WANTS = "UPDATE entry_wants SET ledger = $1 WHERE ledger > $1"

FORGET_WANTS = "DELETE FROM entry_wants"

EVENTS_OF = """
SELECT event_id, ledger, timestamp_ms, contract_id, tx_hash, stream_id, raw FROM events
WHERE stream_id = ANY($1) AND reverted_by IS NULL AND raw IS NOT NULL
"""
