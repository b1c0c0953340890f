-- +goose Up
-- Half messages: stored before the local transaction, and let go or dropped after it. What has been
-- decided stays for a while without its content, so that a second word about it finds the first.
-- Times are UTC.

CREATE TABLE IF NOT EXISTS millrace_half (
    id          VARBINARY(64)   NOT NULL PRIMARY KEY,
    topic       VARBINARY(200)  NOT NULL,
    state       VARCHAR(10)     NOT NULL CHECK (state IN ('prepared', 'parked', 'committed', 'ended')),
    reason      VARCHAR(1000)   CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    witness     VARCHAR(64)     CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    callback    VARCHAR(2000)   CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    max_age     BIGINT          NOT NULL,
    checks      INT             NOT NULL DEFAULT 0,
    claim       BIGINT          NOT NULL DEFAULT 0,
    last_error  VARCHAR(1000)   CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
    digest      VARCHAR(64)     NOT NULL,
    metadata    MEDIUMTEXT      CHARACTER SET utf8mb4 NOT NULL,
    payload     LONGBLOB        NOT NULL,
    prepared_at DATETIME(6)     NOT NULL,
    next_check  DATETIME(6)     NOT NULL,
    decided_at  DATETIME(6),
    KEY millrace_half_next_check (state, next_check),
    KEY millrace_half_decided_at (decided_at)
) ENGINE = InnoDB;
