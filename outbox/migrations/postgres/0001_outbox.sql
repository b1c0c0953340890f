-- +goose Up
-- The outbox: a row is work to be done. Each statement may be run again.
-- A table prefix other than millrace_ is put in by replacing millrace_outbox, millrace_lanes and so on.

CREATE TABLE IF NOT EXISTS millrace_schema (
    part       text        NOT NULL,
    version    integer     NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (part, version)
);

-- vacuum_truncate wants an exclusive lock on exactly this table; the rest makes autovacuum follow a
-- table that is emptied as fast as it is filled.
CREATE TABLE IF NOT EXISTS millrace_outbox (
    pos        bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    id         text        COLLATE "C" NOT NULL CHECK (octet_length(id) BETWEEN 1 AND 64),
    lane       smallint    NOT NULL CHECK (lane BETWEEN 0 AND 63),
    topic      text        COLLATE "C" NOT NULL CHECK (octet_length(topic) BETWEEN 1 AND 200),
    order_key  text        COLLATE "C" NOT NULL DEFAULT '' CHECK (octet_length(order_key) <= 255),
    ready      boolean     NOT NULL DEFAULT true,
    due_at     timestamptz CHECK (isfinite(due_at)),
    held       text        COLLATE "C",
    attempts   integer     NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    sending    boolean     NOT NULL DEFAULT false,
    schedule   text        COLLATE "C" CHECK (octet_length(schedule) BETWEEN 1 AND 200),
    size       integer     NOT NULL DEFAULT 0 CHECK (size >= 0),
    metadata   text        NOT NULL DEFAULT '{}',
    payload    bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
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

-- Messages that were set aside, whole, with the reason.
CREATE TABLE IF NOT EXISTS millrace_dead (
    seq         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pos         bigint      NOT NULL,
    id          text        COLLATE "C" NOT NULL,
    lane        smallint    NOT NULL,
    topic       text        COLLATE "C" NOT NULL,
    order_key   text        COLLATE "C" NOT NULL,
    destination text        NOT NULL,
    reason      text        NOT NULL,
    error       text        NOT NULL,
    attempts    integer     NOT NULL,
    size        integer     NOT NULL,
    metadata    text        NOT NULL,
    payload     bytea       NOT NULL,
    created_at  timestamptz NOT NULL,
    died_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX IF NOT EXISTS millrace_dead_id ON millrace_dead (id);

CREATE INDEX IF NOT EXISTS millrace_dead_died_at ON millrace_dead (died_at);

INSERT INTO millrace_schema (part, version) VALUES ('millrace_outbox', 1) ON CONFLICT DO NOTHING;
