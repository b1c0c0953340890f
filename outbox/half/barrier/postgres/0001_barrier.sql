-- +goose Up
-- In the business's database. A row of kind W is a local transaction of a half message that committed; a
-- row of kind T, put there by who looked for one in vain, keeps that transaction from committing for ever.

CREATE TABLE IF NOT EXISTS millrace_barrier (
    id         text        COLLATE "C" PRIMARY KEY,
    kind       char(1)     NOT NULL CHECK (kind IN ('W', 'T')),
    created_at timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS millrace_barrier_created_at ON millrace_barrier (created_at);
