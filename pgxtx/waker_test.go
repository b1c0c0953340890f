package pgxtx_test

import (
	"context"
	"database/sql"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/pgxtx"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const patience = time.Minute

func newWaker(t *testing.T, url string) *pgxtx.Waker {
	t.Helper()
	w, err := pgxtx.NewWaker(url, pgxtx.WakerConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close(context.WithoutCancel(t.Context()))) })
	return w
}

// hearing is a Listen under way.
type hearing struct {
	notes chan string
	ready chan struct{}
	ended chan error
}

func listen(t *testing.T, w outbox.Waker) *hearing {
	t.Helper()
	h := &hearing{notes: make(chan string, 10000), ready: make(chan struct{}), ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		h.ended <- w.Listen(ctx, sync.OnceFunc(func() { close(h.ready) }), func(note string) { h.notes <- note })
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return h
}

func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited for %s", what)
		panic("unreachable")
	}
}

func TestANoteIsHeardByAllWhoListenAndByNobodyOnAnotherChannel(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	w := newWaker(t, url)
	other, err := pgxtx.NewWaker(url, pgxtx.WakerConfig{Channel: `odd "name"`})
	require.NoError(t, err)
	defer other.Close(t.Context())
	here, there, elsewhere := listen(t, w), listen(t, newWaker(t, url)), listen(t, other)
	for _, h := range []*hearing{here, there, elsewhere} {
		receive(t, h.ready, "LISTEN")
	}
	require.NoError(t, w.Send(t.Context(), "it's a note"))
	require.NoError(t, other.Send(t.Context(), "another"))
	require.Equal(t, "it's a note", receive(t, here.notes, "a note"))
	require.Equal(t, "it's a note", receive(t, there.notes, "a note"))
	require.Equal(t, "another", receive(t, elsewhere.notes, "a note"))
}

func TestASendSurvivesThatItsIdleConnectionWasCut(t *testing.T) {
	t.Parallel()
	direct := testenv.Postgres(t)
	p, through := behindProxy(t, direct)
	w := newWaker(t, through)
	h := listen(t, newWaker(t, direct))
	receive(t, h.ready, "LISTEN")
	require.NoError(t, w.Send(t.Context(), "one"))
	p.Cut()
	require.NoError(t, w.Send(t.Context(), "two"))
	require.Equal(t, "one", receive(t, h.notes, "a note"))
	require.Equal(t, "two", receive(t, h.notes, "a note"))

	p.Refuse(true)
	p.Cut()
	require.Error(t, w.Send(t.Context(), "lost"))
	p.Refuse(false)
	require.NoError(t, w.Send(t.Context(), "three"))
	require.Equal(t, "three", receive(t, h.notes, "a note"))
}

func TestAListenEndsWithItsConnectionAndWithItsContext(t *testing.T) {
	t.Parallel()
	p, through := behindProxy(t, testenv.Postgres(t))
	w := newWaker(t, through)
	h := listen(t, w)
	receive(t, h.ready, "LISTEN")
	p.Cut()
	require.Error(t, receive(t, h.ended, "the end"))

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Listen(ctx, cancel, func(string) {}) }()
	require.ErrorIs(t, receive(t, ended, "the end"), context.Canceled)
}

func TestAClosedWakerSendsNothing(t *testing.T) {
	t.Parallel()
	w := newWaker(t, testenv.Postgres(t))
	require.NoError(t, w.Send(t.Context(), "one"))
	require.NoError(t, w.Close(t.Context()))
	require.NoError(t, w.Close(t.Context()))
	require.ErrorIs(t, w.Send(t.Context(), "two"), pgxtx.ErrWakerClosed)
}

func TestNewWakerReportsAllThatIsWrongAndNoPassword(t *testing.T) {
	t.Parallel()
	_, err := pgxtx.NewWaker("postgres://u:geheim@h:notaport/db", pgxtx.WakerConfig{Channel: strings.Repeat("c", 64)})
	require.ErrorContains(t, err, "Channel")
	require.ErrorContains(t, err, "NewWaker")
	require.NotContains(t, err.Error(), "geheim")
}

func TestAConfiguredConnectionIsAskedForEachTime(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	w, err := pgxtx.NewWaker(testenv.Postgres(t), pgxtx.WakerConfig{Configure: func(_ context.Context, c *pgx.ConnConfig) error {
		if asked.Add(1) == 1 {
			return context.DeadlineExceeded
		}
		return nil
	}})
	require.NoError(t, err)
	defer w.Close(t.Context())
	require.ErrorIs(t, w.Send(t.Context(), "one"), context.DeadlineExceeded)
	require.NoError(t, w.Send(t.Context(), "two"))
}

// A transaction of each way to reach PostgreSQL.
func TestACommitWakesAnotherProcessWhateverTheDriverAndRollbacksDoNot(t *testing.T) {
	t.Parallel()
	for _, driver := range []string{"pool", "pgx", "postgres"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			s := openShop(t, driver, testenv.Postgres(t))
			theirs, stop := s.neighbour().Subscribe()
			defer stop()
			receive(t, theirs.C(), "the first look")
			theirs.Take()

			require.Error(t, s.publish("orders", "k", context.Canceled))
			require.NoError(t, s.publish("orders", "k", nil))
			receive(t, theirs.C(), "the wake-up")
			require.NotZero(t, theirs.Take()&(1<<outbox.Lane("k"))) // on a busy machine all lanes, from one that listens anew
		})
	}
}

