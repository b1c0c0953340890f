// Package millrace runs transactions with hooks: functions that run when a transaction commits, when
// it rolls back, or when it ends, and a buffer of messages that is written with COMMIT.
package millrace
