package txn

import (
	"database/sql"
	"errors"
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

func (o Options) check() error {
	var errs []error
	if o.CommitTimeout < 0 {
		errs = append(errs, errors.New("millrace: InTx: CommitTimeout is negative"))
	}
	if o.Retries < 0 {
		errs = append(errs, errors.New("millrace: InTx: Retries is negative"))
	}
	return errors.Join(errs...)
}

// Settings are those of one Pool, complete with defaults.
type Settings struct {
	CommitTimeout  time.Duration
	ResolveTimeout time.Duration // 0: an Unknown outcome stays so
	SecondTimeout  time.Duration // for RequiresNew to get its connection
	HookTimeout    time.Duration
	HooksTimeout   time.Duration
	Async          *Crew
	OnHookError    func(HookError)
	Logger         *slog.Logger
}

// HookError is one failure of a hook that ran after the transaction had ended.
type HookError struct {
	Phase string
	Name  string
	Err   error
	Stack []byte
}
