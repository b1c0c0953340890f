-- +goose Up
-- Messages that come back to a handler (grp) later, and those that were given up.
-- message_id is readable where the id allows it, else a hash; head holds what came, byte for byte.
-- due_at is when a message may be taken, or, while it has an owner, when the lease ends; without one the
-- message waits for an earlier one of its order_key. Names are VARBINARY: exact bytes, whatever the
-- collation of the database does with case and spaces. Times are UTC.

CREATE TABLE IF NOT EXISTS millrace_delayed (
    pos        BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    grp        VARBINARY(128) NOT NULL CHECK (LENGTH(grp) > 0),
    message_id VARBINARY(200) NOT NULL CHECK (LENGTH(message_id) > 0),
    order_key  VARBINARY(64)  NOT NULL,
    due_at     DATETIME(6),
    owner      VARBINARY(64)  NOT NULL DEFAULT '',
    attempts   INT            NOT NULL,
    history    MEDIUMBLOB     NOT NULL,
    head       MEDIUMBLOB     NOT NULL,
    payload    LONGBLOB       NOT NULL,
    UNIQUE KEY millrace_delayed_id (grp, message_id),
    KEY millrace_delayed_due (grp, due_at),
    KEY millrace_delayed_order (grp, order_key, pos)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_dead_letters (
    id         BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
    grp        VARBINARY(128) NOT NULL CHECK (LENGTH(grp) > 0),
    message_id VARBINARY(200) NOT NULL CHECK (LENGTH(message_id) > 0),
    order_key  VARBINARY(64)  NOT NULL,
    died_at    DATETIME(6)    NOT NULL,
    topic      VARBINARY(255) NOT NULL,
    reason     VARBINARY(255) NOT NULL,
    error      VARBINARY(1000) NOT NULL,
    attempts   INT            NOT NULL,
    history    MEDIUMBLOB     NOT NULL,
    head       MEDIUMBLOB     NOT NULL,
    payload    LONGBLOB       NOT NULL,
    UNIQUE KEY millrace_dead_letters_id (grp, message_id),
    KEY millrace_dead_letters_order (grp, id)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS millrace_dead_audit (
    id         BIGINT          NOT NULL AUTO_INCREMENT PRIMARY KEY,
    grp        VARBINARY(128)  NOT NULL,
    decided_at DATETIME(6)     NOT NULL,
    action     VARBINARY(16)   NOT NULL,
    letter     BIGINT          NOT NULL,
    message_id VARBINARY(200)  NOT NULL,
    new_id     VARBINARY(200)  NOT NULL,
    who        VARBINARY(200)  NOT NULL,
    why        VARBINARY(1000) NOT NULL,
    KEY millrace_dead_audit_order (grp, id)
) ENGINE = InnoDB;
