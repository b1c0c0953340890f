-- +goose Up
-- Half messages: stored before the local transaction, and let go or dropped after it. What has been
-- decided stays for a while without its content, so that a second word about it finds the first.
-- Times are microseconds since 1970.

CREATE TABLE IF NOT EXISTS millrace_half (
    id          TEXT    NOT NULL PRIMARY KEY,
    topic       TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('prepared', 'parked', 'committed', 'ended')),
    reason      TEXT    NOT NULL DEFAULT '',
    witness     TEXT    NOT NULL DEFAULT '',
    callback    TEXT    NOT NULL DEFAULT '',
    max_age     INTEGER NOT NULL,
    checks      INTEGER NOT NULL DEFAULT 0,
    claim       INTEGER NOT NULL DEFAULT 0,
    last_error  TEXT    NOT NULL DEFAULT '',
    digest      TEXT    NOT NULL,
    metadata    TEXT    NOT NULL,
    payload     BLOB    NOT NULL,
    prepared_at INTEGER NOT NULL,
    next_check  INTEGER NOT NULL,
    decided_at  INTEGER
);

CREATE INDEX IF NOT EXISTS millrace_half_next_check ON millrace_half (next_check) WHERE state = 'prepared';

CREATE INDEX IF NOT EXISTS millrace_half_decided_at ON millrace_half (decided_at) WHERE decided_at IS NOT NULL;
