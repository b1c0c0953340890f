-- +goose Up
-- Witnesses: a row of kind W is a transaction that committed; a row of kind T, put there by who looked
-- for one in vain, keeps that transaction from committing for ever.

CREATE TABLE millrace_witness (
    id         UUID        PRIMARY KEY,
    kind       CHAR(1)     NOT NULL CHECK (kind IN ('W', 'T')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX millrace_witness_created_at ON millrace_witness (created_at);
