package txn

import (
	"database/sql"
	"log/slog"
	"time"
)

// Propagation says what to do about a transaction that is already open.
type Propagation int

const (
	Required Propagation = iota
	RequiresNew
	Nested
	Supports
	NotSupported
	Mandatory
	Never
)

// Options are those of one InTx.
type Options struct {
	Propagation   Propagation
	Isolation     sql.IsolationLevel
	ReadOnly      bool
	CommitTimeout time.Duration // 0: the Pool's
	Retries       int
}

// Settings are those of one Pool, complete with defaults.
type Settings struct {
	CommitTimeout time.Duration
	HookTimeout   time.Duration
	HooksTimeout  time.Duration
	OnHookError   func(HookError)
	Logger        *slog.Logger
}

// HookError is one failure of a hook that ran after the transaction had ended.
type HookError struct {
	Phase string
	Name  string
	Err   error
	Stack []byte
}
