package forwarder_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// ledger is a stage whose business writes down the id of each message in the same transaction. After
// any fault, what is in that table is what was committed, whatever the writers were told.
type ledger struct {
	*stage

	mu      sync.Mutex
	said    map[string]bool // InTx said that it committed
	denied  map[string]bool // InTx said that it did not
	unknown int
}

func newLedger(t *testing.T, d database) *ledger {
	t.Helper()
	l := &ledger{stage: newStage(t, d), said: map[string]bool{}, denied: map[string]bool{}}
	l.exec(`CREATE TABLE ledger (id VARCHAR(80) PRIMARY KEY)`)
	for i := contended; i < 50; i++ {
		l.exec(fmt.Sprintf(`INSERT INTO counters VALUES ('k%02d', 0)`, i))
	}
	return l
}

// load is how writers behave. All that is random comes from the seed of a run.
type load struct {
	writers    int
	keys       int           // for which they contend
	keyed      int           // percent of the transactions that publish a message with a key
	free       int           // each publishes up to so many without one
	rollbacks  int           // percent
	savepoints bool          // some parts are rolled back alone
	hold       time.Duration // each stays open for up to so long
	outages    bool          // the database may be away
}

// put commits about n messages.
func (l *ledger) put(ctx context.Context, seed uint64, n int, w load) {
	l.Helper()
	var left sync.Mutex
	take := func(size int) bool {
		left.Lock()
		defer left.Unlock()
		n -= size
		return n+size > 0
	}
	var group sync.WaitGroup
	for i := range w.writers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		group.Go(func() {
			for ctx.Err() == nil && !l.Failed() {
				tx := w.next(rng)
				if !take(len(tx.parts)) {
					return
				}
				l.transact(ctx, w, tx)
			}
		})
	}
	group.Wait()
}

// plan is one transaction, drawn before it runs so that a seed means the same whatever happens.
type plan struct {
	key      string
	parts    []bool // of the messages without a key: whether it stands in a savepoint that is rolled back
	nested   bool   // they stand in savepoints
	rollback bool
	hold     time.Duration
}

func (w load) next(rng *rand.Rand) plan {
	p := plan{rollback: rng.IntN(100) < w.rollbacks, nested: w.savepoints && rng.IntN(3) == 0}
	if rng.IntN(100) < w.keyed {
		p.key = fmt.Sprintf("k%02d", rng.IntN(w.keys))
	}
	for range 1 + rng.IntN(max(w.free, 1)) {
		p.parts = append(p.parts, p.nested && rng.IntN(3) == 0)
	}
	if w.hold > 0 {
		p.hold = time.Duration(rng.Int64N(int64(w.hold)))
	}
	return p
}

