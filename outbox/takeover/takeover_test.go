package takeover_test

import (
	"bytes"
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	stock "github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/takeover"
	"github.com/millrace-go/millrace/pgxtx"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const (
	patience = time.Minute
	group    = "forwarders"
	topic    = "stock.events"
)

// service is a database with Watermill's outbox and millrace's.
type service struct {
	*testing.T
	mysql bool
	url   string
	raw   *stdsql.DB
	db    millrace.DB
	box   *outbox.Box
	old   message.Publisher
	heard *broker
	cfg   takeover.Config
}

// each runs a test on both databases.
func each(t *testing.T, test func(s *service)) { on(t, test, "mysql", "pgx") }

func on(t *testing.T, test func(s *service), drivers ...string) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			test(open(t, driver))
		})
	}
}

func open(t *testing.T, driver string) *service {
	t.Helper()
	s := &service{T: t, mysql: driver == "mysql", heard: &broker{}}
	if s.mysql {
		s.url = testenv.MariaDB(t)
	} else {
		s.url = testenv.Postgres(t)
	}
	var err error
	s.raw, err = stdsql.Open(strings.Replace(driver, "pgxpool", "pgx", 1), s.url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.raw.Close() })
	if driver == "pgxpool" {
		pool, err := pgxpool.New(t.Context(), s.url)
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		s.db = pgxtx.Pool(pool)
	} else {
		s.db = millrace.SQL(s.raw)
	}
	s.box, err = outbox.New(s.db, outbox.Config{AllowOutsideTx: true})
	require.NoError(t, err)
	require.NoError(t, s.box.Migrate(t.Context()))
	pub, err := sql.NewPublisher(sql.BeginnerFromStdSQL(s.raw),
		sql.PublisherConfig{SchemaAdapter: s.schema(), AutoInitializeSchema: true}, watermill.NopLogger{})
	require.NoError(t, err)
	s.old = stock.NewPublisher(pub, stock.PublisherConfig{ForwarderTopic: topic})
	s.cfg = takeover.Config{
		ForwarderTopic: topic, ConsumerGroup: group, BatchSize: 7,
		PollInterval: 20 * time.Millisecond, StockPollInterval: 10 * time.Millisecond,
	}
	return s
}

func (s *service) schema() sql.SchemaAdapter {
	if s.mysql {
		return sql.DefaultMySQLSchema{}
	}
	return sql.DefaultPostgreSQLSchema{}
}

func (s *service) takeover() *takeover.Takeover {
	s.Helper()
	t, err := takeover.New(s.db, s.box, s.cfg)
	require.NoError(s, err)
	return t
}

// stockForwarder runs Watermill's own until the returned function is called.
func (s *service) stockForwarder(to message.Publisher) (stop func()) {
	s.Helper()
	var offsets sql.OffsetsAdapter = sql.DefaultPostgreSQLOffsetsAdapter{}
	if s.mysql {
		offsets = sql.DefaultMySQLOffsetsAdapter{}
	}
	sub, err := sql.NewSubscriber(sql.BeginnerFromStdSQL(s.raw), sql.SubscriberConfig{
		ConsumerGroup: group, PollInterval: 20 * time.Millisecond, RetryInterval: 20 * time.Millisecond,
		SchemaAdapter: s.schema(), OffsetsAdapter: offsets, InitializeSchema: true,
	}, watermill.NopLogger{})
	require.NoError(s, err)
	fwd, err := stock.NewForwarder(sub, to, watermill.NopLogger{}, stock.Config{ForwarderTopic: topic})
	require.NoError(s, err)
	ended := make(chan error, 1)
	go func() { ended <- fwd.Run(context.WithoutCancel(s.Context())) }()
	<-fwd.Running()
	end := sync.OnceFunc(func() {
		require.NoError(s, fwd.Close())
		require.NoError(s, <-ended)
	})
	s.Cleanup(end)
	return func() {
		s.stored() // it does not wait for what it has sent, and would send it again
		end()
	}
}

// stored waits until the stock forwarder has stored the last offset.
func (s *service) stored() {
	s.Helper()
	query := `SELECT count(*) FROM "watermill_offsets_` + topic + `" WHERE offset_acked = (SELECT max("offset") FROM "watermill_` + topic + `")`
	if s.mysql {
		query = strings.ReplaceAll(query, `"`, "`")
	}
	testenv.Eventually(s, patience, "the offset to be stored", func() bool {
		n := 0
		require.NoError(s, s.raw.QueryRowContext(s.Context(), query).Scan(&n))
		return n == 1
	})
}

