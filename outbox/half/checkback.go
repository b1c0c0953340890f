package half

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-go/millrace/internal/fault"
	"github.com/millrace-go/millrace/internal/txn"
)

const (
	lookEvery  = time.Second      // for messages whose check is due
	purgeEvery = 10 * time.Minute // of what is old
)

// Run checks undecided messages back until ctx ends, and then returns nil. A missing table ends it with an
// error; a database that is away is logged and waited for. Any number of replicas may run it: each
// message is checked by one at a time.
func (m *Messages) Run(ctx context.Context) error {
	if c := m.cfg.Callback; c != nil {
		defer c.client.CloseIdleConnections()
	}
	every := min(lookEvery, m.cfg.CheckEvery)
	purged, failing := time.Now(), false
	for checked := false; ; {
		err := error(nil)
		if !checked {
			err = m.Check(ctx)
			checked = err == nil
		}
		if err == nil {
			err = m.checkDue(ctx)
		}
		if err == nil && time.Since(purged) > purgeEvery {
			purged = time.Now()
			_, err = m.Purge(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case IsSetup(err):
			return err
		case err != nil && !failing:
			m.log.WarnContext(ctx, "half messages not checked back, trying on", "error", err)
		}
		failing = err != nil
		// At random: a replica that looks right before another, each time, leaves it nothing to check, and may have
		// nobody to ask itself.
		look := time.NewTimer(every/2 + rand.N(every))
		select {
		case <-ctx.Done():
			look.Stop()
			return nil
		case <-look.C:
		}
	}
}

// checkDue checks back, a batch at a time, what is due.
func (m *Messages) checkDue(ctx context.Context) error {
	dialect, err := m.pool.Dialect(ctx)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		due, err := m.claimDue(ctx, dialect)
		if err != nil || len(due) == 0 {
			return err
		}
		var group errgroup.Group
		for _, h := range due {
			group.Go(func() error { return m.checkBack(ctx, dialect, h) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// claimDue takes messages whose check is due, by pushing that check into the future: another replica, or
// this one after a crash, finds them again then.
func (m *Messages) claimDue(ctx context.Context, dialect txn.Dialect) (claimed []stored, err error) {
	var due []stored
	err = query(ctx, m.pool, dialect, `SELECT `+columns+` FROM millrace_half
		WHERE state = 'prepared' AND next_check <= {now} ORDER BY next_check LIMIT $1`, []any{m.cfg.Batch}, func(row txn.Scanner) error {
		var s stored
		err := scan(row, &s)
		due = append(due, s)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("half: look for due checks: %w", err)
	}
	for _, s := range due {
		n, err := exec(ctx, m.pool, dialect, `UPDATE millrace_half SET claim = claim + 1, next_check = {after $1}
			WHERE id = $2 AND claim = $3 AND state = 'prepared'`, micros(m.cfg.CheckTimeout+m.cfg.CheckEvery), s.ID, s.claim)
		if err != nil {
			return claimed, fmt.Errorf("half: claim a check: %w", err)
		}
		if n == 1 {
			s.claim++
			claimed = append(claimed, s)
		}
	}
	if len(claimed) == 0 && len(due) > 0 {
		return nil, nil // others are at it
	}
	return claimed, nil
}

// checkBack asks what became of the local transaction, and acts on the answer.
func (m *Messages) checkBack(ctx context.Context, dialect txn.Dialect, h stored) error {
	fault.Point("half.before_check")
	call, cancel := context.WithTimeout(ctx, m.cfg.CheckTimeout)
	verdict, err := m.ask(call, h)
	cancel()
	if ctx.Err() != nil {
		return nil // its claim ends by itself
	}
	fault.Point("half.after_check")
	switch {
	case errors.Is(err, errNobody):
		m.log.WarnContext(ctx, "half message whose checker or database this replica does not have", "id", h.ID, "topic", h.Topic, "witness", h.Witness)
		return m.askAgain(ctx, dialect, h, m.cfg.CheckEvery)
	case err != nil || verdict == Unknown:
		return m.undecided(ctx, dialect, h, err)
	case verdict == WasCommitted:
		err = m.Commit(ctx, h.ID)
	case h.Witness != "":
		err = m.end(ctx, h.ID, reasonTombstone)
	case h.age < time.Duration(h.maxAge)*time.Microsecond:
		return m.askAgain(ctx, dialect, h, time.Duration(h.maxAge)*time.Microsecond-h.age)
	default:
		err = m.end(ctx, h.ID, reasonChecker)
	}
	if errors.Is(err, errTooOld) {
		return m.undecided(ctx, dialect, h, err)
	}
	if errors.Is(err, ErrCommitted) || errors.Is(err, ErrRolledBack) || errors.Is(err, ErrNotFound) {
		return nil // the producer was faster
	}
	return err
}

// errTooOld: the witness may have been purged before its tombstone was written.
var errTooOld = errors.New("half: too old for its tombstone to prove anything; decide by hand")

// errNobody: this replica has nobody to ask. That is no check.
var errNobody = errors.New("half: nobody to ask")

func (m *Messages) ask(ctx context.Context, h stored) (verdict Verdict, err error) {
	defer func() {
		if v := recover(); v != nil {
			verdict, err = Unknown, fmt.Errorf("half: the checker panicked: %v", v)
		}
	}()
	switch checker := m.checker(h.Topic); {
	case h.Witness != "" && m.cfg.Witnesses[h.Witness] == nil:
		return Unknown, errNobody
	case h.Witness != "":
		return bury(ctx, m.cfg.Witnesses[h.Witness].TxnPool(), h.ID)
	case h.callback != "" && m.cfg.Callback == nil:
		return Unknown, errNobody
	case h.callback != "":
		return m.cfg.Callback.ask(ctx, h)
	case checker == nil:
		return Unknown, errNobody
	default:
		verdict, err = checker(ctx, h.Info)
		if verdict < Unknown || verdict > WasRolledBack {
			return Unknown, fmt.Errorf("half: the checker answered %d", verdict)
		}
		return verdict, err
	}
}

// askAgain sets the next check without counting this one.
func (m *Messages) askAgain(ctx context.Context, dialect txn.Dialect, h stored, in time.Duration) error {
	_, err := exec(ctx, m.pool, dialect, `UPDATE millrace_half SET next_check = {after $1} WHERE id = $2 AND claim = $3 AND state = 'prepared'`,
		micros(in), h.ID, h.claim)
	return err
}

// undecided counts a check without a definite answer, and parks the message after the last.
func (m *Messages) undecided(ctx context.Context, dialect txn.Dialect, h stored, cause error) error {
	text := ""
	if cause != nil {
		text = clip(cause.Error())
	}
	// The state comes first: MySQL sees columns that were set before in the same statement as changed.
	n, err := exec(ctx, m.pool, dialect, `UPDATE millrace_half SET state = CASE WHEN checks + 1 >= $1 THEN 'parked' ELSE state END,
		checks = checks + 1, last_error = $2, next_check = {after $3} WHERE id = $4 AND claim = $5 AND state = 'prepared'`,
		m.cfg.MaxChecks, text, micros(m.cfg.CheckEvery), h.ID, h.claim)
	if err != nil || n == 0 || h.Checks+1 < m.cfg.MaxChecks {
		return err
	}
	h.State, h.Checks, h.LastError = Parked, h.Checks+1, text
	m.log.ErrorContext(ctx, "half message parked: no definite answer after its last check", "id", h.ID, "topic", h.Topic, "error", text)
	if m.cfg.OnParked != nil {
		m.cfg.OnParked(ctx, h.Info)
	}
	return nil
}
