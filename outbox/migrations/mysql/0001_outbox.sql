-- +goose Up
-- The outbox: a row is work to be done. keep says what happens when the broker has the message: 0 the row
-- is deleted, 1 it is kept as sent for keep_us microseconds, 2 it is kept until the consumers confirmed,
-- which is overdue after keep_us; plan is the policy of that moment. Each statement may be run again, because MySQL commits each.
-- A table prefix other than millrace_ is put in by replacing millrace_outbox, millrace_lanes and so on.
-- Names are VARBINARY: exact bytes, whatever the collation of the database does with case and spaces.
-- Times are UTC.

CREATE TABLE IF NOT EXISTS millrace_schema (
    part       VARCHAR(64) CHARACTER SET ascii NOT NULL,
    version    INT         NOT NULL,
    applied_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    PRIMARY KEY (part, version)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_outbox (
    pos        BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id         VARBINARY(64)  NOT NULL CHECK (LENGTH(id) > 0),
    lane       SMALLINT       NOT NULL CHECK (lane BETWEEN 0 AND 63),
    topic      VARBINARY(200) NOT NULL CHECK (LENGTH(topic) > 0),
    order_key  VARBINARY(255) NOT NULL DEFAULT '',
    ready      TINYINT(1)     NOT NULL DEFAULT 1 CHECK (ready IN (0, 1)),
    due_at     DATETIME(6),
    held       VARBINARY(200),
    attempts   INT            NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    schedule   VARBINARY(200),
    keep       SMALLINT       NOT NULL DEFAULT 0 CHECK (keep BETWEEN 0 AND 2),
    keep_us    BIGINT,
    plan       TEXT           CHARACTER SET utf8mb4,
    size       INT            NOT NULL DEFAULT 0 CHECK (size >= 0),
    metadata   MEDIUMTEXT     CHARACTER SET utf8mb4 NOT NULL,
    payload    LONGBLOB       NOT NULL,
    created_at DATETIME(6)    NOT NULL,
    UNIQUE KEY millrace_outbox_id (id),
    KEY millrace_outbox_ready (ready, topic, lane, pos),
    KEY millrace_outbox_due (ready, lane, due_at),
    KEY millrace_outbox_held (ready, lane, held, order_key, pos),
    -- A row that is not ready says what it waits for: a time, or the stop of its key.
    CONSTRAINT millrace_outbox_reason CHECK ((due_at IS NOT NULL) + (held IS NOT NULL) = 1 - ready)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_lanes (
    lane    SMALLINT      NOT NULL PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    owner   VARBINARY(64),
    epoch   BIGINT        NOT NULL DEFAULT 0,
    crashes INT           NOT NULL DEFAULT 0
) ENGINE = InnoDB;

INSERT IGNORE INTO millrace_lanes (lane)
    WITH RECURSIVE n (lane) AS (SELECT 0 UNION ALL SELECT lane + 1 FROM n WHERE lane < 63) SELECT lane FROM n;

-- Written after a read, so that what was read is on disk before it is sent. n only has to change.
CREATE TABLE IF NOT EXISTS millrace_flush (
    lane SMALLINT NOT NULL PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    n    BIGINT   NOT NULL
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_forwarders (
    id         VARBINARY(64) NOT NULL PRIMARY KEY,
    beat       BIGINT        NOT NULL DEFAULT 0,
    expires_at DATETIME(6)   NOT NULL,
    down       VARCHAR(8000) CHARACTER SET utf8mb4 NOT NULL DEFAULT '[]'
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_stops (
    lane        SMALLINT       NOT NULL,
    destination VARBINARY(200) NOT NULL,
    order_key   VARBINARY(255) NOT NULL,
    pos         BIGINT         NOT NULL,
    retry_at    DATETIME(6)    NOT NULL,
    PRIMARY KEY (lane, destination, order_key)
) ENGINE = InnoDB;

-- Names by which messages that wait can be cancelled or replaced. It is a table of its own because a
-- cancellation that finds nothing locks the gap beside the name.
CREATE TABLE IF NOT EXISTS millrace_schedules (
    name VARBINARY(200) NOT NULL PRIMARY KEY,
    id   VARBINARY(64)  NOT NULL,
    UNIQUE KEY millrace_schedules_id (id)
) ENGINE = InnoDB;

-- Messages that had a name and for which it is too late: they are being sent. It is another table, so that
-- to mark a message inserts nothing into such a gap.
CREATE TABLE IF NOT EXISTS millrace_sending (
    id   VARBINARY(64)  NOT NULL PRIMARY KEY,
    name VARBINARY(200) NOT NULL,
    KEY millrace_sending_name (name)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_pauses (
    kind  VARCHAR(20)    CHARACTER SET ascii NOT NULL CHECK (kind IN ('topic', 'destination')),
    name  VARBINARY(200) NOT NULL,
    who   VARCHAR(200)   CHARACTER SET utf8mb4 NOT NULL,
    why   VARCHAR(1000)  CHARACTER SET utf8mb4 NOT NULL,
    since DATETIME(6)    NOT NULL,
    PRIMARY KEY (kind, name)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_dead (
    seq         BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    pos         BIGINT         NOT NULL,
    id          VARBINARY(64)  NOT NULL,
    lane        SMALLINT       NOT NULL,
    topic       VARBINARY(200) NOT NULL,
    order_key   VARBINARY(255) NOT NULL,
    origin      VARCHAR(20)    CHARACTER SET ascii NOT NULL DEFAULT 'waiting',
    destination VARBINARY(200) NOT NULL,
    reason      VARCHAR(200)   CHARACTER SET utf8mb4 NOT NULL,
    error       TEXT           CHARACTER SET utf8mb4 NOT NULL,
    attempts    INT            NOT NULL,
    keep        SMALLINT       NOT NULL DEFAULT 0,
    keep_us     BIGINT,
    plan        TEXT           CHARACTER SET utf8mb4,
    size        INT            NOT NULL,
    metadata    MEDIUMTEXT     CHARACTER SET utf8mb4 NOT NULL,
    payload     LONGBLOB       NOT NULL,
    created_at  DATETIME(6)    NOT NULL,
    died_at     DATETIME(6)    NOT NULL,
    KEY millrace_dead_id (id),
    KEY millrace_dead_topic (topic, seq),
    KEY millrace_dead_died_at (died_at)
) ENGINE = InnoDB;

-- Messages that the broker has and that are remembered. due_at is when the confirmation of one that
-- waits for it (state sent, keep 2) is overdue, expires_at from when one is deleted; attempts counts how
-- often it was sent.
CREATE TABLE IF NOT EXISTS millrace_sent (
    seq        BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    pos        BIGINT         NOT NULL,
    id         VARBINARY(64)  NOT NULL,
    lane       SMALLINT       NOT NULL,
    topic      VARBINARY(200) NOT NULL,
    order_key  VARBINARY(255) NOT NULL,
    state      VARCHAR(20)    CHARACTER SET ascii NOT NULL DEFAULT 'sent' CHECK (state IN ('sent', 'done')),
    attempts   INT            NOT NULL DEFAULT 1,
    due_at     DATETIME(6),
    expires_at DATETIME(6),
    keep       SMALLINT       NOT NULL,
    keep_us    BIGINT         NOT NULL,
    plan       TEXT           CHARACTER SET utf8mb4,
    size       INT            NOT NULL,
    metadata   MEDIUMTEXT     CHARACTER SET utf8mb4 NOT NULL,
    payload    LONGBLOB       NOT NULL,
    created_at DATETIME(6)    NOT NULL,
    sent_at    DATETIME(6)    NOT NULL,
    done_at    DATETIME(6),
    KEY millrace_sent_id (id),
    KEY millrace_sent_due (lane, due_at),
    KEY millrace_sent_expires (expires_at)
) ENGINE = InnoDB;

-- What consumer groups said about a message, whatever its state: it may overtake the settle. sending is the
-- one that it answers, 2147483647 if it does not say.
CREATE TABLE IF NOT EXISTS millrace_confirmations (
    id      VARBINARY(64)  NOT NULL,
    grp     VARBINARY(200) NOT NULL,
    outcome VARCHAR(20)    CHARACTER SET ascii NOT NULL,
    sending INT            NOT NULL DEFAULT 2147483647,
    error   TEXT           CHARACTER SET utf8mb4 NOT NULL,
    at      DATETIME(6)    NOT NULL,
    PRIMARY KEY (id, grp),
    KEY millrace_confirmations_at (at),
    KEY millrace_confirmations_grp (grp, at)
) ENGINE = InnoDB;

-- What happened to messages that did not go out at the first attempt.
CREATE TABLE IF NOT EXISTS millrace_history (
    seq         BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id          VARBINARY(64)  NOT NULL,
    at          DATETIME(6)    NOT NULL,
    event       VARCHAR(20)    CHARACTER SET ascii NOT NULL,
    attempt     INT            NOT NULL DEFAULT 0,
    destination VARBINARY(200) NOT NULL DEFAULT '',
    reason      VARCHAR(200)   CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    error       VARCHAR(1000)  CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    who         VARCHAR(200)   CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    KEY millrace_history_id (id, seq),
    KEY millrace_history_at (at)
) ENGINE = InnoDB;

-- What operators did, and why.
CREATE TABLE IF NOT EXISTS millrace_audit (
    seq      BIGINT        NOT NULL AUTO_INCREMENT PRIMARY KEY,
    at       DATETIME(6)   NOT NULL,
    who      VARCHAR(200)  CHARACTER SET utf8mb4 NOT NULL,
    why      VARCHAR(1000) CHARACTER SET utf8mb4 NOT NULL,
    action   VARCHAR(40)   CHARACTER SET ascii NOT NULL,
    target   TEXT          CHARACTER SET utf8mb4 NOT NULL,
    affected BIGINT        NOT NULL DEFAULT 0,
    finished TINYINT(1)    NOT NULL DEFAULT 0
) ENGINE = InnoDB;

INSERT IGNORE INTO millrace_schema (part, version) VALUES ('millrace_outbox', 1);
