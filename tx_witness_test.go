package millrace_test

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault/proxy"
)

// With resolution every cut COMMIT ends in a definite answer, and that is the truth in the database.
func TestTheOutcomeOfACutCommitIsFoundOut(t *testing.T) {
	all := maps.Clone(commitFaults)
	all["request stalled"] = func(_ *env, p *proxy.Proxy) {
		p.Blackhole(true)
		time.AfterFunc(2*commitTimeout, func() { heal(p) })
	}
	all["reply stalled"] = func(e *env, p *proxy.Proxy) {
		p.BlackholeReplies(true)
		go e.onceCommitted(func() { time.AfterFunc(2*commitTimeout, func() { heal(p) }) })
	}
	all["reply lost"] = func(e *env, p *proxy.Proxy) {
		p.BlackholeReplies(true)
		go e.onceCommitted(func() { heal(p) })
	}
	all["request late"] = func(_ *env, p *proxy.Proxy) {
		p.Blackhole(true)
		time.AfterFunc(2*commitTimeout, func() { p.Blackhole(false) })
	}
	for _, driver := range []string{"pgx", "pgx-stdlib", "pq", "mysql"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			for name, strike := range all {
				t.Run(name, func(t *testing.T) {
					e, p := proxied(t, driver, millrace.Config{CommitTimeout: commitTimeout, ResolveTimeout: 5 * time.Minute})
					t.Cleanup(func() { heal(p) })
					j, err := cutCommit(t, e, p, strike, strings.HasPrefix(name, "request"))
					notes := e.notes(t)
					var unknown *millrace.UnknownOutcomeError
					require.NotErrorAs(t, err, &unknown)
					if err == nil {
						require.Equal(t, "a first message", notes)
						require.Equal(t, "before, committed, done:committed", j.String())
					} else {
						require.ErrorIs(t, err, millrace.ErrTxAborted)
						require.Equal(t, "first", notes)
						require.Equal(t, "before, rolledback, done:rolled back", j.String())
					}
					switch {
					case strings.HasPrefix(name, "reply"):
						require.NoError(t, err)
					case name == "request lost":
						require.Error(t, err)
					}
					heal(p)
					require.Equal(t, notes, e.notes(t), "the answer is final")
				})
			}
		})
	}
}

func TestAnOutcomeThatCannotBeFoundOutStaysUnknownInBoundedTime(t *testing.T) {
	t.Parallel()
	e, p := proxied(t, "pgx", millrace.Config{CommitTimeout: commitTimeout, ResolveTimeout: commitTimeout})
	t.Cleanup(func() { heal(p) })
	start := time.Now()
	j, err := cutCommit(t, e, p, commitFaults["reply stalled"], false)
	require.Less(t, time.Since(start), endless)
	var unknown *millrace.UnknownOutcomeError
	require.ErrorAs(t, err, &unknown)
	require.Equal(t, "before, done:unknown", j.String())
}

func TestTheOutcomeOfAForeignTransactionIsFoundOut(t *testing.T) {
	t.Parallel()
	for name, committed := range map[string]bool{"reply lost": true, "request lost": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, p := proxied(t, "mysql", millrace.Config{ResolveTimeout: 5 * time.Minute})
			p.OnBytes(true, []byte("COMMIT"), func() {
				if committed {
					p.BlackholeReplies(true)
					go e.onceCommitted(func() { heal(p) })
				} else {
					p.Cut()
				}
			})
			var j journal
			err := millrace.Bind(t.Context(), e.db.(*millrace.SQLDB), func(ctx context.Context, b *millrace.Binding) error {
				return orm(ctx, e.pool, func(tx *sql.Tx) error {
					return b.Run(ctx, tx, func(ctx context.Context) error {
						_, err := tx.ExecContext(ctx, "INSERT INTO notes VALUES ('a')")
						return errors.Join(err, j.all(ctx, ""))
					})
				})
			})
			if committed {
				require.NoError(t, err)
				require.Equal(t, "a", e.notes(t))
				require.Equal(t, "before, committed, done:committed", j.String())
			} else {
				require.ErrorIs(t, err, millrace.ErrTxAborted)
				require.Empty(t, e.notes(t))
				require.Equal(t, "before, rolledback, done:rolled back", j.String())
			}
		})
	}
}