// start runs something until the returned function is called, which returns its error.
func (s *service) start(run func(ctx context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(s.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	s.Cleanup(func() { _ = stop() })
	return stop
}

// forward runs a forwarder of millrace.
func (s *service) forward(to message.Publisher) (stop func() error) {
	s.Helper()
	fwd, err := forwarder.New(s.box, to, forwarder.Config{PollInterval: 20 * time.Millisecond})
	require.NoError(s, err)
	return s.start(fwd.Run)
}

// publish publishes n messages of one key the old way, and returns their ids.
func (s *service) publish(prefix string, n int) (ids []string) {
	s.Helper()
	for i := range n {
		msg := newMessage(fmt.Sprintf("%s-%03d", prefix, i))
		ids = append(ids, msg.UUID)
		require.NoError(s, s.old.Publish("orders", msg))
	}
	return ids
}

func newMessage(id string) *message.Message {
	msg := message.NewMessage(id, []byte("payload \x00\xff of "+id))
	msg.Metadata["name"] = "väl\"ue"
	return outbox.WithKey(msg, "key")
}

func (s *service) count(table string) (n int) {
	s.Helper()
	quote := `"`
	if s.mysql {
		quote = "`"
	}
	require.NoError(s, s.raw.QueryRowContext(s.Context(), `SELECT count(*) FROM `+quote+table+quote).Scan(&n))
	return n
}

func (s *service) wants(b *broker, what string, ids []string) {
	s.Helper()
	testenv.Eventually(s, patience, what, func() bool { return len(b.ids()) >= len(ids) })
	require.Equal(s, ids, b.ids(), what)
}

// broker is a publisher that remembers.
type broker struct {
	mu   sync.Mutex
	msgs []*message.Message
	tops []string
	hold chan struct{}
}

func (b *broker) Publish(topic string, msgs ...*message.Message) error {
	if b.hold != nil {
		<-b.hold
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, msg := range msgs {
		b.msgs, b.tops = append(b.msgs, msg), append(b.tops, topic)
	}
	return nil
}

func (b *broker) Close() error { return nil }

func (b *broker) ids() (ids []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, msg := range b.msgs {
		ids = append(ids, msg.UUID)
	}
	return ids
}

func TestTheSwitchAndTheWayBackDeliverEachMessageOnceAndInOrder(t *testing.T) {
	t.Parallel()
	test := func(s *service) {
		before, during, after := &broker{}, &broker{}, &broker{}
		stop := s.stockForwarder(before)
		s.wants(before, "the stock forwarder's messages", s.publish("before", 10))
		stop()

		ids := s.publish("waiting", 20) // more than a batch
		stopRun := s.start(s.takeover().Run)
		stopForward := s.forward(during)
		ids = append(ids, s.publish("during", 20)...)
		s.wants(during, "the messages that were moved", ids)
		require.Equal(s, "orders", during.tops[0])
		require.Equal(s, newMessage(ids[0]).Payload, during.msgs[0].Payload)
		require.Equal(s, "väl\"ue", during.msgs[0].Metadata["name"])
		require.NoError(s, stopRun())
		require.NoError(s, stopForward())

		ids = s.publish("after", 10)
		ids = append(ids, s.given(&after, 10)...)
		s.wants(after, "the messages after the way back", ids)
		require.Equal(s, newMessage(ids[15]).Payload, after.msgs[15].Payload)
		require.Equal(s, newMessage(ids[15]).Metadata, after.msgs[15].Metadata)
		require.Len(s, before.ids(), 10)
		require.Len(s, during.ids(), 40)
	}
	on(t, test, "mysql", "pgx", "postgres", "pgxpool") // each way to PostgreSQL
}

// given publishes n messages into the Box, starts the stock forwarder, and gives them back.
func (s *service) given(to **broker, n int) (ids []string) {
	s.Helper()
	for i := range n {
		msg := newMessage(fmt.Sprintf("given-%03d", i))
		ids = append(ids, msg.UUID)
		require.NoError(s, s.box.Publish(s.Context(), "orders", msg))
	}
	s.stockForwarder(*to)
	require.Equal(s, n, s.giveBack())
	require.Zero(s, s.count("millrace_outbox"))
	return ids
}

// giveBack gives back once the forwarder that was stopped has left all lanes: what cannot be released has a lease that
// ends.
func (s *service) giveBack() (moved int) {
	s.Helper()
	var err error
	testenv.Eventually(s, patience, "the lanes to be free", func() bool {
		moved, err = s.takeover().GiveBack(s.Context())
		return !errors.Is(err, takeover.ErrForwarder)
	})
	require.NoError(s, err)
	return moved
}

func TestRunRefusesWhileAStockForwarderIsIdleOrBusy(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		s.cfg.StockPollInterval = 5 * time.Second
		slow := &broker{hold: make(chan struct{})}
		stop := s.stockForwarder(slow)
		ids := s.publish("first", 1)
		close(slow.hold)
		s.wants(slow, "the first", ids)
		s.stored()
		require.ErrorIs(s, s.takeover().Run(s.Context()), takeover.ErrStockForwarder)
		s.wants(slow, "the second", append(ids, s.publish("second", 1)...))
		require.ErrorIs(s, s.takeover().Run(s.Context()), takeover.ErrStockForwarder)
		stop()
	})
}

func TestAStockForwarderThatIsStartedBesideLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		here, there := &broker{}, &broker{}
		stop := s.stockForwarder(there)
		ids := s.publish("before", 1)
		s.wants(there, "the first", ids)
		stop()
		s.forward(here)
		stopRun := s.start(s.takeover().Run)
		var writers sync.WaitGroup
		var mu sync.Mutex
		for w := range 4 {
			writers.Go(func() {
				published := s.publish(fmt.Sprintf("writer-%d", w), 50)
				mu.Lock()
				defer mu.Unlock()
				ids = append(ids, published...)
			})
		}
		testenv.Eventually(s, patience, "the first that was moved", func() bool { return len(here.ids()) > 0 })
		s.stockForwarder(there)
		writers.Wait()
		all := func() []string { return append(here.ids(), there.ids()...) }
		if s.mysql { // there the stock forwarder may lose some by itself
			s.settled(all)
			require.Subset(s, append(ids, "last-000"), all())
		} else {
			testenv.Eventually(s, patience, "all messages", func() bool { return len(all()) >= len(ids) })
			require.ElementsMatch(s, ids, all())
		}
		require.Len(s, all(), len(unique(all())), "twice")
		if err := stopRun(); err != nil {
			require.ErrorIs(s, err, takeover.ErrStockForwarder)
		}
	})
}

