-- +goose Up
-- In the business's database. A row of kind W is a local transaction of a half message that committed; a
-- row of kind T, put there by who looked for one in vain, keeps that transaction from committing for ever.
-- Times are microseconds since 1970.

CREATE TABLE IF NOT EXISTS millrace_barrier (
    id         TEXT    NOT NULL PRIMARY KEY,
    kind       TEXT    NOT NULL CHECK (kind IN ('W', 'T')),
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS millrace_barrier_created_at ON millrace_barrier (created_at);
