-- +goose Up
-- Witnesses: a row of kind W is a transaction that committed; a row of kind T, put there by who looked
-- for one in vain, keeps that transaction from committing for ever. Times are UTC.

CREATE TABLE IF NOT EXISTS millrace_witness (
    id         VARBINARY(36) NOT NULL PRIMARY KEY,
    kind       BINARY(1)     NOT NULL CHECK (kind IN ('W', 'T')),
    created_at DATETIME(6)   NOT NULL,
    KEY millrace_witness_created_at (created_at)
) ENGINE = InnoDB;
