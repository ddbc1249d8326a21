"""The SQL of appends and of API writes. Reads for clients stand beside their functions in reads.py."""

from __future__ import annotations

from fluxora.storage.rows import CHANGING_COLUMNS

# Both rows are locked, and so are read as of the moment the lock is held, not as of the statement's start.
LOCK_HEAD = """
SELECT h.position, h.run_position, h.run_ledger, h.webhooks, c.epoch, c.complete_through, c.newest_event_id
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


def _arrays(first: int) -> str:
    """The parameters, from `first` on, that hold the values of CHANGING_COLUMNS."""
    return ", ".join(f"${at}::{_TYPES.get(name, 'text')}[]" for at, name in enumerate(CHANGING_COLUMNS, first))


UPDATE_STREAMS = (
    "UPDATE streams s SET "  # noqa: S608 (names of our own columns)
    + ", ".join(f"{name} = v.{name}{'::numeric' if name in _NUMERIC else ''}" for name in CHANGING_COLUMNS)
    + f" FROM unnest($1::text[], {_arrays(2)}"
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

# API writes. The head's row is the queue in which they and appends wait for each other; what they read must be read by
# a later statement, for one that waited sees the tables as of its start.
LOCK_FOR_COMMANDS = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT FROM log_head FOR UPDATE"

READ_FOR_COMMANDS = """
SELECT h.position AS head, h.webhooks, c.epoch AS now_epoch, found.*
FROM log_head h CROSS JOIN ingest_cursor c LEFT JOIN (
    SELECT id, origin, epoch, decimals, state, position, created_position, created_ms, updated_ms,
           NULL::text AS scope, NULL::text AS key, NULL::bytea AS fingerprint, NULL::bytea AS body
    FROM streams WHERE id = ANY($1)
    UNION ALL
    SELECT k.stream_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, k.scope, k.key, k.fingerprint, k.body
    FROM unnest($2::text[], $3::text[]) AS asked(scope, key)
    JOIN idempotency_keys k ON k.scope = asked.scope AND k.key = asked.key AND k.expires_ms > $4
) AS found ON true
"""

# The values of CHANGING_COLUMNS come from $10 on, one array for each column.
_AFTER = 10 + len(CHANGING_COLUMNS)
RECORD_COMMANDS = f"""
WITH head AS (
    UPDATE log_head SET position = $1
), event AS (
    INSERT INTO events (position, epoch, timestamp_ms, event_id, stream_id, event, action, payload)
    SELECT at, $2, $3, event_id, stream_id, event, action, payload::json
    FROM unnest($4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
        AS v(at, event_id, stream_id, event, action, payload)
), stream AS (
    INSERT INTO streams (id, origin, epoch, decimals, created_position, {", ".join(CHANGING_COLUMNS)})
    SELECT id, 'api', epoch, decimals, created_position,
        {", ".join(f"{name}{'::numeric' if name in _NUMERIC else ''}" for name in CHANGING_COLUMNS)}
    FROM unnest({_arrays(10)}, ${_AFTER}::text[], ${_AFTER + 1}::integer[], ${_AFTER + 2}::smallint[],
        ${_AFTER + 3}::bigint[]) AS v({", ".join(CHANGING_COLUMNS)}, id, epoch, decimals, created_position)
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = EXCLUDED.{name}" for name in CHANGING_COLUMNS)}
), key AS (
    INSERT INTO idempotency_keys (scope, key, fingerprint, stream_id, body, created_ms, expires_ms)
    SELECT scope, key, fingerprint, stream_id, body, $3, ${_AFTER + 9}
    FROM unnest(${_AFTER + 4}::text[], ${_AFTER + 5}::text[], ${_AFTER + 6}::bytea[], ${_AFTER + 7}::text[],
        ${_AFTER + 8}::bytea[]) AS v(scope, key, fingerprint, stream_id, body)
    ON CONFLICT (scope, key) DO UPDATE
    SET fingerprint = EXCLUDED.fingerprint, stream_id = EXCLUDED.stream_id, body = EXCLUDED.body,
        created_ms = EXCLUDED.created_ms, expires_ms = EXCLUDED.expires_ms
)
SELECT pg_notify('fluxora_log', ${_AFTER + 10})
"""  # noqa: S608 (names of our own columns)

PURGE_KEYS = """
WITH expired AS (
    SELECT scope, key FROM idempotency_keys WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM idempotency_keys k USING expired e WHERE k.scope = e.scope AND k.key = e.key RETURNING 1
)
SELECT count(*) FROM gone
"""
