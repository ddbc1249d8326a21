-- Answers to writes that came with an Idempotency-Key, recorded with the write itself: the same key and request (sha256
-- of the raw body) again are answered with `body` until `expires_ms` (Unix milliseconds). `scope`: the caller and route.
CREATE TABLE idempotency_keys (
    scope       text   COLLATE "C" NOT NULL,
    key         text   COLLATE "C" NOT NULL,
    fingerprint bytea  NOT NULL,
    stream_id   text   COLLATE "C" NOT NULL,
    body        bytea  NOT NULL,
    created_ms  bigint NOT NULL,
    expires_ms  bigint NOT NULL,
    PRIMARY KEY (scope, key)
);
CREATE INDEX idempotency_keys_expiring ON idempotency_keys (expires_ms);
