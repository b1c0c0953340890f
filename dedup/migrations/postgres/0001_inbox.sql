-- +goose Up
-- The inbox: a row is a message that was handled, written in the transaction of its effect.

CREATE TABLE millrace_inbox (
    consumer     TEXT        NOT NULL CHECK (consumer <> ''),
    message_id   TEXT        NOT NULL CHECK (message_id <> ''),
    processed_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id)
);

CREATE INDEX millrace_inbox_processed_at ON millrace_inbox (processed_at);