// settled waits until a last message has come, published after all others.
func (s *service) settled(all func() []string) {
	s.Helper()
	last := s.publish("last", 1)[0]
	testenv.Eventually(s, patience, "the last message", func() bool { return slices.Contains(all(), last) })
}

func unique(ids []string) map[string]bool {
	set := make(map[string]bool)
	for _, id := range ids {
		set[id] = true
	}
	return set
}

func TestAMessageThatBecomesVisibleBelowMovedOnesIsMovedToo(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		s.cfg.FromStart = true
		s.initialise()
		late := s.begin("late")
		ids := s.publish("early", 1)
		s.start(s.takeover().Run)
		s.forward(s.heard)
		s.wants(s.heard, "the one that can be seen", ids)
		require.NoError(s, late.Commit())
		s.wants(s.heard, "the late one", append(ids, "late"))
	})
}

// initialise creates the stock tables, as the stock subscriber does.
func (s *service) initialise() {
	s.Helper()
	s.publish("first", 1)
	stop := s.stockForwarder(s.heard)
	testenv.Eventually(s, patience, "the first", func() bool { return len(s.heard.ids()) == 1 })
	stop()
	s.heard.msgs, s.heard.tops = nil, nil
}

// begin publishes a message the old way in a transaction that stays open.
func (s *service) begin(id string) *stdsql.Tx {
	s.Helper()
	tx, err := s.raw.BeginTx(s.Context(), nil)
	require.NoError(s, err)
	s.Cleanup(func() { _ = tx.Rollback() })
	pub, err := sql.NewPublisher(sql.TxFromStdSQL(tx), sql.PublisherConfig{SchemaAdapter: s.schema()}, watermill.NopLogger{})
	require.NoError(s, err)
	require.NoError(s, stock.NewPublisher(pub, stock.PublisherConfig{ForwarderTopic: topic}).Publish("orders", newMessage(id)))
	return tx
}

