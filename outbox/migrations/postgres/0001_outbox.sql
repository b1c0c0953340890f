-- +goose Up
-- The outbox: a row is work to be done. keep says what happens when the broker has the message: 0 the row
-- is deleted, 1 it is kept as sent for keep_us microseconds, 2 it is kept until the consumers confirmed,
-- which is overdue after keep_us; plan is the policy of that moment. Each statement may be run again.
-- A table prefix other than millrace_ is put in by replacing millrace_outbox, millrace_lanes and so on.

CREATE TABLE IF NOT EXISTS millrace_schema (
    part       text        NOT NULL,
    version    integer     NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (part, version)
);

-- What a value of one column may be. PostgreSQL reads the CHECKs of a table from their text again for each
-- statement that inserts, which cost more than the rest of the INSERT; those of a domain once in a session.
-- +goose StatementBegin
DO $$
DECLARE
    definition text;
BEGIN
    FOREACH definition IN ARRAY ARRAY[
        'millrace_id AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 64)',
        'millrace_topic AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 200)',
        'millrace_key AS text COLLATE "C" CHECK (octet_length(VALUE) <= 255)',
        'millrace_lane AS smallint CHECK (VALUE BETWEEN 0 AND 63)',
        'millrace_time AS timestamptz CHECK (isfinite(VALUE))',
        'millrace_count AS integer CHECK (VALUE >= 0)',
        'millrace_name AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 200)',
        'millrace_keep AS smallint CHECK (VALUE BETWEEN 0 AND 2)',
        'millrace_micros AS bigint CHECK (VALUE >= 0)'
    ] LOOP
        BEGIN
            EXECUTE 'CREATE DOMAIN ' || definition;
        EXCEPTION WHEN duplicate_object THEN
            NULL; -- it is there
        END;
    END LOOP;
END $$;
-- +goose StatementEnd

-- vacuum_truncate wants an exclusive lock on exactly this table; the rest makes autovacuum follow a
-- table that is emptied as fast as it is filled.
CREATE TABLE IF NOT EXISTS millrace_outbox (
    pos        bigint          GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    id         millrace_id     NOT NULL,
    lane       millrace_lane   NOT NULL,
    topic      millrace_topic  NOT NULL,
    order_key  millrace_key    NOT NULL DEFAULT '',
    ready      boolean         NOT NULL DEFAULT true,
    due_at     millrace_time,
    held       text            COLLATE "C",
    attempts   millrace_count  NOT NULL DEFAULT 0,
    schedule   millrace_name,
    keep       millrace_keep   NOT NULL DEFAULT 0,
    keep_us    millrace_micros,
    plan       text,
    size       millrace_count  NOT NULL DEFAULT 0,
    metadata   text            NOT NULL DEFAULT '{}',
    payload    bytea           NOT NULL,
    created_at timestamptz     NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT millrace_outbox_id UNIQUE (id),
    -- A row that is not ready says what it waits for: a time, or the stop of its key.
    CONSTRAINT millrace_outbox_reason CHECK (num_nonnulls(due_at, held) = CASE WHEN ready THEN 0 ELSE 1 END)
) WITH (
    vacuum_truncate = off,
    toast.vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 5000,
    toast.autovacuum_vacuum_cost_delay = 0
);

-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE millrace_outbox ALTER COLUMN payload SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL; -- a server built without lz4
END $$;
-- +goose StatementEnd

-- What may be sent now, by destination.
CREATE INDEX IF NOT EXISTS millrace_outbox_ready ON millrace_outbox (topic, lane, pos) WHERE ready;

-- What becomes due.
CREATE INDEX IF NOT EXISTS millrace_outbox_due ON millrace_outbox (lane, due_at) WHERE due_at IS NOT NULL;

-- What stands behind the stop of its key.
CREATE INDEX IF NOT EXISTS millrace_outbox_held ON millrace_outbox (lane, held, order_key, pos) WHERE held IS NOT NULL;

-- Who holds which lane. Changes only when a lane changes hands. Owner NULL = released; an owner
-- without a row in millrace_forwarders = vanished.
CREATE TABLE IF NOT EXISTS millrace_lanes (
    lane    smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    owner   text     COLLATE "C",
    epoch   bigint   NOT NULL DEFAULT 0,
    crashes integer  NOT NULL DEFAULT 0
);

INSERT INTO millrace_lanes (lane) SELECT generate_series(0, 63) ON CONFLICT (lane) DO NOTHING;

-- Who is alive. The only rows that are renewed.
CREATE TABLE IF NOT EXISTS millrace_forwarders (
    id         text        COLLATE "C" PRIMARY KEY,
    beat       bigint      NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    down       text        NOT NULL DEFAULT '[]'
) WITH (fillfactor = 50);

-- Keys that wait for their failing message.
CREATE TABLE IF NOT EXISTS millrace_stops (
    lane        smallint    NOT NULL,
    destination text        COLLATE "C" NOT NULL,
    order_key   text        COLLATE "C" NOT NULL,
    pos         bigint      NOT NULL,
    retry_at    timestamptz NOT NULL,
    PRIMARY KEY (lane, destination, order_key)
);