func TestAThousandCommitsAreNoMoreNotesThanTheCoolDownAllows(t *testing.T) {
	t.Parallel()
	s := openShop(t, "pool", testenv.Postgres(t))
	h := listen(t, newWaker(t, s.url))
	receive(t, h.ready, "LISTEN")
	const writers, commits = 8, 1000
	began := time.Now()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range commits / writers {
				if err := s.publish("orders", strings.Repeat("k", 1+(w+i)%20), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	most := 2 + int(time.Since(began)/(5*time.Millisecond))
	testenv.Eventually(t, patience, "at least one note", func() bool { return len(h.notes) > 0 })
	require.NoError(t, newWaker(t, s.url).Send(t.Context(), "last")) // whatever was sent before it has come
	for n := 0; ; n++ {
		if receive(t, h.notes, "the last note") == "last" {
			t.Logf("%d notes for %d commits in %v", n, commits, time.Since(began))
			require.LessOrEqual(t, n, most)
			require.Less(t, n, commits)
			return
		}
	}
}

func TestABrokenSideConnectionNeitherFailsNorBlocksCommitsAndComesBack(t *testing.T) {
	t.Parallel()
	direct := testenv.Postgres(t)
	p, through := behindProxy(t, direct)
	s := openShop(t, "pool", direct)
	w := newWaker(t, through)
	box, err := outbox.New(s.db, outbox.Config{Waker: w})
	require.NoError(t, err)
	s.box = box
	theirs, stop := s.neighbour().Subscribe()
	defer stop()
	receive(t, theirs.C(), "the first look")
	theirs.Take()

	p.Blackhole(true)
	for range 50 { // each would wait for ever if it waited for the side connection
		require.NoError(t, s.publish("orders", "k", nil))
	}
	p.Cut()
	p.Blackhole(false)
	testenv.Eventually(t, patience, "a wake-up after the side connection came back", func() bool {
		require.NoError(t, s.publish("orders", "k", nil))
		select {
		case <-theirs.C():
			return theirs.Take()&(1<<outbox.Lane("k")) != 0
		default:
			return false
		}
	})
}

func TestAListenerComesBackAfterItsServerWasKilled(t *testing.T) {
	t.Parallel()
	server := testenv.OwnPostgres(t)
	s := openShop(t, "pool", server.URL)
	theirs, stop := s.neighbour().Subscribe()
	defer stop()
	receive(t, theirs.C(), "the first look")
	theirs.Take()
	server.Kill()
	server.Start()
	receive(t, theirs.C(), "a look at all lanes once it listens again")
	require.Equal(t, ^uint64(0), theirs.Take())
	testenv.Eventually(t, patience, "a wake-up", func() bool {
		_ = s.publish("orders", "k", nil) // the pool may still hold dead connections
		select {
		case <-theirs.C():
			return true
		default:
			return false
		}
	})
}

// A pooler in transaction mode answers LISTEN, and the notes go to a server session that nobody reads.
func TestCheckSaysThatAPoolerSwallowsNotes(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	s := openShop(t, "pool", url)
	testenv.Eventually(t, patience, "a note that comes back in time", func() bool { return s.box.Check(t.Context()) == nil })

	deaf, err := pgxtx.NewWaker(url, pgxtx.WakerConfig{})
	require.NoError(t, err)
	defer deaf.Close(t.Context())
	box, err := outbox.New(s.db, outbox.Config{Waker: pooler{deaf}})
	require.NoError(t, err)
	err = box.Check(t.Context())
	require.True(t, outbox.IsSetup(err), "%v", err)
	require.ErrorContains(t, err, "transaction mode")
}

// pooler listens on one session and has its notes sent under a name that another session listens to.
type pooler struct{ *pgxtx.Waker }

func (p pooler) Listen(ctx context.Context, ready func(), _ func(string)) error {
	return p.Waker.Listen(ctx, ready, func(string) {})
}

// shop is a process that publishes.
type shop struct {
	t   *testing.T
	url string
	db  millrace.DB
	box *outbox.Box
	tx  func(ctx context.Context, fn func(context.Context) error) error
}

func openShop(t *testing.T, driver, url string) *shop {
	t.Helper()
	s := &shop{t: t, url: url}
	if driver == "pool" {
		pool, err := pgxpool.New(t.Context(), url)
		require.NoError(t, err)
		t.Cleanup(pool.Close)
		db := pgxtx.Pool(pool)
		s.db = db
		s.tx = func(ctx context.Context, fn func(context.Context) error) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, _ pgx.Tx) error { return fn(ctx) })
		}
	} else {
		raw, err := sql.Open(driver, url)
		require.NoError(t, err)
		t.Cleanup(func() { _ = raw.Close() })
		db := millrace.SQL(raw)
		s.db = db
		s.tx = func(ctx context.Context, fn func(context.Context) error) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, _ *millrace.Tx) error { return fn(ctx) })
		}
	}
	s.box = s.neighbour()
	require.NoError(t, s.box.Migrate(t.Context()))
	return s
}

// neighbour is the same outbox as another process has it.
func (s *shop) neighbour() *outbox.Box {
	s.t.Helper()
	box, err := outbox.New(s.db, outbox.Config{Waker: newWaker(s.t, s.url)})
	require.NoError(s.t, err)
	return box
}

// publish commits one message, or rolls back with an error.
func (s *shop) publish(topic, key string, fail error) error {
	return s.tx(s.t.Context(), func(ctx context.Context) error {
		if err := s.box.Publish(ctx, topic, outbox.WithKey(message.NewMessage(watermill.NewUUID(), []byte("x")), key)); err != nil {
			return err
		}
		return fail
	})
}

// behindProxy is a proxy before the server, and the URL through it.
func behindProxy(t *testing.T, direct string) (*proxy.Proxy, string) {
	t.Helper()
	u, err := url.Parse(direct)
	require.NoError(t, err)
	p := proxy.New(t, u.Host)
	u.Host = p.Addr
	return p, u.String()
}
