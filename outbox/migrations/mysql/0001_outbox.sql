-- +goose Up
-- The outbox: a row is work to be done. Each statement may be run again, because MySQL commits each.
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
    sending    TINYINT(1)     NOT NULL DEFAULT 0,
    schedule   VARBINARY(200),
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

CREATE TABLE IF NOT EXISTS millrace_forwarders (
    id         VARBINARY(64) NOT NULL PRIMARY KEY,
    beat       BIGINT        NOT NULL DEFAULT 0,
    expires_at DATETIME(6)   NOT NULL,
    down       VARCHAR(4000) CHARACTER SET utf8mb4 NOT NULL DEFAULT '[]'
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_stops (
    lane        SMALLINT       NOT NULL,
    destination VARBINARY(200) NOT NULL,
    order_key   VARBINARY(255) NOT NULL,
    pos         BIGINT         NOT NULL,
    retry_at    DATETIME(6)    NOT NULL,
    PRIMARY KEY (lane, destination, order_key)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_dead (
    seq         BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    pos         BIGINT         NOT NULL,
    id          VARBINARY(64)  NOT NULL,
    lane        SMALLINT       NOT NULL,
    topic       VARBINARY(200) NOT NULL,
    order_key   VARBINARY(255) NOT NULL,
    destination VARBINARY(200) NOT NULL,
    reason      VARCHAR(200)   CHARACTER SET utf8mb4 NOT NULL,
    error       TEXT           CHARACTER SET utf8mb4 NOT NULL,
    attempts    INT            NOT NULL,
    size        INT            NOT NULL,
    metadata    MEDIUMTEXT     CHARACTER SET utf8mb4 NOT NULL,
    payload     LONGBLOB       NOT NULL,
    created_at  DATETIME(6)    NOT NULL,
    died_at     DATETIME(6)    NOT NULL,
    KEY millrace_dead_id (id),
    KEY millrace_dead_died_at (died_at)
) ENGINE = InnoDB;

INSERT IGNORE INTO millrace_schema (part, version) VALUES ('millrace_outbox', 1);