func (l *ledger) transact(ctx context.Context, w load, p plan) {
	var ids []string
	err := millrace.InTx(ctx, l.db, func(ctx context.Context, tx *millrace.Tx) error {
		ids = nil
		publish := func(ctx context.Context, id, key string) error {
			if p.rollback {
				id = "ghost-" + id
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO ledger VALUES ('`+id+`')`); err != nil {
				return err
			}
			msg := message.NewMessage(id, []byte(`{"n":1}`))
			if key != "" {
				msg = outbox.WithKey(msg, key)
			}
			ids = append(ids, id)
			return l.box.Publish(ctx, "orders", msg)
		}
		if p.key != "" {
			if _, err := tx.ExecContext(ctx, `UPDATE counters SET n = n + 1 WHERE name = '`+p.key+`'`); err != nil {
				return err
			}
			var n int
			if err := tx.QueryRowContext(ctx, `SELECT n FROM counters WHERE name = '`+p.key+`'`).Scan(&n); err != nil {
				return err
			}
			if err := publish(ctx, fmt.Sprintf("%s-%06d-%07d", p.key, n, l.serial.Add(1)), p.key); err != nil {
				return err
			}
		}
		for _, undone := range p.parts {
			if err := l.part(ctx, p.nested, undone, publish); err != nil {
				return err
			}
		}
		pace(ctx, p.hold)
		if p.rollback {
			return errRollback
		}
		return nil
	})
	l.note(ctx, w, p, ids, err)
}

// part publishes a message without a key, in a savepoint of its own if nested.
func (l *ledger) part(ctx context.Context, nested, undone bool, publish func(ctx context.Context, id, key string) error) error {
	if !nested {
		return publish(ctx, fmt.Sprintf("free-%d", l.serial.Add(1)), "")
	}
	err := millrace.InTx(ctx, l.db, func(ctx context.Context, _ *millrace.Tx) error {
		if !undone {
			return publish(ctx, fmt.Sprintf("free-%d", l.serial.Add(1)), "")
		}
		msg := message.NewMessage(fmt.Sprintf("ghost-%d", l.serial.Add(1)), nil)
		return errors.Join(l.box.Publish(ctx, "orders", msg), errRollback)
	}, millrace.Nested())
	if undone && err.Error() == errRollback.Error() {
		return nil
	}
	return err
}

// note keeps what a writer was told.
func (l *ledger) note(ctx context.Context, w load, p plan, ids []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var unknown *millrace.UnknownOutcomeError
	switch {
	case errors.As(err, &unknown):
		l.unknown++
	case err == nil:
		for _, id := range ids {
			l.said[id] = true
		}
		return
	default:
		for _, id := range ids {
			l.denied[id] = true
		}
	}
	if !p.rollback && !w.outages && ctx.Err() == nil {
		l.Errorf("transaction: %v", err)
	}
	if !p.rollback {
		pace(ctx, 20*time.Millisecond) // no hot loop while the database is away
	}
}

// pace lets time pass, as a business does between two statements.
func pace(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// requireReconciled compares what came with what the database says was committed, and with what the
// writers were told, and returns the number of duplicates.
func (l *ledger) requireReconciled(ids []string) (duplicates int) {
	l.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.committed = l.ids(`SELECT id FROM ledger`)
	for id := range l.said {
		if !l.committed[id] {
			l.Fatalf("%s: the writer was told that it had committed", id)
		}
	}
	for id := range l.denied {
		if l.committed[id] {
			l.Fatalf("%s: the writer was told that it had not committed", id)
		}
	}
	ghosts := map[string]bool{}
	for _, id := range ids {
		switch {
		case l.committed[id]:
			l.committed[id] = true
		default:
			ghosts[id] = true
		}
	}
	if len(ghosts) > 0 {
		l.Fatalf("%d ghosts: delivered, and not in the database: %v", len(ghosts), slices.Sorted(maps.Keys(ghosts)))
	}
	return l.requireDelivered(ids)
}

// ids are the texts that a query selects.
func (l *ledger) ids(query string) map[string]bool {
	l.Helper()
	rows, err := l.raw.QueryContext(context.WithoutCancel(l.Context()), query)
	require.NoError(l, err)
	defer rows.Close()
	found := map[string]bool{}
	for rows.Next() {
		var id string
		require.NoError(l, rows.Scan(&id))
		found[id] = true
	}
	require.NoError(l, rows.Err())
	return found
}

// settled waits until nothing waits any more, also while the database does not answer.
func (l *ledger) settled() {
	l.Helper()
	testenv.Eventually(l, 3*time.Minute, "the outbox is empty", func() bool {
		n := -1
		return l.raw.QueryRow(`SELECT count(*) FROM millrace_outbox`).Scan(&n) == nil && n == 0
	})
}

// requireNothingParked: whatever happened was no fault of a message.
func (l *ledger) requireNothingParked() {
	l.Helper()
	require.Empty(l, l.ids(`SELECT reason FROM millrace_dead`), "messages that were set aside")
}

// inBackground runs writers until stop, which waits for them.
func (l *ledger) inBackground(seed uint64, w load) (stop func()) {
	ctx, cancel := context.WithCancel(l.Context())
	done := make(chan struct{})
	go func() { defer close(done); l.put(ctx, seed, 1<<40, w) }()
	return func() { cancel(); <-done }
}

// newSeed is printed, so that a run can be had again.
func newSeed(t testing.TB) uint64 {
	seed := rand.Uint64()
	t.Log("seed", seed)
	return seed
}

// message1 is a message that says no more than its id.
func message1(id string) *message.Message { return message.NewMessage(id, []byte(`{"n":1}`)) }

// slowly is a broker that takes its time for each batch.
type slowly struct{ record }

func (s slowly) PublishBatch(ctx context.Context, topics []string, msgs []*message.Message) []error {
	pace(ctx, 20*time.Millisecond)
	return s.record.PublishBatch(ctx, topics, msgs)
}
