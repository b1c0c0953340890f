package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/internal/txn"
)

// sqlStore is the Store in a SQL database. What is the same everywhere is here; what differs is in the
// dialect, found at the first use.
type sqlStore struct {
	pool   txn.Pool
	prefix string
	log    *slog.Logger
	// preparedAge is how old a prepared transaction is that Check warns of.
	preparedAge time.Duration
	// compensation is what becomes of messages that await confirmations.
	compensation *compensation

	mu    sync.Mutex
	found dialect
	texts sync.Map // statement as written -> as sent
}

var _ Store = (*sqlStore)(nil)

// dialect is one kind of database. Its methods are those of Store, for what one statement that all
// understand cannot do.
type dialect interface {
	// translate turns a statement in the common form into the database's: parameters are $1, $2, ... in
	// order, {now} is the database's time, {after $n} that time plus $n microseconds, {ready} the column
	// as its index wants it asked, {unready} its contrary, {us c} a time as microseconds since 1970, {at $n} the inverse, {before $n} what {after $n} is
	// into the past, {age c} the microseconds since a time. {from t i}, {update t i} and {delete t i} begin to work on a table by an
	// index: MySQL would read a small table from end to end, and lock all of it on the way.
	translate(text string) string
	// tag is appended to a statement about the outbox table.
	tag(ctx context.Context) string

	check(ctx context.Context) error
	claim(ctx context.Context, replica string, n int) ([]Grant, error)
	topics(ctx context.Context) (Topics, error)
	read(ctx context.Context, q Read) ([]Row, error)
	promote(ctx context.Context, grants []Grant) (Promotion, error)
	stops(ctx context.Context, lanes []int) ([]Stop, error)
	release(ctx context.Context, grants []Grant) error
	leave(ctx context.Context, replica string) error
	calm(ctx context.Context, g Grant) error
	settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error)
	attempt(ctx context.Context, g Grant, r Ref, attempt int) (bool, error)
	mark(ctx context.Context, grants []Grant, rows []Ref) ([]int64, error)
	refuse(ctx context.Context, g Grant, f Refused) (bool, error)
	hold(ctx context.Context, g Grant, destination string, rows []Ref) (bool, error)
	lift(ctx context.Context, g Grant, destination, key string) (bool, error)
	park(ctx context.Context, g Grant, f Refused) (bool, error)
}

// dialect finds out which database it is. An outage is not remembered.
func (s *sqlStore) dialect(ctx context.Context) (dialect, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found != nil {
		return s.found, nil
	}
	kind, err := s.pool.Dialect(ctx)
	if err != nil {
		return nil, explain("which database", err)
	}
	switch kind {
	case txn.Postgres:
		s.found = &postgres{sqlStore: s}
	case txn.SQLite:
		s.found = newSQLite(s)
	case txn.MySQL:
		s.found = newMySQL(s)
	default:
		return nil, &setupError{what: fmt.Sprintf("there is no outbox for %q", kind), remedy: "use PostgreSQL, MySQL, MariaDB or SQLite"}
	}
	return s.found, nil
}

// text is the statement as this database and this prefix want it. The dialect has been found before.
func (s *sqlStore) text(common string) string {
	if text, ok := s.texts.Load(common); ok {
		return text.(string)
	}
	text := s.found.translate(rename(common, s.prefix))
	s.texts.Store(common, text)
	return text
}

// exec runs a statement in the common form.
func (s *sqlStore) exec(ctx context.Context, what, common string, args ...any) (int64, error) {
	d, err := s.dialect(ctx)
	if err != nil {
		return 0, err
	}
	n, err := s.pool.Exec(ctx, s.text(common)+d.tag(ctx), args...)
	return n, s.wrap(what, err)
}

// query runs a query in the common form.
func (s *sqlStore) query(ctx context.Context, what, common string, args []any, row func(txn.Scanner) error) error {
	d, err := s.dialect(ctx)
	if err != nil {
		return err
	}
	return s.wrap(what, s.pool.Query(ctx, s.text(common)+d.tag(ctx), args, row))
}

// once is query for a statement that is not worth remembering.
func (s *sqlStore) once(ctx context.Context, what, common string, args []any, row func(txn.Scanner) error) error {
	d, err := s.dialect(ctx)
	if err != nil {
		return err
	}
	return s.wrap(what, s.pool.Query(ctx, d.translate(rename(common, s.prefix)), args, row))
}

