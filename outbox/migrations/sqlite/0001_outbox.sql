-- +goose Up
-- The outbox: a row is work to be done. Each statement may be run again. Times are microseconds since 1970.
-- A table prefix other than millrace_ is put in by replacing millrace_outbox, millrace_lanes and so on.

CREATE TABLE IF NOT EXISTS millrace_schema (
    part       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    applied_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    PRIMARY KEY (part, version)
);

-- AUTOINCREMENT: a position is never handed out twice.
CREATE TABLE IF NOT EXISTS millrace_outbox (
    pos        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE CHECK (length(CAST(id AS BLOB)) BETWEEN 1 AND 64),
    lane       INTEGER NOT NULL CHECK (typeof(lane) = 'integer' AND lane BETWEEN 0 AND 63),
    topic      TEXT    NOT NULL CHECK (length(CAST(topic AS BLOB)) BETWEEN 1 AND 200),
    order_key  TEXT    NOT NULL DEFAULT '' CHECK (length(CAST(order_key AS BLOB)) <= 255),
    ready      INTEGER NOT NULL DEFAULT 1 CHECK (ready IN (0, 1)),
    due_at     INTEGER CHECK (due_at IS NULL OR typeof(due_at) = 'integer'),
    held       TEXT,
    attempts   INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    sending    INTEGER NOT NULL DEFAULT 0 CHECK (sending IN (0, 1)),
    schedule   TEXT    CHECK (schedule IS NULL OR length(CAST(schedule AS BLOB)) BETWEEN 1 AND 200),
    size       INTEGER NOT NULL DEFAULT 0 CHECK (size >= 0),
    metadata   TEXT    NOT NULL DEFAULT '{}',
    payload    BLOB    NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    -- A row that is not ready says what it waits for: a time, or the stop of its key.
    CHECK ((due_at IS NOT NULL) + (held IS NOT NULL) = 1 - ready)
);

-- What may be sent now, by destination.
CREATE INDEX IF NOT EXISTS millrace_outbox_ready ON millrace_outbox (topic, lane, pos) WHERE ready = 1;

-- What becomes due.
CREATE INDEX IF NOT EXISTS millrace_outbox_due ON millrace_outbox (lane, due_at) WHERE due_at IS NOT NULL;

-- What stands behind the stop of its key.
CREATE INDEX IF NOT EXISTS millrace_outbox_held ON millrace_outbox (lane, held, order_key, pos) WHERE held IS NOT NULL;

-- Who holds which lane. Changes only when a lane changes hands. Owner NULL = released; an owner
-- without a row in millrace_forwarders = vanished.
CREATE TABLE IF NOT EXISTS millrace_lanes (
    lane    INTEGER PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    owner   TEXT,
    epoch   INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0
);

INSERT OR IGNORE INTO millrace_lanes (lane)
    WITH RECURSIVE n (lane) AS (SELECT 0 UNION ALL SELECT lane + 1 FROM n WHERE lane < 63) SELECT lane FROM n;

-- Who is alive. The only rows that are renewed.
CREATE TABLE IF NOT EXISTS millrace_forwarders (
    id         TEXT    PRIMARY KEY,
    beat       INTEGER NOT NULL DEFAULT 0,
    expires_at INTEGER NOT NULL,
    down       TEXT    NOT NULL DEFAULT '[]'
);

-- Keys that wait for their failing message.
CREATE TABLE IF NOT EXISTS millrace_stops (
    lane        INTEGER NOT NULL,
    destination TEXT    NOT NULL,
    order_key   TEXT    NOT NULL,
    pos         INTEGER NOT NULL,
    retry_at    INTEGER NOT NULL,
    PRIMARY KEY (lane, destination, order_key)
);

-- Messages that were set aside, whole, with the reason.
CREATE TABLE IF NOT EXISTS millrace_dead (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    pos         INTEGER NOT NULL,
    id          TEXT    NOT NULL,
    lane        INTEGER NOT NULL,
    topic       TEXT    NOT NULL,
    order_key   TEXT    NOT NULL,
    destination TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    error       TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    metadata    TEXT    NOT NULL,
    payload     BLOB    NOT NULL,
    created_at  INTEGER NOT NULL,
    died_at     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))
);

CREATE INDEX IF NOT EXISTS millrace_dead_id ON millrace_dead (id);

CREATE INDEX IF NOT EXISTS millrace_dead_died_at ON millrace_dead (died_at);

INSERT OR IGNORE INTO millrace_schema (part, version) VALUES ('millrace_outbox', 1);
