-- +goose Up
-- The outbox: a row is work to be done. keep says what happens when the broker has the message: 0 the row
-- is deleted, 1 it is kept as sent for keep_us microseconds, 2 it is kept until the consumers confirmed,
-- which is overdue after keep_us; plan is the policy of that moment. Each statement may be run again. Times are microseconds since 1970.
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
    schedule   TEXT    CHECK (schedule IS NULL OR length(CAST(schedule AS BLOB)) BETWEEN 1 AND 200),
    keep       INTEGER NOT NULL DEFAULT 0 CHECK (keep BETWEEN 0 AND 2),
    keep_us    INTEGER CHECK (keep_us >= 0),
    plan       TEXT,
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

-- Names by which messages that wait can be cancelled or replaced.
CREATE TABLE IF NOT EXISTS millrace_schedules (
    name TEXT NOT NULL PRIMARY KEY,
    id   TEXT NOT NULL UNIQUE
);

-- Messages that had a name and for which it is too late: they are being sent.
CREATE TABLE IF NOT EXISTS millrace_sending (
    id   TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL
);

CREATE INDEX IF NOT EXISTS millrace_sending_name ON millrace_sending (name);

-- Topics and destinations to which nothing is to be sent now.
CREATE TABLE IF NOT EXISTS millrace_pauses (
    kind  TEXT    NOT NULL CHECK (kind IN ('topic', 'destination')),
    name  TEXT    NOT NULL,
    who   TEXT    NOT NULL,
    why   TEXT    NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
);

-- Messages that were set aside, whole, with the reason. Origin is the state in which they died.
CREATE TABLE IF NOT EXISTS millrace_dead (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    pos         INTEGER NOT NULL,
    id          TEXT    NOT NULL,
    lane        INTEGER NOT NULL,
    topic       TEXT    NOT NULL,
    order_key   TEXT    NOT NULL,
    origin      TEXT    NOT NULL DEFAULT 'waiting',
    destination TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    error       TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    keep        INTEGER NOT NULL DEFAULT 0,
    keep_us     INTEGER,
    plan        TEXT,
    size        INTEGER NOT NULL,
    metadata    TEXT    NOT NULL,
    payload     BLOB    NOT NULL,
    created_at  INTEGER NOT NULL,
    died_at     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))
);

CREATE INDEX IF NOT EXISTS millrace_dead_id ON millrace_dead (id);

CREATE INDEX IF NOT EXISTS millrace_dead_topic ON millrace_dead (topic, seq);

CREATE INDEX IF NOT EXISTS millrace_dead_died_at ON millrace_dead (died_at);

-- Messages that the broker has and that are remembered. due_at is when the confirmation of one that
-- waits for it (state sent, keep 2) is overdue, expires_at from when one is deleted; attempts counts how
-- often it was sent.
CREATE TABLE IF NOT EXISTS millrace_sent (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    pos        INTEGER NOT NULL,
    id         TEXT    NOT NULL,
    lane       INTEGER NOT NULL,
    topic      TEXT    NOT NULL,
    order_key  TEXT    NOT NULL,
    state      TEXT    NOT NULL DEFAULT 'sent' CHECK (state IN ('sent', 'done')),
    attempts   INTEGER NOT NULL DEFAULT 1,
    due_at     INTEGER,
    expires_at INTEGER,
    keep       INTEGER NOT NULL,
    keep_us    INTEGER NOT NULL,
    plan       TEXT,
    size       INTEGER NOT NULL,
    metadata   TEXT    NOT NULL,
    payload    BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    sent_at    INTEGER NOT NULL,
    done_at    INTEGER
);

CREATE INDEX IF NOT EXISTS millrace_sent_id ON millrace_sent (id);

CREATE INDEX IF NOT EXISTS millrace_sent_due ON millrace_sent (lane, due_at) WHERE due_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS millrace_sent_expires ON millrace_sent (expires_at) WHERE expires_at IS NOT NULL;

-- What consumer groups said about a message, whatever its state: it may overtake the settle. sending is the
-- one that it answers, 2147483647 if it does not say.
CREATE TABLE IF NOT EXISTS millrace_confirmations (
    id      TEXT    NOT NULL,
    grp     TEXT    NOT NULL,
    outcome TEXT    NOT NULL,
    sending INTEGER NOT NULL DEFAULT 2147483647,
    error   TEXT    NOT NULL DEFAULT '',
    at      INTEGER NOT NULL,
    PRIMARY KEY (id, grp)
);

CREATE INDEX IF NOT EXISTS millrace_confirmations_at ON millrace_confirmations (at);

CREATE INDEX IF NOT EXISTS millrace_confirmations_grp ON millrace_confirmations (grp, at);

-- What happened to messages that did not go out at the first attempt.
CREATE TABLE IF NOT EXISTS millrace_history (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL,
    at          INTEGER NOT NULL,
    event       TEXT    NOT NULL,
    attempt     INTEGER NOT NULL DEFAULT 0,
    destination TEXT    NOT NULL DEFAULT '',
    reason      TEXT    NOT NULL DEFAULT '',
    error       TEXT    NOT NULL DEFAULT '',
    who         TEXT    NOT NULL DEFAULT ''
);

CREATE INDEX IF NOT EXISTS millrace_history_id ON millrace_history (id, seq);

CREATE INDEX IF NOT EXISTS millrace_history_at ON millrace_history (at);

-- What operators did, and why.
CREATE TABLE IF NOT EXISTS millrace_audit (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    at       INTEGER NOT NULL,
    who      TEXT    NOT NULL,
    why      TEXT    NOT NULL,
    action   TEXT    NOT NULL,
    target   TEXT    NOT NULL,
    affected INTEGER NOT NULL DEFAULT 0,
    finished INTEGER NOT NULL DEFAULT 0
);

INSERT OR IGNORE INTO millrace_schema (part, version) VALUES ('millrace_outbox', 1);