func TestWhatTheStockForwarderHasPassedIsListedAndSentOnlyOnRequest(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		lost := &broker{}
		stop := s.stockForwarder(lost)
		ids := s.publish("passed", 5)
		s.wants(lost, "what the stock forwarder has sent", ids)
		stop()
		s.start(s.takeover().Run)
		s.forward(s.heard)
		next := s.publish("next", 1)
		s.wants(s.heard, "what comes next", next)

		passed, err := s.takeover().Passed(s.Context(), 0, 0)
		require.NoError(s, err)
		require.Len(s, passed, 5)
		for i, p := range passed {
			require.Equal(s, ids[i], p.ID)
			require.Equal(s, "orders", p.Topic)
			require.NotEmpty(s, p.CreatedAt)
			require.NoError(s, p.Err)
		}
		page, err := s.takeover().Passed(s.Context(), passed[1].Offset, 2)
		require.NoError(s, err)
		require.Equal(s, passed[2:4], page)

		n, err := s.takeover().Send(s.Context(), passed[3].Offset, passed[1].Offset, 999999)
		require.NoError(s, err)
		require.Equal(s, 2, n)
		s.wants(s.heard, "what was asked for", append(next, ids[1], ids[3]))
		n, err = s.takeover().Send(s.Context(), passed[3].Offset)
		require.NoError(s, err)
		require.Zero(s, n, "it is not there any more")
	})
}

func TestWhatCannotBeMovedStaysAndHoldsUpNobody(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		var log buffer
		s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s.initialise()
		raw, err := sql.NewPublisher(sql.BeginnerFromStdSQL(s.raw), sql.PublisherConfig{SchemaAdapter: s.schema()}, watermill.NopLogger{})
		require.NoError(s, err)
		for range 10 { // more than a batch
			require.NoError(s, raw.Publish(topic, message.NewMessage(watermill.NewUUID(), []byte(`{"secret":1}`))))
		}
		require.NoError(s, s.old.Publish(strings.Repeat("t", 201), newMessage("long topic")))
		ids := s.publish("good", 10)
		s.start(s.takeover().Run)
		s.forward(s.heard)
		s.wants(s.heard, "the good ones", ids)
		ids = append(ids, s.publish("later", 1)...)
		s.wants(s.heard, "a later one, after another look at the bad ones", ids)
		require.Equal(s, 11, strings.Count(log.String(), "stays where it is"))
		require.NotContains(s, log.String(), "secret")
		require.Equal(s, 11, s.count("watermill_"+topic)-1, "beside the first, that the stock forwarder has sent")
	})
}

func TestAnIdThatWaitsInTheOutboxAlreadyWaitsInTheTableUntilThatOneIsGone(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		s.initialise()
		ids := s.publish("one", 3)
		require.NoError(s, s.old.Publish("bills", newMessage(ids[1])))
		ids = append(ids, s.publish("two", 20)...)
		s.start(s.takeover().Run)
		testenv.Eventually(s, patience, "all but the double to be moved", func() bool { return s.count("millrace_outbox") == len(ids) })
		s.forward(s.heard)
		s.wants(s.heard, "all, and then the double", append(ids, ids[1]))
	})
}

func TestCheckSaysWhatIsWrongWithTheTables(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		err := s.takeover().Run(s.Context())
		require.True(s, outbox.IsSetup(err), "without tables: %v", err)

		s.initialise()
		require.NoError(s, s.takeover().Check(s.Context()))
		wrong := s.cfg
		wrong.ConsumerGroup = "unknown"
		s.cfg = wrong
		require.ErrorContains(s, s.takeover().Run(s.Context()), `consumer groups ["forwarders"] read the table too`)
		quote := `"`
		if s.mysql {
			quote = "`"
		}
		_, err = s.raw.ExecContext(s.Context(), `DELETE FROM `+quote+`watermill_offsets_`+topic+quote)
		require.NoError(s, err)
		require.ErrorContains(s, s.takeover().Run(s.Context()), "Config.FromStart")
	})
}

func TestSQLiteIsNotTakenOverFrom(t *testing.T) {
	t.Parallel()
	raw, err := stdsql.Open("sqlite", "file:"+testenv.SQLite(t)+"?_pragma=journal_mode(wal)")
	require.NoError(t, err)
	defer raw.Close()
	db := millrace.SQL(raw)
	box, err := outbox.New(db, outbox.Config{})
	require.NoError(t, err)
	require.NoError(t, box.Migrate(t.Context()))
	tk, err := takeover.New(db, box, takeover.Config{})
	require.NoError(t, err)
	require.ErrorContains(t, tk.Run(t.Context()), "PostgreSQL and MySQL")
}

