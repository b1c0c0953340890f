-- +goose Up
-- In the business's database. A row of kind W is a local transaction of a half message that committed; a
-- row of kind T, put there by who looked for one in vain, keeps that transaction from committing for ever.
-- Times are UTC.

CREATE TABLE IF NOT EXISTS millrace_barrier (
    id         VARBINARY(64) NOT NULL PRIMARY KEY,
    kind       BINARY(1)     NOT NULL CHECK (kind IN ('W', 'T')),
    created_at DATETIME(6)   NOT NULL,
    KEY millrace_barrier_created_at (created_at)
) ENGINE = InnoDB;