func (s *sqlStore) wrap(what string, err error) error {
	if err == nil || errors.As(err, new(*setupError)) {
		return err
	}
	if needsSetup(err) {
		return setup(s.prefix, fmt.Errorf("%s: %w", what, err))
	}
	return explain(what, err)
}

// Join implements Store.
func (s *sqlStore) Join(ctx context.Context, replica string, lease time.Duration) error {
	if err := checkText("replica", replica, 1, maxID); err != nil {
		return fmt.Errorf("outbox: join: %w", err)
	}
	_, err := s.exec(txn.Once(ctx), "join", `INSERT INTO millrace_forwarders (id, beat, expires_at) VALUES ($1, 0, {after $2})`,
		replica, micros(lease))
	return err
}

// Renew implements Store.
func (s *sqlStore) Renew(ctx context.Context, replica string, beat int64, lease time.Duration, down []string) (bool, error) {
	n, err := s.exec(ctx, "renew", `UPDATE millrace_forwarders SET beat = beat + 1, expires_at = {after $1}, down = $2 WHERE id = $3 AND beat = $4`,
		micros(lease), jsonArray(down), replica, beat)
	return n == 1, err
}

// Sweep implements Store.
func (s *sqlStore) Sweep(ctx context.Context, replica string) (int, error) {
	ctx = txn.Once(ctx)
	var ended []string
	err := s.query(ctx, "sweep", `SELECT id FROM millrace_forwarders WHERE expires_at < {now} AND id <> $1`, []any{replica}, func(row txn.Scanner) error {
		var id string
		err := row.Scan(&id)
		ended = append(ended, id)
		return err
	})
	swept := 0
	for _, id := range ended { // one by one: a scan would lock those that live, and keep them from renewing
		if err != nil {
			break
		}
		var n int64
		n, err = s.exec(ctx, "sweep", `DELETE FROM millrace_forwarders WHERE id = $1 AND expires_at < {now}`, id)
		swept += int(n)
	}
	return swept, err
}

// Survey implements Store.
func (s *sqlStore) Survey(ctx context.Context) (Survey, error) {
	var v Survey
	err := s.query(ctx, "survey", `SELECT 0, count(*), '' FROM millrace_lanes l
			WHERE NOT EXISTS (SELECT 1 FROM millrace_forwarders f WHERE f.id = l.owner)
		UNION ALL SELECT 1, 0, down FROM millrace_forwarders WHERE expires_at >= {now}`, nil, func(row txn.Scanner) error {
		var replica, free int
		var down string
		if err := row.Scan(&replica, &free, &down); err != nil {
			return err
		}
		v.Replicas, v.FreeLanes = v.Replicas+replica, v.FreeLanes+free
		v.count(down)
		return nil
	})
	return v, err
}

// count adds the destinations that one replica cannot reach.
func (v *Survey) count(down string) {
	var names []string
	if json.Unmarshal([]byte(down), &names) != nil {
		return // none, or written by somebody else
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if v.Down == nil {
			v.Down = map[string]int{}
		}
		v.Down[name]++
	}
}

// The rest asks the dialect.

// Topics implements Store.
func (s *sqlStore) Topics(ctx context.Context) (Topics, error) {
	return ask(s, ctx, "topics", func(d dialect) (Topics, error) { return d.topics(ctx) })
}

// Mark implements Store.
func (s *sqlStore) Mark(ctx context.Context, grants []Grant, rows []Ref) ([]int64, error) {
	if len(grants) == 0 || len(rows) == 0 {
		return nil, nil
	}
	return ask(s, ctx, "mark", func(d dialect) ([]int64, error) { return d.mark(ctx, grants, rows) })
}

// Claim implements Store.
func (s *sqlStore) Claim(ctx context.Context, replica string, n int) ([]Grant, error) {
	if n <= 0 {
		return nil, nil
	}
	ctx = txn.Once(ctx)
	return ask(s, ctx, "claim", func(d dialect) ([]Grant, error) { return d.claim(ctx, replica, n) })
}

