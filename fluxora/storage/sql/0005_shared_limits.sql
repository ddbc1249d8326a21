-- Rate limits that hold over all processes: what callers have spent lately, and where. *_ms as in 0003.
-- A caller is a keyed hash of its address or principal, so that no address is stored. All of it is forgotten after a
-- minute, and by a crash of the server: then each process goes by what it knows.

CREATE TABLE limit_salt (
    one  boolean NOT NULL DEFAULT true PRIMARY KEY CHECK (one),
    salt bytea   NOT NULL
);
INSERT INTO limit_salt (salt) VALUES (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));

CREATE UNLOGGED TABLE limit_processes (
    id      text   COLLATE "C" NOT NULL PRIMARY KEY,
    seen_ms bigint NOT NULL
);

-- `spent`: tallies of 21 bytes, which are hash (16), policy (1) and tokens (4).
CREATE UNLOGGED TABLE limit_rounds (
    process text   COLLATE "C" NOT NULL,
    round   bigint NOT NULL,
    at_ms   bigint NOT NULL,
    spent   bytea  NOT NULL,
    PRIMARY KEY (process, round)
);