-- Names by which messages that wait can be cancelled or replaced.
CREATE TABLE IF NOT EXISTS millrace_schedules (
    name text COLLATE "C" PRIMARY KEY,
    id   text COLLATE "C" NOT NULL CONSTRAINT millrace_schedules_id UNIQUE
);

-- Messages that had a name and for which it is too late: they are being sent.
CREATE TABLE IF NOT EXISTS millrace_sending (
    id   text COLLATE "C" PRIMARY KEY,
    name text COLLATE "C" NOT NULL
);

CREATE INDEX IF NOT EXISTS millrace_sending_name ON millrace_sending (name);

-- Topics and destinations to which nothing is to be sent now.
CREATE TABLE IF NOT EXISTS millrace_pauses (
    kind  text        NOT NULL CHECK (kind IN ('topic', 'destination')),
    name  text        COLLATE "C" NOT NULL,
    who   text        NOT NULL,
    why   text        NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, name)
);

-- Messages that were set aside, whole, with the reason. Origin is the state in which they died.
CREATE TABLE IF NOT EXISTS millrace_dead (
    seq         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pos         bigint      NOT NULL,
    id          text        COLLATE "C" NOT NULL,
    lane        smallint    NOT NULL,
    topic       text        COLLATE "C" NOT NULL,
    order_key   text        COLLATE "C" NOT NULL,
    origin      text        NOT NULL DEFAULT 'waiting',
    destination text        NOT NULL,
    reason      text        NOT NULL,
    error       text        NOT NULL,
    attempts    integer     NOT NULL,
    keep        smallint    NOT NULL DEFAULT 0,
    keep_us     bigint,
    plan        text,
    size        integer     NOT NULL,
    metadata    text        NOT NULL,
    payload     bytea       NOT NULL,
    created_at  timestamptz NOT NULL,
    died_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX IF NOT EXISTS millrace_dead_id ON millrace_dead (id);

CREATE INDEX IF NOT EXISTS millrace_dead_topic ON millrace_dead (topic, seq);

CREATE INDEX IF NOT EXISTS millrace_dead_died_at ON millrace_dead (died_at);

-- Messages that the broker has and that are remembered. due_at is when the confirmation of one that
-- waits for it (state sent, keep 2) is overdue, expires_at from when one is deleted; attempts counts how
-- often it was sent.
CREATE TABLE IF NOT EXISTS millrace_sent (
    seq        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pos        bigint      NOT NULL,
    id         text        COLLATE "C" NOT NULL,
    lane       smallint    NOT NULL,
    topic      text        COLLATE "C" NOT NULL,
    order_key  text        COLLATE "C" NOT NULL,
    state      text        NOT NULL DEFAULT 'sent' CHECK (state IN ('sent', 'done')),
    attempts   integer     NOT NULL DEFAULT 1,
    due_at     timestamptz,
    expires_at timestamptz,
    keep       smallint    NOT NULL,
    keep_us    bigint      NOT NULL,
    plan       text,
    size       integer     NOT NULL,
    metadata   text        NOT NULL,
    payload    bytea       NOT NULL,
    created_at timestamptz NOT NULL,
    sent_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at    timestamptz
);

CREATE INDEX IF NOT EXISTS millrace_sent_id ON millrace_sent (id);

CREATE INDEX IF NOT EXISTS millrace_sent_due ON millrace_sent (lane, due_at) WHERE due_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS millrace_sent_expires ON millrace_sent (expires_at) WHERE expires_at IS NOT NULL;

-- What consumer groups said about a message, whatever its state: it may overtake the settle. sending is the
-- one that it answers, 2147483647 if it does not say.
CREATE TABLE IF NOT EXISTS millrace_confirmations (
    id      text        COLLATE "C" NOT NULL,
    grp     text        COLLATE "C" NOT NULL,
    outcome text        NOT NULL,
    sending integer     NOT NULL DEFAULT 2147483647,
    error   text        NOT NULL DEFAULT '',
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id, grp)
);

CREATE INDEX IF NOT EXISTS millrace_confirmations_at ON millrace_confirmations (at);

CREATE INDEX IF NOT EXISTS millrace_confirmations_grp ON millrace_confirmations (grp, at);

-- What happened to messages that did not go out at the first attempt.
CREATE TABLE IF NOT EXISTS millrace_history (
    seq         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          text        COLLATE "C" NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    event       text        NOT NULL,
    attempt     integer     NOT NULL DEFAULT 0,
    destination text        NOT NULL DEFAULT '',
    reason      text        NOT NULL DEFAULT '',
    error       text        NOT NULL DEFAULT '',
    who         text        NOT NULL DEFAULT ''
);

CREATE INDEX IF NOT EXISTS millrace_history_id ON millrace_history (id, seq);

CREATE INDEX IF NOT EXISTS millrace_history_at ON millrace_history (at);

-- What operators did, and why.
CREATE TABLE IF NOT EXISTS millrace_audit (
    seq      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    who      text        NOT NULL,
    why      text        NOT NULL,
    action   text        NOT NULL,
    target   text        NOT NULL,
    affected bigint      NOT NULL DEFAULT 0,
    finished boolean     NOT NULL DEFAULT false
);

INSERT INTO millrace_schema (part, version) VALUES ('millrace_outbox', 1) ON CONFLICT DO NOTHING;