// Release implements Store.
func (s *sqlStore) Release(ctx context.Context, grants []Grant) error {
	if len(grants) == 0 {
		return nil
	}
	ctx = txn.Once(ctx)
	_, err := ask(s, ctx, "release", func(d dialect) (any, error) { return nil, d.release(ctx, grants) })
	return err
}

// Leave implements Store.
func (s *sqlStore) Leave(ctx context.Context, replica string) error {
	ctx = txn.Once(ctx)
	_, err := ask(s, ctx, "leave", func(d dialect) (any, error) { return nil, d.leave(ctx, replica) })
	return err
}

// Calm implements Store.
func (s *sqlStore) Calm(ctx context.Context, g Grant) error {
	_, err := ask(s, ctx, "calm", func(d dialect) (any, error) { return nil, d.calm(ctx, g) })
	return err
}

// Read implements Store.
func (s *sqlStore) Read(ctx context.Context, q Read) ([]Row, error) {
	if len(q.Lanes) == 0 || len(q.Topics) == 0 || q.MaxRows <= 0 {
		return nil, nil
	}
	return ask(s, ctx, "read", func(d dialect) ([]Row, error) { return d.read(ctx, q) })
}

// Promote implements Store.
func (s *sqlStore) Promote(ctx context.Context, grants []Grant) (Promotion, error) {
	if len(grants) == 0 {
		return Promotion{}, nil
	}
	p, err := ask(s, ctx, "promote", func(d dialect) (Promotion, error) { return d.promote(ctx, grants) })
	if err != nil || !p.overdue {
		return p, err
	}
	lanes, _ := lanesAndEpochs(grants)
	ready, more, err := s.compensation.run(ctx, lanes)
	p.Ready += ready
	if more {
		p.Next = overduePause
	}
	return p, s.wrap("send unconfirmed messages again", err)
}

// Stops implements Store.
func (s *sqlStore) Stops(ctx context.Context, lanes []int) ([]Stop, error) {
	if len(lanes) == 0 {
		return nil, nil
	}
	ctx = txn.Once(ctx)
	return ask(s, ctx, "stops", func(d dialect) ([]Stop, error) { return d.stops(ctx, lanes) })
}

// Settle implements Store.
func (s *sqlStore) Settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error) {
	settled, err := ask(s, ctx, "settle", func(d dialect) (Settled, error) { return d.settle(ctx, grants, rows) })
	if err == nil && len(settled.awaiting) > 0 {
		var ids []string
		for _, r := range rows {
			if slices.Contains(settled.awaiting, r.Pos) {
				ids = append(ids, r.ID)
			}
		}
		s.compensation.judge(ctx, ids)
	}
	return settled, err
}

// Attempt implements Store.
func (s *sqlStore) Attempt(ctx context.Context, g Grant, r Ref, attempt int) (bool, error) {
	return ask(s, ctx, "attempt", func(d dialect) (bool, error) { return d.attempt(ctx, g, r, attempt) })
}

// Refuse implements Store.
func (s *sqlStore) Refuse(ctx context.Context, g Grant, f Refused) (bool, error) {
	return ask(s, ctx, "refuse", func(d dialect) (bool, error) { return d.refuse(ctx, g, bounded(f)) })
}

// Hold implements Store.
func (s *sqlStore) Hold(ctx context.Context, g Grant, destination string, rows []Ref) (bool, error) {
	return ask(s, ctx, "hold", func(d dialect) (bool, error) { return d.hold(ctx, g, destination, rows) })
}

// Lift implements Store.
func (s *sqlStore) Lift(ctx context.Context, g Grant, destination, key string) (bool, error) {
	return ask(s, ctx, "lift", func(d dialect) (bool, error) { return d.lift(ctx, g, destination, key) })
}

// Park implements Store.
func (s *sqlStore) Park(ctx context.Context, g Grant, f Refused) (bool, error) {
	return ask(s, ctx, "park", func(d dialect) (bool, error) { return d.park(ctx, g, bounded(f)) })
}

func ask[T any](s *sqlStore, ctx context.Context, what string, do func(dialect) (T, error)) (T, error) {
	d, err := s.dialect(ctx)
	if err != nil {
		var none T
		return none, err
	}
	answer, err := do(d)
	return answer, s.wrap(what, err)
}
