package millrace_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/pgxtx"
)

const oneRow = "INSERT INTO rows_written VALUES (1)"

// BenchmarkOneInsert compares a transaction of one insert with and without InTx, on a PostgreSQL that waits for the
// disk at each commit, and on the tests' own, which does not: a transaction there is three trips over the loopback
// device and little else.
func BenchmarkOneInsert(b *testing.B) {
	b.Run("durable", func(b *testing.B) { oneInsert(b, testenv.OwnPostgres(b).URL) })
	b.Run("no disk", func(b *testing.B) { oneInsert(b, testenv.Postgres(b)) })
}

func oneInsert(b *testing.B, dsn string) {
	std := openDB("pgx", dsn)
	b.Cleanup(func() { _ = std.Close() })
	native, err := pgxpool.New(b.Context(), dsn)
	require.NoError(b, err)
	b.Cleanup(native.Close)
	_, err = std.Exec("CREATE TABLE rows_written (n INT)")
	require.NoError(b, err)
	plain, witnessed := millrace.SQL(std), millrace.SQL(std, millrace.Config{ResolveTimeout: time.Second})
	pool, witnessedPool := pgxtx.Pool(native), pgxtx.Pool(native, millrace.Config{ResolveTimeout: time.Second})
	require.NoError(b, millrace.Migrate(b.Context(), plain, millrace.WitnessMigrations()))

	bareStd := func(ctx context.Context) error {
		tx, err := std.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err = tx.ExecContext(ctx, oneRow); err != nil {
			return err
		}
		return tx.Commit()
	}
	bareNative := func(ctx context.Context) error {
		tx, err := native.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, oneRow); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
	inTx := func(db *millrace.SQLDB) func(context.Context) error {
		return func(ctx context.Context) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, tx *millrace.Tx) error {
				_, err := tx.ExecContext(ctx, oneRow)
				return err
			})
		}
	}
	inPgx := func(db *pgxtx.DB) func(context.Context) error {
		return func(ctx context.Context) error {
			return millrace.InTx(ctx, db, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, oneRow)
				return err
			})
		}
	}
	b.Run("stdlib", func(b *testing.B) { compare(b, bareStd, inTx(plain)) })
	b.Run("stdlib with witness", func(b *testing.B) { compare(b, bareStd, inTx(witnessed)) })
	b.Run("pgx", func(b *testing.B) { compare(b, bareNative, inPgx(pool)) })
	b.Run("pgx with witness", func(b *testing.B) { compare(b, bareNative, inPgx(witnessedPool)) })
}

// compare runs bare, InTx, and bare again in turns, so that what else the machine does hits all of them, and reports
// the ratios of their medians: "InTx/bare", and "A/A" for bare to itself with its range over twenty parts of the run.
// A difference within that range is none.
func compare(b *testing.B, bare, inTx func(context.Context) error) {
	var took [3][]time.Duration
	for i := range b.N {
		for k := range took {
			which := (i + k) % len(took) // no one always follows the same
			run := bare
			if which == 1 {
				run = inTx
			}
			start := time.Now()
			if err := run(b.Context()); err != nil {
				b.Fatal(err)
			}
			took[which] = append(took[which], time.Since(start))
		}
	}
	ratio := func(from, to int, which int) float64 {
		return float64(median(took[which][from:to])) / float64(median(took[0][from:to]))
	}
	b.ReportMetric(float64(median(took[0]).Nanoseconds()), "bare-ns")
	b.ReportMetric(ratio(0, b.N, 1), "InTx/bare")
	b.ReportMetric(ratio(0, b.N, 2), "A/A")
	if part := b.N / 20; part > 0 {
		var spread []float64
		for from := 0; from+part <= b.N; from += part {
			spread = append(spread, ratio(from, from+part, 2))
		}
		b.ReportMetric(slices.Min(spread), "A/A-least")
		b.ReportMetric(slices.Max(spread), "A/A-most")
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// BenchmarkHooks shows what hooks add to a transaction: on SQLite in memory, whose own cost is small. The
// difference of two lines, divided by the difference of their hooks, is the cost of one.
func BenchmarkHooks(b *testing.B) {
	std := openDB("sqlite", ":memory:")
	b.Cleanup(func() { _ = std.Close() })
	std.SetMaxOpenConns(1)
	db := millrace.SQL(std)
	for _, hooks := range []int{0, 1, 10, 100} {
		b.Run(fmt.Sprint(hooks), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				err := millrace.InTx(b.Context(), db, func(ctx context.Context, _ *millrace.Tx) error {
					for range hooks {
						if err := millrace.AfterCommit(ctx, nothing); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What a hook costs in allocations does not depend on the machine.
func TestAHookCostsAtMostEightAllocations(t *testing.T) {
	db := openDB("sqlite", ":memory:")
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(1)
	mdb := millrace.SQL(db)
	run := func(hooks int) {
		err := millrace.InTx(t.Context(), mdb, func(ctx context.Context, _ *millrace.Tx) error {
			for range hooks {
				if err := millrace.AfterCommit(ctx, nothing); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	allocs := func(hooks int) float64 { // other goroutines allocate, too, and the race detector empties pools
		least := testing.AllocsPerRun(1, func() { run(hooks) })
		for range 50 {
			least = min(least, testing.AllocsPerRun(1, func() { run(hooks) }))
		}
		return least
	}
	none, one, many := allocs(0), allocs(1), allocs(100)
	t.Logf("%v without hooks, %v with one, %v with 100", none, one, many)
	require.LessOrEqual(t, one-none, 8.0)
	require.LessOrEqual(t, (many-none)/100, 8.0)
}
