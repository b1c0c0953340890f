package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// TestAReaderAtItsLimitKeepsTheOrderOfContendedKeys lets writers change a row for each key and publish
// its version, while a reader takes few rows at a time, always from the bottom, and settles late.
func TestAReaderAtItsLimitKeepsTheOrderOfContendedKeys(t *testing.T) {
	for _, back := range []backend{postgresPool, mariadb, sqlite} {
		t.Run(back.name, func(t *testing.T) {
			b := open(t, back, outbox.Config{})
			b.exec(`CREATE TABLE biz (k VARCHAR(20) PRIMARY KEY, v INT NOT NULL)`)
			const writers, keys = 16, 20
			perWriter := 20
			if testenv.Full() {
				perWriter = 1000
			}
			if back.driver == "sqlite" {
				perWriter /= 4 // one writer at a time
			}
			for k := range keys {
				b.exec(fmt.Sprintf(`INSERT INTO biz VALUES ('key%d', 0)`, k))
			}
			failed := errors.New("rolled back")
			var group sync.WaitGroup
			for w := range writers {
				group.Go(func() {
					for i := range perWriter {
						key := fmt.Sprint("key", rand.IntN(keys))
						err := b.inTx(t.Context(), func(ctx context.Context) error {
							tx, _ := txnFrom(ctx, b.db)
							if _, err := tx.Exec(ctx, `UPDATE biz SET v = v + 1 WHERE k = '`+key+`'`); err != nil {
								return err
							}
							version := 0
							if err := tx.Query(ctx, `SELECT v FROM biz WHERE k = '`+key+`'`, nil, func(row scanner) error {
								return row.Scan(&version)
							}); err != nil {
								return err
							}
							if err := b.box.Publish(ctx, "t", outbox.WithKey(msg(fmt.Sprint(w, "-", i), strconv.Itoa(version)), key)); err != nil {
								return err
							}
							if i%10 == 9 {
								return failed
							}
							return nil
						})
						if err != nil && !errors.Is(err, failed) {
							t.Error(err)
							return
						}
					}
				})
			}
			done := make(chan struct{})
			go func() { group.Wait(); close(done) }()
			seen := b.drain(done, 7)
			total := 0
			for key, versions := range seen {
				for i, v := range versions {
					require.Equal(t, i+1, v, "%s: %v", key, versions)
				}
				total += len(versions)
			}
			require.Equal(t, writers*perWriter*9/10+writers*(perWriter%10)/10, total)
		})
	}
}

// drain reads and settles until the writers are done and nothing is left, and returns the payloads by
// key.
func (b *bench) drain(done <-chan struct{}, atOnce int) map[string][]int {
	b.Helper()
	store := b.box.Store()
	require.NoError(b, store.Join(b.Context(), "reader", time.Minute))
	grants, err := store.Claim(b.Context(), "reader", outbox.Lanes)
	require.NoError(b, err)
	lanes := make([]int, outbox.Lanes)
	for i := range lanes {
		lanes[i] = i
	}
	seen := map[string][]int{}
	var inFlight []outbox.Ref
	for {
		ended := false
		select {
		case <-done:
			ended = true
		default:
		}
		var exclude []int64
		for _, r := range inFlight {
			exclude = append(exclude, r.Pos)
		}
		rows, err := store.Read(b.Context(), outbox.Read{Lanes: lanes, Topics: []string{"t"}, Exclude: exclude, MaxRows: atOnce, MaxBytes: 1 << 20})
		require.NoError(b, err)
		for _, r := range rows {
			v, err := strconv.Atoi(string(r.Payload))
			require.NoError(b, err)
			seen[r.Key] = append(seen[r.Key], v)
			inFlight = append(inFlight, r.Ref)
		}
		if len(inFlight) > 3*atOnce || len(rows) == 0 {
			b.settleAll(grants, inFlight...)
			inFlight = nil
		}
		if ended && len(rows) == 0 {
			return seen
		}
	}
}

// settleAll settles rows, again while somebody has locked some of them, or a lock was waited for in vain.
func (b *bench) settleAll(grants []outbox.Grant, rows ...outbox.Ref) {
	b.Helper()
	testenv.Eventually(b, 30*time.Second, "all are settled", func() bool {
		settled, err := b.box.Store().Settle(b.Context(), grants, rows)
		if err != nil {
			b.Log("settle:", err)
			return false
		}
		require.Empty(b, settled.Lost)
		require.Empty(b, settled.Gone)
		rows = slices.DeleteFunc(slices.Clone(rows), func(r outbox.Ref) bool { return slices.Contains(settled.Done, r.Pos) })
		return len(rows) == 0
	})
}

// TestNoSecretAndNoContentReachesALogOrAnError drives every kind of failure with a canary in all that
// a user would not want to see again.
func TestNoSecretAndNoContentReachesALogOrAnError(t *testing.T) {
	const canary = "c4n4ry"
	for _, back := range backends {
		t.Run(back.name, func(t *testing.T) {
			var log bytes.Buffer
			b := open(t, back, outbox.Config{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
			publish := func(id string) error {
				return b.inTx(t.Context(), func(ctx context.Context) error {
					m := msg(id, canary)
					m.Metadata.Set("token", canary)
					return b.box.Publish(ctx, "orders", m)
				})
			}
			require.NoError(t, publish("1"))
			errs := []error{publish("1")}
			if back.driver == "sqlite" {
				b.exec(`DROP TABLE millrace_outbox`)
			} else {
				b.exec(`ALTER TABLE millrace_outbox ADD CONSTRAINT nothing CHECK (id <> '2')`)
				errs = append(errs, publish("2"))
				b.exec(`ALTER TABLE millrace_outbox RENAME TO gone`)
			}
			errs = append(errs, publish("3"), b.box.Check(t.Context()))
			_, err := b.box.Store().Topics(t.Context())
			errs = append(errs, err)
			for _, err := range errs {
				require.Error(t, err)
				require.NotContains(t, fmt.Sprintf("%v %+v", err, err), canary)
				for cause := err; cause != nil; cause = errors.Unwrap(cause) {
					require.NotContains(t, cause.Error(), canary)
				}
			}
			require.False(t, strings.Contains(log.String(), canary))
		})
	}
}
