-- +goose Up
-- The inbox: a row is a message that was handled, written in the transaction of its effect.
-- processed_at is in seconds since 1970.

CREATE TABLE millrace_inbox (
    consumer     TEXT    NOT NULL CHECK (consumer <> ''),
    message_id   TEXT    NOT NULL CHECK (message_id <> ''),
    processed_at INTEGER NOT NULL,
    PRIMARY KEY (consumer, message_id)
) WITHOUT ROWID;

CREATE INDEX millrace_inbox_processed_at ON millrace_inbox (processed_at);
