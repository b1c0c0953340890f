-- +goose Up
-- Messages that come back to a handler (grp) later, and those that were given up.
-- message_id is readable where the id allows it, else a hash; head holds what came, byte for byte.
-- due_at is when a message may be taken, or, while it has an owner, when the lease ends; without one the
-- message waits for an earlier one of its order_key.

CREATE TABLE millrace_delayed (
    pos        BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grp        TEXT        NOT NULL CHECK (grp <> ''),
    message_id TEXT        NOT NULL CHECK (message_id <> ''),
    order_key  TEXT        NOT NULL,
    due_at     TIMESTAMPTZ,
    owner      TEXT        NOT NULL DEFAULT '',
    attempts   INTEGER     NOT NULL,
    history    BYTEA       NOT NULL,
    head       BYTEA       NOT NULL,
    payload    BYTEA       NOT NULL,
    UNIQUE (grp, message_id)
);
CREATE INDEX millrace_delayed_due ON millrace_delayed (grp, due_at);
CREATE INDEX millrace_delayed_order ON millrace_delayed (grp, order_key, pos) WHERE order_key <> '';

CREATE TABLE millrace_dead_letters (
    id         BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grp        TEXT        NOT NULL CHECK (grp <> ''),
    message_id TEXT        NOT NULL CHECK (message_id <> ''),
    order_key  TEXT        NOT NULL,
    died_at    TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    topic      TEXT        NOT NULL,
    reason     TEXT        NOT NULL,
    error      TEXT        NOT NULL,
    attempts   INTEGER     NOT NULL,
    history    BYTEA       NOT NULL,
    head       BYTEA       NOT NULL,
    payload    BYTEA       NOT NULL,
    UNIQUE (grp, message_id)
);
CREATE INDEX millrace_dead_letters_order ON millrace_dead_letters (grp, id);

CREATE TABLE millrace_dead_audit (
    id         BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grp        TEXT        NOT NULL,
    decided_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    action     TEXT        NOT NULL,
    letter     BIGINT      NOT NULL,
    message_id TEXT        NOT NULL,
    new_id     TEXT        NOT NULL,
    who        TEXT        NOT NULL,
    why        TEXT        NOT NULL
);
CREATE INDEX millrace_dead_audit_order ON millrace_dead_audit (grp, id);
