-- +goose Up
-- Half messages: stored before the local transaction, and let go or dropped after it. What has been
-- decided stays for a while without its content, so that a second word about it finds the first.

CREATE TABLE IF NOT EXISTS millrace_half (
    id          text        COLLATE "C" PRIMARY KEY,
    topic       text        COLLATE "C" NOT NULL,
    state       text        NOT NULL CHECK (state IN ('prepared', 'parked', 'committed', 'ended')),
    reason      text        NOT NULL DEFAULT '',
    witness     text        NOT NULL DEFAULT '',
    callback    text        NOT NULL DEFAULT '',
    max_age     bigint      NOT NULL,
    checks      integer     NOT NULL DEFAULT 0,
    claim       bigint      NOT NULL DEFAULT 0,
    last_error  text        NOT NULL DEFAULT '',
    digest      text        NOT NULL,
    metadata    text        NOT NULL,
    payload     bytea       NOT NULL,
    prepared_at timestamptz NOT NULL,
    next_check  timestamptz NOT NULL,
    decided_at  timestamptz
);

CREATE INDEX IF NOT EXISTS millrace_half_next_check ON millrace_half (next_check) WHERE state = 'prepared';

CREATE INDEX IF NOT EXISTS millrace_half_decided_at ON millrace_half (decided_at) WHERE decided_at IS NOT NULL;
