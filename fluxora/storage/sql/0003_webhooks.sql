-- Webhooks: who is told of events, what is to be sent to them, and who is sending it.
-- *_ms are Unix milliseconds of clock_timestamp(), so that the clocks of the processes do not matter.

-- True while an endpoint may be enabled: read under the head's lock, so that recording costs nothing more without one.
ALTER TABLE log_head ADD COLUMN webhooks boolean NOT NULL DEFAULT false;

-- An empty filter takes everything. `paced_us`: when the rate limit has room again (GCRA, in Unix microseconds).
-- `deleted`: hidden from everybody; the row goes when the last of its deliveries has gone.
-- Whoever claims, settles or revives deliveries holds the row's lock; whoever changes what it gets, the log head's before.
CREATE TABLE webhook_endpoints (
    id                text    COLLATE "C" NOT NULL PRIMARY KEY,
    url               text    NOT NULL,
    description       text    NOT NULL,
    events            text[]  NOT NULL,
    stream_ids        text[]  NOT NULL,
    addresses         text[]  NOT NULL,
    ordered           boolean NOT NULL,
    rate_limit        integer NOT NULL CHECK (rate_limit >= 0),
    max_in_flight     integer NOT NULL CHECK (max_in_flight > 0),
    enabled           boolean NOT NULL,
    disabled_reason   text    CHECK (disabled_reason IN ('operator', 'gone', 'failing')),
    deleted           boolean NOT NULL DEFAULT false,
    created_ms        bigint  NOT NULL,
    updated_ms        bigint  NOT NULL,
    created_position  bigint  NOT NULL,
    failing_since_ms  bigint,
    last_success_ms   bigint,
    secret            text    NOT NULL,
    previous_secret   text,
    previous_until_ms bigint,
    paced_us          bigint  NOT NULL DEFAULT 0,
    CHECK (enabled = (disabled_reason IS NULL))
) WITH (fillfactor = 25);  -- few rows, updated all the time: room for HOT updates

-- One event on its way to one endpoint. `at_ms`: when it took its status. `queue`: the stream whose order it keeps.
-- `held`: a delivery of its queue with a lower position was found pending; the one at the head of a queue never is held.
CREATE TABLE webhook_deliveries (
    endpoint_id text    COLLATE "C" NOT NULL,
    position    bigint  NOT NULL,
    status      text    COLLATE "C" NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dead')),
    at_ms       bigint  NOT NULL,
    due_ms      bigint  NOT NULL,
    created_ms  bigint  NOT NULL,
    attempts    integer NOT NULL DEFAULT 0,
    queue       text    COLLATE "C",
    held        boolean NOT NULL DEFAULT false,
    last_status integer,
    last_error  text,
    PRIMARY KEY (endpoint_id, position)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint_id, due_ms, position)
    WHERE status = 'pending' AND NOT held;
CREATE INDEX webhook_deliveries_queued ON webhook_deliveries (endpoint_id, queue, position)
    WHERE status = 'pending' AND queue IS NOT NULL;
CREATE INDEX webhook_deliveries_listed ON webhook_deliveries (endpoint_id, status, at_ms, position);
-- What was sent leaves dead entries at the front of the indexes that are read all the time.
ALTER TABLE webhook_deliveries SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

-- Processes that send. One that has not renewed its row in time is dead to the others.
CREATE TABLE webhook_workers (
    id             text   COLLATE "C" NOT NULL PRIMARY KEY,
    alive_until_ms bigint NOT NULL
) WITH (fillfactor = 25);

-- Pending deliveries that a worker is sending now: never more than may be in flight.
CREATE TABLE webhook_claims (
    endpoint_id text   COLLATE "C" NOT NULL,
    position    bigint NOT NULL,
    worker      text   COLLATE "C" NOT NULL,
    PRIMARY KEY (endpoint_id, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Attempts that have ended.
CREATE TABLE webhook_attempts (
    id          bigint  GENERATED ALWAYS AS IDENTITY,
    endpoint_id text    COLLATE "C" NOT NULL,
    position    bigint  NOT NULL,
    at_ms       bigint  NOT NULL,
    status      integer,
    error       text,
    latency_ms  bigint  NOT NULL,
    response    text    NOT NULL,
    PRIMARY KEY (endpoint_id, position, id)
);

-- How many deliveries are pending and dead, as sums over rows that are only added (and joined now and then), so that
-- counting waits for nobody and does not grow with what is counted.
CREATE TABLE webhook_tallies (
    endpoint_id text   COLLATE "C" NOT NULL,
    pending     bigint NOT NULL,
    dead        bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- What was done by whom. `detail`: names and texts.
CREATE TABLE admin_log (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_ms   bigint NOT NULL,
    actor   text   NOT NULL,
    action  text   NOT NULL,
    subject text   NOT NULL,
    detail  json   NOT NULL
);
