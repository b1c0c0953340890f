package txn

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// A witness is a row (id, W) that a transaction writes right before COMMIT. When the answer to COMMIT
// does not come, another connection writes the tombstone (id, T). The primary key lets one of the two
// stand: if it is the tombstone, the transaction can never commit any more.
type witness struct {
	id   string
	sent time.Time // before COMMIT
	xid  *string   // PostgreSQL's number of the transaction, if there was a round trip to learn it
}

const (
	// WitnessLife is how long witnesses and tombstones are kept at least. A COMMIT that the network
	// holds back longer than this does not arrive: the systems on both sides have given up the
	// connection before.
	WitnessLife = time.Hour
	// MaxResolve is how long after COMMIT a witness that is not there still proves something.
	MaxResolve = WitnessLife / 2

	attemptTimeout = 3 * time.Second // of one look for the witness
	firstPause     = 50 * time.Millisecond
	longestPause   = 2 * time.Second
)

// newWitness returns the statement that writes the witness of t, or nil if t does not have one.
func (t *Tx) newWitness() (*witness, []Statement) {
	if t.settings.ResolveTimeout == 0 || t.options.ReadOnly {
		return nil, nil
	}
	id, err := uuid.NewV7() // ordered by time, which keeps the index small in memory
	if err != nil {
		id = uuid.New()
	}
	w := &witness{id: id.String(), sent: time.Now()}
	insert := Statement{SQL: writeWitness[t.dialect], Args: []any{w.id}}
	if t.dialect == Postgres {
		insert.Row = func(row Scanner) error { return row.Scan(&w.xid) }
	}
	return w, []Statement{insert}
}

// missingTable explains an error that is about the table of the witnesses. A driver that prepares several
// statements at once does not say which of them failed, so the text has to.
func missingTable(err error) error {
	if err == nil || !strings.Contains(err.Error(), "millrace_witness") {
		return err
	}
	return fmt.Errorf("millrace: witness (Migrate with WitnessMigrations makes its table): %w", err)
}

var writeWitness = map[Dialect]string{
	Postgres: `INSERT INTO millrace_witness (id, kind) VALUES ($1, 'W') RETURNING pg_current_xact_id()::text`,
	MySQL:    `INSERT INTO millrace_witness (id, kind, created_at) VALUES (?, 'W', UTC_TIMESTAMP(6))`,
	SQLite:   `INSERT INTO millrace_witness (id, kind, created_at) VALUES (?, 'W', unixepoch())`,
}

// resolve finds out what became of t when cause came instead of an answer to COMMIT. It goes on when
// ctx has ended: the caller is waiting for the truth.
func (t *Tx) resolve(ctx context.Context, w *witness, cause error) (Outcome, error) {
	if w == nil {
		return Unknown, &UnknownError{Cause: cause}
	}
	ctx, cancel := context.WithTimeout(Masked(context.WithoutCancel(ctx)), t.settings.ResolveTimeout)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		outcome, err := t.ask(ctx, w)
		switch {
		case err == nil && outcome == Committed:
			return Committed, nil
		case err == nil && outcome == RolledBack:
			return RolledBack, Because(ErrTxAborted, cause)
		case err == nil: // too late to tell
			return Unknown, &UnknownError{Cause: cause}
		}
		t.settings.Logger.Warn("outcome of a transaction not found yet", "witness", w.id, "err", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return Unknown, &UnknownError{Cause: errors.Join(cause, fmt.Errorf("witness: %w", err))}
		}
	}
}

