package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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
	// as its index wants it asked.
	translate(text string) string
	// tag is appended to a statement about the outbox table.
	tag(ctx context.Context) string

	check(ctx context.Context) error
	claim(ctx context.Context, replica string, n int) ([]Grant, error)
	topics(ctx context.Context) ([]string, error)
	read(ctx context.Context, q Read) ([]Row, error)
	promote(ctx context.Context, grants []Grant) (Promotion, error)
	stops(ctx context.Context, lanes []int) ([]Stop, error)
	release(ctx context.Context, grants []Grant) error
	settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error)
	attempt(ctx context.Context, g Grant, r Ref, attempt int) (bool, error)
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
	_, err := s.exec(ctx, "join", `INSERT INTO millrace_forwarders (id, beat, expires_at) VALUES ($1, 0, {after $2})`,
		replica, micros(lease))
	return err
}

// Renew implements Store.
func (s *sqlStore) Renew(ctx context.Context, replica string, beat int64, lease time.Duration, down []string) (bool, error) {
	n, err := s.exec(ctx, "renew", `UPDATE millrace_forwarders SET beat = beat + 1, expires_at = {after $1} WHERE id = $2 AND beat = $3`,
		micros(lease), replica, beat)
	return n == 1, err
}

// Leave implements Store. Should the second statement fail, the lease ends by itself.
func (s *sqlStore) Leave(ctx context.Context, replica string) error {
	if _, err := s.exec(ctx, "leave", `UPDATE millrace_lanes SET owner = NULL WHERE owner = $1`, replica); err != nil {
		return err
	}
	_, err := s.exec(ctx, "leave", `DELETE FROM millrace_forwarders WHERE id = $1`, replica)
	return err
}

// Sweep implements Store.
func (s *sqlStore) Sweep(ctx context.Context, replica string) (int, error) {
	n, err := s.exec(ctx, "sweep", `DELETE FROM millrace_forwarders WHERE expires_at < {now} AND id <> $1`, replica)
	return int(n), err
}

// Survey implements Store.
func (s *sqlStore) Survey(ctx context.Context) (Survey, error) {
	var v Survey
	err := s.query(ctx, "survey", `SELECT
		(SELECT count(*) FROM millrace_forwarders WHERE expires_at >= {now}),
		(SELECT count(*) FROM millrace_lanes l WHERE NOT EXISTS (SELECT 1 FROM millrace_forwarders f WHERE f.id = l.owner))`,
		nil, func(row txn.Scanner) error { return row.Scan(&v.Replicas, &v.FreeLanes) })
	return v, err
}

// Calm implements Store.
func (s *sqlStore) Calm(ctx context.Context, g Grant) error {
	_, err := s.exec(ctx, "calm", `UPDATE millrace_lanes SET crashes = 0 WHERE lane = $1 AND epoch = $2 AND crashes <> 0`, g.Lane, g.Epoch)
	return err
}

const topicsQuery = `WITH RECURSIVE t (topic) AS (
	SELECT (SELECT o.topic FROM millrace_outbox o WHERE o.{ready} ORDER BY o.topic LIMIT 1)
	UNION ALL
	SELECT (SELECT o.topic FROM millrace_outbox o WHERE o.{ready} AND o.topic > t.topic ORDER BY o.topic LIMIT 1)
	FROM t WHERE t.topic IS NOT NULL)
SELECT topic FROM t WHERE topic IS NOT NULL`

// hop finds the topics by hopping from one to the next in the index.
func (s *sqlStore) hop(ctx context.Context) (topics []string, err error) {
	err = s.query(ctx, "topics", topicsQuery, nil, func(row txn.Scanner) error {
		var topic string
		err := row.Scan(&topic)
		topics = append(topics, topic)
		return err
	})
	return topics, err
}

// The rest asks the dialect.

// Topics implements Store.
func (s *sqlStore) Topics(ctx context.Context) (Topics, error) {
	names, err := ask(s, ctx, "topics", func(d dialect) ([]string, error) { return d.topics(ctx) })
	return Topics{Ready: names}, err
}

// Mark implements Store.
func (s *sqlStore) Mark(ctx context.Context, grants []Grant, rows []Ref) ([]int64, error) {
	return positions(rows), nil
}

// Claim implements Store.
func (s *sqlStore) Claim(ctx context.Context, replica string, n int) ([]Grant, error) {
	if n <= 0 {
		return nil, nil
	}
	return ask(s, ctx, "claim", func(d dialect) ([]Grant, error) { return d.claim(ctx, replica, n) })
}

// Release implements Store.
func (s *sqlStore) Release(ctx context.Context, grants []Grant) error {
	if len(grants) == 0 {
		return nil
	}
	_, err := ask(s, ctx, "release", func(d dialect) (any, error) { return nil, d.release(ctx, grants) })
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
	return ask(s, ctx, "promote", func(d dialect) (Promotion, error) { return d.promote(ctx, grants) })
}

// Stops implements Store.
func (s *sqlStore) Stops(ctx context.Context, lanes []int) ([]Stop, error) {
	if len(lanes) == 0 {
		return nil, nil
	}
	return ask(s, ctx, "stops", func(d dialect) ([]Stop, error) { return d.stops(ctx, lanes) })
}

// Settle implements Store.
func (s *sqlStore) Settle(ctx context.Context, grants []Grant, rows []Ref) (Settled, error) {
	return ask(s, ctx, "settle", func(d dialect) (Settled, error) { return d.settle(ctx, grants, rows) })
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

// Bounds of what is stored about a refusal.
const (
	maxReason = 64
	maxError  = 1000
)

// bounded keeps the texts of a refusal to what every database stores.
func bounded(f Refused) Refused {
	f.Reason = clip(f.Reason, maxReason)
	f.Error = clip(f.Error, maxError)
	return f
}

func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
}
