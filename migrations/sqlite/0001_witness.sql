-- +goose Up
-- Witnesses: a row of kind W is a transaction that committed; a row of kind T, put there by who looked
-- for one in vain, keeps that transaction from committing for ever. created_at is in seconds since 1970.

CREATE TABLE millrace_witness (
    id         TEXT    NOT NULL PRIMARY KEY,
    kind       TEXT    NOT NULL CHECK (kind IN ('W', 'T')),
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX millrace_witness_created_at ON millrace_witness (created_at);