// ask looks once, on another connection. Not all drivers heed the context on a network that swallows
// everything, so it is a goroutine that waits. A tombstone that it writes later is as true then.
func (t *Tx) ask(ctx context.Context, w *witness) (Outcome, error) {
	type answer struct {
		outcome Outcome
		err     error
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	answers := make(chan answer, 1)
	go func() {
		defer cancel()
		var a answer
		a.outcome, a.err = find(ctx, t.pool, t.dialect, w)
		answers <- a
	}()
	select {
	case a := <-answers:
		return a.outcome, a.err
	case <-ctx.Done():
	}
	select { // the context ends with the answer, too
	case a := <-answers:
		return a.outcome, a.err
	default:
		return Unknown, ctx.Err()
	}
}

// find looks for what tells, and writes the tombstone where nothing does.
func find(ctx context.Context, p Beginner, dialect Dialect, w *witness) (Outcome, error) {
	if dialect == Postgres { // the others may show what is not committed yet
		if outcome := look(ctx, p, w); outcome != Unknown {
			return outcome, nil
		}
	}
	return bury(ctx, p, dialect, w)
}

// look asks PostgreSQL without writing. A witness that can be seen has committed, and an aborted transaction will
// never commit. All else tells nothing: a number that is in progress, too old, not known here yet, or said to have
// committed where there is no witness. The last is another transaction's, after a failover that lost ours: numbers
// are given again. A server in recovery may not have heard the end yet.
func look(ctx context.Context, p Pool, w *witness) Outcome {
	var kind *string
	err := p.Query(ctx, lookForWitness, []any{w.id, w.xid}, func(row Scanner) error { return row.Scan(&kind) })
	switch {
	case err != nil || kind == nil:
		return Unknown
	case *kind == "W":
		return Committed
	case *kind == "T":
		return RolledBack
	}
	return Unknown
}

const lookForWitness = `SELECT coalesce((SELECT kind::text FROM millrace_witness WHERE id = $1),
	CASE WHEN NOT pg_is_in_recovery() AND pg_xact_status($2::text::xid8) = 'aborted' THEN 'T' END)`

// bury writes the tombstone, or reads what is in its place. While the transaction is open its witness
// is locked; that is an error, like everything that does not tell.
func bury(ctx context.Context, p Beginner, dialect Dialect, w *witness) (outcome Outcome, err error) {
	options := Options{Isolation: sql.LevelReadCommitted, CommitTimeout: attemptTimeout}
	if dialect == SQLite {
		options.Isolation = sql.LevelDefault
	}
	err = Atomic(ctx, p, options, func(q Querier) error {
		if err := dontWait(ctx, q, dialect, w); err != nil {
			return err
		}
		n, err := q.Exec(ctx, writeTombstone[dialect], w.id)
		switch {
		case err != nil:
			return err
		case n == 1:
			outcome = RolledBack
			return nil
		}
		var kind string
		err = q.Query(ctx, readWitness[dialect], []any{w.id}, func(row Scanner) error { return row.Scan(&kind) })
		switch {
		case err != nil:
			return err
		case kind == "W":
			outcome = Committed
		case kind == "T":
			outcome = RolledBack
		default:
			return errors.New("the row has gone")
		}
		return nil
	})
	if outcome == RolledBack && err == nil && w.age() > MaxResolve {
		return Unknown, nil // there may have been a witness, and it was purged
	}
	return outcome, err
}

// age is by the clock that is ahead: one stands still while the machine sleeps, one may be set back.
func (w *witness) age() time.Duration {
	return max(time.Since(w.sent), time.Now().Round(0).Sub(w.sent.Round(0)))
}

// dontWait keeps the tombstone from waiting long for a transaction that is still open.
func dontWait(ctx context.Context, q Querier, dialect Dialect, w *witness) (err error) {
	switch dialect {
	case Postgres:
		_, err = q.Exec(ctx, `SET LOCAL lock_timeout = '1s'`)
	case MySQL:
		err = q.Query(ctx, `SELECT id FROM millrace_witness WHERE id = ? FOR UPDATE NOWAIT`, []any{w.id},
			func(Scanner) error { return nil })
	}
	return err
}

var (
	writeTombstone = map[Dialect]string{
		Postgres: `INSERT INTO millrace_witness (id, kind) VALUES ($1, 'T') ON CONFLICT (id) DO NOTHING`,
		MySQL:    `INSERT IGNORE INTO millrace_witness (id, kind, created_at) VALUES (?, 'T', UTC_TIMESTAMP(6))`,
		SQLite:   `INSERT INTO millrace_witness (id, kind, created_at) VALUES (?, 'T', unixepoch()) ON CONFLICT (id) DO NOTHING`,
	}
	readWitness = map[Dialect]string{
		Postgres: `SELECT kind FROM millrace_witness WHERE id = $1`,
		MySQL:    `SELECT kind FROM millrace_witness WHERE id = ?`,
		SQLite:   `SELECT kind FROM millrace_witness WHERE id = ?`,
	}
)

// purgeBatch is how many rows one statement deletes: it holds their locks for a moment only.
const purgeBatch = 1000

// PurgeWitnesses deletes what is older than age and reports how many rows that were.
func PurgeWitnesses(ctx context.Context, p Pool, age time.Duration) (purged int64, err error) {
	if age < WitnessLife {
		return 0, fmt.Errorf("millrace: purge witnesses: those younger than %v may be needed", WitnessLife)
	}
	dialect, err := p.Dialect(ctx)
	if err != nil {
		return 0, fmt.Errorf("millrace: purge witnesses: %w", err)
	}
	for {
		n, err := p.Exec(ctx, deleteWitnesses[dialect], int64(age/time.Second), purgeBatch)
		purged += n
		if err != nil {
			return purged, fmt.Errorf("millrace: purge witnesses: %w", err)
		}
		if n < purgeBatch {
			return purged, nil
		}
	}
}

var deleteWitnesses = map[Dialect]string{
	Postgres: `DELETE FROM millrace_witness WHERE id IN (
		SELECT id FROM millrace_witness WHERE created_at < clock_timestamp() - $1::bigint * interval '1 second'
		ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)`,
	MySQL: `DELETE FROM millrace_witness WHERE created_at < UTC_TIMESTAMP(6) - INTERVAL ? SECOND
		ORDER BY created_at LIMIT ?`,
	SQLite: `DELETE FROM millrace_witness WHERE id IN (
		SELECT id FROM millrace_witness WHERE created_at < unixepoch() - ? ORDER BY created_at LIMIT ?)`,
}