func TestNewJoinsAllErrors(t *testing.T) {
	t.Parallel()
	_, err := takeover.New(nil, nil, takeover.Config{
		ForwarderTopic: `x"; DROP TABLE y`, BatchSize: -1, PollInterval: -1, StockPollInterval: -1, Prefix: "P",
	})
	for _, what := range []string{"ForwarderTopic", "BatchSize", "PollInterval", "StockPollInterval", "Prefix", "database"} {
		require.ErrorContains(t, err, what)
	}
}

func TestGiveBackRefusesWhileAForwarderRunsAndLeavesWhatIsDelayed(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		s.initialise()
		stop := s.forward(s.heard)
		require.NoError(s, s.box.Publish(s.Context(), "orders", newMessage("one")))
		s.wants(s.heard, "one", []string{"one"})
		_, err := s.takeover().GiveBack(s.Context())
		require.ErrorIs(s, err, takeover.ErrForwarder)
		require.NoError(s, stop())

		require.NoError(s, s.box.Publish(s.Context(), "orders", newMessage("two")))
		due := `now() + interval '1 hour'`
		if s.mysql {
			due = `now() + interval 1 hour`
		}
		require.NoError(s, s.box.Publish(s.Context(), "orders", newMessage("delayed")))
		_, err = s.raw.ExecContext(s.Context(), `UPDATE millrace_outbox SET ready = (1 = 0), due_at = `+due+` WHERE id = 'delayed'`)
		require.NoError(s, err)
		require.Equal(s, 1, s.giveBack())
		require.Equal(s, 1, s.count("millrace_outbox"))
		require.Zero(s, s.count("millrace_forwarders"), "the lanes are free")
	})
}

func TestGiveBackWaitsOnlyForTheLeaseOfAForwarderThatCrashed(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		s.initialise()
		require.NoError(s, s.box.Publish(s.Context(), "orders", newMessage("one")))
		store := s.box.Store()
		require.NoError(s, store.Join(s.Context(), "crashed", time.Second))
		_, err := store.Claim(s.Context(), "crashed", 1)
		require.NoError(s, err)
		require.Equal(s, 1, s.giveBack())
	})
}

func TestTwoTakeoversTakeTurns(t *testing.T) {
	t.Parallel()
	each(t, func(s *service) {
		s.initialise()
		s.forward(s.heard)
		stop1, stop2 := s.start(s.takeover().Run), s.start(s.takeover().Run)
		var ids []string
		for i := range 5 {
			ids = append(ids, s.publish(fmt.Sprint("turn", i), 20)...)
		}
		testenv.Eventually(s, patience, "all messages", func() bool { return len(s.heard.ids()) >= len(ids) })
		require.ElementsMatch(s, ids, s.heard.ids())
		require.NoError(s, errors.Join(stop1(), stop2()))
	})
}

// The request or the answer of COMMIT is lost, again and again.
func TestATakeoverWhoseCommitsAreCutLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, "pgx")
	s.initialise()
	ids := s.publish("cut", 100)
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	p := proxy.New(t, u.Host)
	u.Host = p.Addr
	raw, err := stdsql.Open("pgx", u.String())
	require.NoError(t, err)
	defer raw.Close()
	db := millrace.SQL(raw)
	box, err := outbox.New(db, outbox.Config{})
	require.NoError(t, err)
	tk, err := takeover.New(db, box, s.cfg)
	require.NoError(t, err)

	var cuts atomic.Int32
	var arm func()
	arm = func() {
		n := cuts.Add(1)
		if n > 6 {
			return
		}
		cut := func() { p.Cut(); arm() }
		if n%2 == 0 {
			p.OnBytes(true, []byte("commit"), cut)
		} else {
			p.OnBytes(false, []byte("COMMIT"), cut)
		}
	}
	arm()
	stop := s.start(tk.Run)
	s.forward(s.heard)
	s.wants(s.heard, "all messages", ids)
	require.NoError(t, stop())
	require.Greater(t, cuts.Load(), int32(6))
}

// buffer is a log that several goroutines write.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
