-- +goose Up
-- The inbox: a row is a message that was handled, written in the transaction of its effect.
-- Names are VARBINARY: exact bytes, whatever the collation of the database does with case and spaces.
-- Times are UTC.

CREATE TABLE IF NOT EXISTS millrace_inbox (
    consumer     VARBINARY(200) NOT NULL CHECK (LENGTH(consumer) > 0),
    message_id   VARBINARY(200) NOT NULL CHECK (LENGTH(message_id) > 0),
    processed_at DATETIME(6)    NOT NULL,
    PRIMARY KEY (consumer, message_id),
    KEY millrace_inbox_processed_at (processed_at)
) ENGINE = InnoDB;
