package middleware_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/outbox"
)

// database has an inbox, an outbox, and a table of effects.
type database struct {
	raw   *sql.DB
	db    *millrace.SQLDB
	inbox *dedup.SQLInbox
	box   *outbox.Box
	mark  string // of a parameter
}

func openDatabase(t testing.TB, driver, dsn string) *database {
	t.Helper()
	raw, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	raw.SetMaxOpenConns(20)
	t.Cleanup(func() { _ = raw.Close() })
	d := &database{raw: raw, db: millrace.SQL(raw), mark: "?"}
	if driver == "pgx" {
		d.mark = "$1"
	}
	require.NoError(t, millrace.Migrate(t.Context(), d.db, dedup.Migrations(), outbox.Migrations()))
	d.inbox, err = dedup.NewInbox(d.db, dedup.InboxConfig{})
	require.NoError(t, err)
	d.box, err = outbox.New(d.db, outbox.Config{})
	require.NoError(t, err)
	_, err = raw.ExecContext(t.Context(), `CREATE TABLE effects (message_id VARCHAR(64) NOT NULL)`)
	require.NoError(t, err)
	return d
}

func (d *database) effect(ctx context.Context, id string) error {
	return millrace.InTx(ctx, d.db, func(ctx context.Context, tx *millrace.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO effects (message_id) VALUES (`+d.mark+`)`, id)
		return err
	}, millrace.Mandatory())
}

func (d *database) count(t testing.TB, query string) (n int) {
	t.Helper()
	require.NoError(t, d.raw.QueryRowContext(context.Background(), query).Scan(&n))
	return n
}

func sqliteDatabase(t testing.TB) *database {
	return openDatabase(t, "sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
}

func TestTransactionalEffectsHappenExactlyOnce(t *testing.T) {
	t.Parallel()
	messages, copies := 40, 4
	if testenv.Full() {
		messages = 2000
	}
	for name, open := range map[string]func(t testing.TB) *database{
		"postgres": func(t testing.TB) *database { return openDatabase(t, "pgx", testenv.Postgres(t)) },
		"mariadb":  func(t testing.TB) *database { return openDatabase(t, "mysql", testenv.MariaDB(t)) },
		"sqlite":   sqliteDatabase,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open(t)
			h := must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{
				Consumer: "c", Outbox: d.box.Publisher(), Topic: "out",
			}))(func(msg *message.Message) ([]*message.Message, error) {
				if err := d.effect(msg.Context(), msg.UUID); err != nil {
					return nil, err
				}
				out := []*message.Message{message.NewMessage("random", []byte("of "+msg.UUID))}
				if rand.IntN(5) == 0 {
					return out, errHandler
				}
				return out, nil
			})
			var wg sync.WaitGroup
			slots := make(chan struct{}, 10)
			for m := range messages {
				for range copies {
					wg.Go(func() {
						slots <- struct{}{}
						defer func() { <-slots }()
						for t.Context().Err() == nil {
							out, err := h(delivery(t.Context(), fmt.Sprint("m", m), "p"))
							if err == nil {
								require.Empty(t, out, "nothing is passed on to the router")
								return
							}
						}
					})
				}
			}
			wg.Wait()
			require.Equal(t, messages, d.count(t, `SELECT count(*) FROM effects`))
			require.Equal(t, messages, d.count(t, `SELECT count(DISTINCT message_id) FROM effects`))
			require.Equal(t, messages, d.count(t, `SELECT count(*) FROM millrace_outbox`))
			require.Equal(t, messages, d.count(t, `SELECT count(*) FROM millrace_inbox`))
		})
	}
}

func TestTransactionalSendsWhatARouterHandlerReturnsThroughTheOutbox(t *testing.T) {
	t.Parallel()
	d := sqliteDatabase(t)
	ch := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	defer ch.Close()
	r := newRouter(t)
	var e events
	direct := &memoryPublisher{}
	r.AddMiddleware(must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Outbox: d.box.Publisher(), OnEvent: e.add})))
	r.AddHandler("billing", "orders", ch, "invoices", direct, func(msg *message.Message) ([]*message.Message, error) {
		return []*message.Message{message.NewMessage("random", nil)}, d.effect(msg.Context(), msg.UUID)
	})
	runRouter(t, r)
	for range 3 {
		require.NoError(t, ch.Publish("orders", message.NewMessage("m", nil)))
	}
	testenv.Eventually(t, time.Minute, "all handled", func() bool {
		got := e.all()
		return got[middleware.EventHandled]+got[middleware.EventDuplicate] == 3
	})
	require.Equal(t, 1, e.all()[middleware.EventHandled])
	require.Empty(t, direct.on("invoices"))
	var id, topic string
	require.NoError(t, d.raw.QueryRow(`SELECT id, topic FROM millrace_outbox`).Scan(&id, &topic))
	require.Equal(t, "invoices", topic)
	require.Equal(t, dedup.DerivedID(dedup.Key{Consumer: "billing", MessageID: "m"}, 0), id)
}

// What an inner middleware has put aside is not done: the effect is rolled back, and a replay runs.
func TestTransactionalRollsBackWhatWasPutAside(t *testing.T) {
	t.Parallel()
	d := sqliteDatabase(t)
	dead := &memoryPublisher{}
	works := false
	h := chain(func(msg *message.Message) ([]*message.Message, error) {
		if err := d.effect(msg.Context(), msg.UUID); err != nil {
			return nil, err
		}
		if works {
			return nil, nil
		}
		return nil, errHandler
	},
		must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"})),
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"})))
	_, err := h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.Len(t, dead.on("dead"), 1)
	require.Zero(t, d.count(t, `SELECT count(*) FROM effects`))
	require.Zero(t, d.count(t, `SELECT count(*) FROM millrace_inbox`))
	works = true
	for range 2 {
		_, err = h(delivery(t.Context(), "m", "p"))
		require.NoError(t, err)
	}
	require.Equal(t, 1, d.count(t, `SELECT count(*) FROM effects`))
}

func TestEachAttemptIsATransactionOfItsOwn(t *testing.T) {
	t.Parallel()
	d := sqliteDatabase(t)
	ms, err := middleware.Recommended(middleware.Config{
		Transactional: must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"})),
		Retry:         middleware.RetryConfig{InitialDelay: 1},
	})
	require.NoError(t, err)
	var calls atomic.Int64
	h := chain(func(msg *message.Message) ([]*message.Message, error) {
		if err := d.effect(msg.Context(), msg.UUID); err != nil {
			return nil, err
		}
		if calls.Add(1) < 3 {
			panic("boom")
		}
		return nil, nil
	}, ms...)
	_, err = h(delivery(t.Context(), "m", "p"))
	require.NoError(t, err)
	require.EqualValues(t, 3, calls.Load())
	require.Equal(t, 1, d.count(t, `SELECT count(*) FROM effects`))
}

func TestTransactionalDoesNotAcknowledgeWhatWasNotCommitted(t *testing.T) {
	t.Parallel()
	d := sqliteDatabase(t)
	for want, h := range map[error]message.HandlerFunc{
		middleware.ErrRolledBack: func(msg *message.Message) ([]*message.Message, error) {
			return nil, millrace.MarkRollbackOnly(msg.Context())
		},
		middleware.ErrNoOutbox: func(*message.Message) ([]*message.Message, error) {
			return []*message.Message{message.NewMessage("x", nil)}, nil
		},
		errHandler: fail,
	} {
		m := must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"}))
		_, err := m(h)(delivery(t.Context(), "m", "p"))
		require.ErrorIs(t, err, want)
		require.Zero(t, d.count(t, `SELECT count(*) FROM millrace_inbox`), want)
	}
}

func TestADatabaseThatIsAwayDoesNotPoisonMessages(t *testing.T) {
	t.Parallel()
	server := testenv.OwnPostgres(t)
	d := openDatabase(t, "pgx", server.URL)
	dead := &memoryPublisher{}
	h := chain(func(msg *message.Message) ([]*message.Message, error) { return nil, d.effect(msg.Context(), msg.UUID) },
		must(t)(middleware.PoisonQueue(middleware.PoisonConfig{Publisher: dead, Topic: "dead"})),
		must(t)(middleware.Retry(middleware.RetryConfig{InitialDelay: 1})),
		must(t)(middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"})))
	_, err := h(delivery(t.Context(), "m1", "p"))
	require.NoError(t, err)
	server.Kill()
	for range 3 {
		_, err = h(delivery(t.Context(), "m2", "p"))
		require.Error(t, err)
		require.Positive(t, middleware.Delay(err))
	}
	require.Empty(t, dead.on("dead"))
	server.Start()
	testenv.Eventually(t, 2*time.Minute, "handled", func() bool {
		_, err := h(delivery(t.Context(), "m2", "p"))
		return err == nil
	})
	require.Equal(t, 2, d.count(t, `SELECT count(*) FROM effects`))
}

func TestTransactionalNeedsADatabaseAndAnInbox(t *testing.T) {
	t.Parallel()
	_, err := middleware.Transactional[*millrace.Tx](nil, nil, middleware.TransactionalConfig{})
	require.ErrorContains(t, err, "no database")
	require.ErrorContains(t, err, "no inbox")
}