func TestATransactionWritesAWitnessUnlessItIsReadOnly(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t, driver, millrace.Config{ResolveTimeout: time.Second})
			put := func(ctx context.Context, tx handle) error {
				return errors.Join(note(ctx, tx, "a"), publish(ctx, e.db, "m1"), publish(ctx, e.db, "m2"), publish(ctx, e.db, "m3"))
			}
			err := e.InTx(t.Context(), put)
			require.ErrorContains(t, err, "WitnessMigrations")
			require.Empty(t, e.notes(t), "without its witness it must not commit")

			require.NoError(t, millrace.Migrate(t.Context(), e.db, millrace.WitnessMigrations()))
			require.NoError(t, e.InTx(t.Context(), put))
			require.Equal(t, "a m1 m2 m3", e.notes(t))
			require.NoError(t, e.InTx(t.Context(), func(ctx context.Context, tx handle) error {
				_, err := tx.Count(ctx, "SELECT COUNT(*) FROM notes")
				return err
			}, millrace.ReadOnly()))
			require.Error(t, e.InTx(t.Context(), put), "the notes are there already")
			_, err = millrace.PurgeWitnesses(t.Context(), e.db, time.Hour-1)
			require.ErrorContains(t, err, "may be needed")
			n, err := millrace.PurgeWitnesses(t.Context(), e.db, time.Hour)
			require.NoError(t, err)
			require.Zero(t, n)
			require.Equal(t, 1, count(t, e.admin, "SELECT COUNT(*) FROM millrace_witness WHERE kind = 'W'"))
		})
	}
}

func TestNonsenseInTheConfigPanicsAtWiring(t *testing.T) {
	t.Parallel()
	db := open(t, "sqlite", ":memory:")
	for name, cfg := range map[string]millrace.Config{
		"CommitTimeout is negative":              {CommitTimeout: -1},
		"ResolveTimeout is negative":             {ResolveTimeout: -1},
		"ResolveTimeout is more than 30m0s":      {ResolveTimeout: time.Hour},
		"AsyncWorkers is negative":               {AsyncWorkers: -1},
		"AsyncQueue is negative":                 {AsyncQueue: -1},
		"HooksTimeout is negative":               {HooksTimeout: -1},
		"wants a *sql.DB and at most one Config": {},
	} {
		func() {
			defer func() { require.Contains(t, recover(), name) }()
			if strings.HasPrefix(name, "wants") {
				millrace.SQL(nil)
			}
			millrace.SQL(db, cfg)
		}()
	}
}

// Without its witness a transaction must not be looked for: it would be found rolled back.
func TestAForeignTransactionThatHasNoWitnessStaysUnknown(t *testing.T) {
	t.Parallel()
	e := newEnv(t, "mysql", millrace.Config{ResolveTimeout: time.Second})
	require.NoError(t, millrace.Migrate(t.Context(), e.db, millrace.WitnessMigrations()))
	var j journal
	err := millrace.Bind(t.Context(), e.db.(*millrace.SQLDB), func(ctx context.Context, b *millrace.Binding) error {
		return orm(ctx, e.pool, func(tx *sql.Tx) error {
			_ = b.Run(ctx, tx, func(ctx context.Context) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO notes VALUES ('a')")
				return errors.Join(err, j.all(ctx, ""), errBusiness)
			})
			return nil
		})
	})
	var unknown *millrace.UnknownOutcomeError
	require.ErrorAs(t, err, &unknown)
	require.ErrorIs(t, err, errBusiness)
	require.Equal(t, "done:unknown", j.String())
	require.Equal(t, "a", e.notes(t))
	require.Zero(t, count(t, e.admin, "SELECT COUNT(*) FROM millrace_witness"))
}
