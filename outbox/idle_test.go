package outbox_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/outbox/outboxtest"
	"github.com/millrace-go/millrace/pgxtx"
)

// statements remembers what is sent.
type statements struct {
	mu  sync.Mutex
	all []string
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, q.SQL)
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *statements) take() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, s.all = s.all, nil
	return all
}

// traced has the outbox work through a pool of its own, of which all that is sent is told.
func (b *bench) traced(tracer pgx.QueryTracer) {
	b.Helper()
	cfg, err := pgxpool.ParseConfig(b.url)
	require.NoError(b, err)
	cfg.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
	require.NoError(b, err)
	b.Cleanup(pool.Close)
	b.box, err = outbox.New(pgxtx.Pool(pool), outbox.Config{})
	require.NoError(b, err)
}

func TestAnIdleForwarderSendsFewerThanFourStatementsASecond(t *testing.T) {
	for name, before := range map[string]func(b *bench, grants []outbox.Grant){
		"that has never had anything": func(*bench, []outbox.Grant) {},
		"that has sent all":           func(b *bench, grants []outbox.Grant) { b.passing(grants, "1", "2") },
		"with a delayed message": func(b *bench, grants []outbox.Grant) {
			b.insert(outboxtest.Entry{ID: "later", Topic: "t", Delay: time.Hour})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, postgresPool, outbox.Config{})
			sent := &statements{}
			b.traced(sent)
			store := b.box.Store()
			grants := b.holder()
			before(b, grants)
			beat := int64(0)
			second := func(n int) {
				_, err := store.Survey(t.Context())
				require.NoError(t, err)
				topics, err := store.Topics(t.Context())
				require.NoError(t, err)
				require.Empty(t, topics.Ready)
				_, err = store.Promote(t.Context(), grants)
				require.NoError(t, err)
				if n%2 == 0 { // a quarter of the lease
					ok, err := store.Renew(t.Context(), "holder", beat, time.Minute, nil)
					require.NoError(t, err)
					require.True(t, ok)
					beat++
				}
				outbox.Later(store, time.Second)
			}
			last := b.one(`SELECT coalesce(max(pos), (SELECT count(*) FROM millrace_outbox)) FROM millrace_outbox`)
			testenv.Eventually(t, 30*time.Second, "the bound is proved", func() bool {
				return outbox.Raise(t.Context(), store) >= last
			})
			sent.take()
			const seconds = 40
			for n := range seconds {
				second(n)
			}
			all := sent.take()
			count := map[string]int{}
			for _, text := range all {
				count[text]++
			}
			t.Logf("%.2f statements a second", float64(len(all))/seconds)
			require.Less(t, len(all), 4*seconds, "%v", count)

			b.insert(outboxtest.Entry{ID: "new", Topic: "new"})
			topics, err := store.Topics(t.Context())
			require.NoError(t, err)
			require.Equal(t, []string{"new"}, topics.Ready)
		})
	}
}

func TestABoundThatWasLoweredOnAQuietOutboxIsProvedAgain(t *testing.T) {
	b := open(t, postgres, outbox.Config{})
	last := b.passing(b.holder(), "1", "2", "3")
	b.raise(last)
	b.exec(`INSERT INTO millrace_outbox (pos, id, lane, topic, payload) OVERRIDING SYSTEM VALUE VALUES (2, 'below', 0, 't', '')`)
	outbox.Lower(b.box.Store())(nil)
	b.raise(1)
	require.Len(t, b.read("t"), 1)
	b.exec(`DELETE FROM millrace_outbox`)
	b.raise(last)
}
