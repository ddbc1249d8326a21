-- The log and what is folded from it.
-- Units: amounts in base units (i128: NUMERIC(39)), chain times in Unix seconds (u64: NUMERIC(20)), *_ms in Unix milliseconds.

-- One row. An append locks it until its commit, so positions are gap-free and in commit order. `lease` fences ingest.
-- `run_position` and `run_ledger`: where the newest run of log_runs begins, and the last ledger in it.
CREATE TABLE log_head (
    only_row     boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    position     bigint NOT NULL DEFAULT 0,
    lease        bigint NOT NULL DEFAULT 0,
    run_position bigint,
    run_ledger   bigint
) WITH (fillfactor = 10);  -- updated by every append: room for HOT updates
INSERT INTO log_head DEFAULT VALUES;

-- One row. Every event of every ledger up to `complete_through` is recorded, in this network epoch.
-- No event id of the epoch is above `newest_event_id` (in "C" order): what is above it cannot be a duplicate.
CREATE TABLE ingest_cursor (
    only_row         boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch            integer NOT NULL DEFAULT 1,
    complete_through bigint,
    newest_event_id  text COLLATE "C" NOT NULL DEFAULT ''
) WITH (fillfactor = 10);
INSERT INTO ingest_cursor DEFAULT VALUES;

-- Stretches of the log in which ledgers never go down (a rollback, a late event or a new epoch starts the next one).
-- Within a run, a range of ledgers is a range of positions, so a page of it is read in position order from an index.
CREATE TABLE log_runs (
    first_position bigint PRIMARY KEY,
    last_position  bigint NOT NULL,
    first_ledger   bigint NOT NULL,
    last_ledger    bigint NOT NULL
) WITH (fillfactor = 50);

-- Ledger headers that were seen, for the fork check.
CREATE TABLE ledgers (
    epoch         integer NOT NULL,
    sequence      bigint  NOT NULL,
    hash          text    NOT NULL,
    previous_hash text,
    closed_at     bigint  NOT NULL,
    PRIMARY KEY (epoch, sequence)
);

-- Append-only. `payload` is served verbatim (json keeps its bytes); `raw` is what the event was decoded from, for
-- refolding, and null on rows that are not events of the chain. `reverted_by`: position of the row that took it back.
CREATE TABLE events (
    position     bigint  NOT NULL PRIMARY KEY,
    event_id     text    COLLATE "C" NOT NULL,
    epoch        integer NOT NULL,
    ledger       bigint,
    tx_hash      text,
    contract_id  text    COLLATE "C",
    stream_id    text    COLLATE "C",
    event        text    COLLATE "C" NOT NULL,
    action       text    NOT NULL,
    timestamp_ms bigint  NOT NULL,
    reverted_by  bigint,
    payload      json    NOT NULL,
    raw          bytea
);
CREATE UNIQUE INDEX events_live ON events (event_id) WHERE reverted_by IS NULL;
CREATE INDEX events_of_stream ON events (stream_id, position) WHERE stream_id IS NOT NULL;
CREATE INDEX events_of_kind ON events (event, position);
CREATE INDEX events_of_contract ON events (contract_id, position) WHERE contract_id IS NOT NULL;
CREATE INDEX events_of_ledger ON events (ledger, position) WHERE ledger IS NOT NULL;
-- The log only grows, and is read by position right after: keep the visibility map and statistics fresh at any size.
ALTER TABLE events SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

-- `state` is what is folded; the columns beside it are a projection for queries. `last_event_id`: the newest event
-- applied, in chain order. `parked`: of an earlier epoch, still found by id and in no list.
CREATE TABLE streams (
    id               text     COLLATE "C" NOT NULL PRIMARY KEY,
    origin           text     NOT NULL CHECK (origin IN ('chain', 'api')),
    epoch            integer  NOT NULL,
    contract_id      text     COLLATE "C",
    chain_stream_id  numeric(20, 0),
    decimals         smallint NOT NULL,
    status           text     COLLATE "C" NOT NULL CHECK (status IN ('active', 'paused', 'completed', 'cancelled')),
    kind             text     NOT NULL CHECK (kind IN ('linear', 'cliff_only', 'cliff_slope')),
    sender           text     COLLATE "C" NOT NULL,
    recipient        text     COLLATE "C" NOT NULL,
    deposit_amount   numeric(39, 0) NOT NULL,
    rate_per_second  numeric(39, 0) NOT NULL,
    withdrawn_amount numeric(39, 0) NOT NULL,
    start_time       numeric(20, 0) NOT NULL,
    cliff_time       numeric(20, 0) NOT NULL,
    end_time         numeric(20, 0) NOT NULL,
    created_position bigint   NOT NULL,
    position         bigint   NOT NULL,
    ledger           bigint,
    created_ms       bigint   NOT NULL,
    updated_ms       bigint   NOT NULL,
    last_event_id    text     COLLATE "C" NOT NULL,
    parked           boolean  NOT NULL DEFAULT false,
    state            bytea    NOT NULL
) WITH (fillfactor = 70);  -- most updates touch no indexed column: room to do them in place
-- Lists run in creation order. A filter without a status is a merge over the four of them, so that one index per
-- address serves both. Only `created_position` is unique; the others lead to it.
CREATE UNIQUE INDEX streams_listed ON streams (created_position) WHERE NOT parked;
CREATE INDEX streams_of_status ON streams (status, created_position) WHERE NOT parked;
CREATE INDEX streams_of_sender ON streams (sender, status, created_position) WHERE NOT parked;
CREATE INDEX streams_of_recipient ON streams (recipient, status, created_position) WHERE NOT parked;
CREATE INDEX streams_of_contract ON streams (contract_id, status, created_position) WHERE NOT parked;
ALTER TABLE streams SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- Streams whose ledger entry must be read, since events alone do not tell their state. `not_before`: Unix seconds.
CREATE TABLE entry_wants (
    stream_id       text   COLLATE "C" NOT NULL PRIMARY KEY,
    contract_id     text   NOT NULL,
    chain_stream_id numeric(20, 0) NOT NULL,
    ledger          bigint NOT NULL,
    not_before      bigint NOT NULL DEFAULT 0
);
CREATE INDEX entry_wants_due ON entry_wants (not_before, ledger, stream_id);
