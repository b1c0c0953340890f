package millrace_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
)

var hostPort = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// commitBytes is what COMMIT looks like on the wire, once it has been run before.
func commitBytes(driver string) []byte {
	switch driver {
	case "pgx": // the name of pgx's cached statement
		sum := sha256.Sum256([]byte("commit"))
		return fmt.Appendf(nil, "stmtcache_%x", sum[:24])
	case "pgx-stdlib":
		return []byte("commit")
	}
	return []byte("COMMIT")
}

// proxied is an env whose transactions go through a proxy; its admin does not.
func proxied(t *testing.T, driver string, cfg millrace.Config) (*env, *proxy.Proxy) {
	direct := newEnv(t, driver, cfg)
	p := proxy.New(t, hostPort.FindString(direct.dsn))
	e := dial(t, driver, hostPort.ReplaceAllString(direct.dsn, p.Addr), cfg)
	e.admin = direct.admin
	require.NoError(t, millrace.Migrate(t.Context(), direct.db, millrace.WitnessMigrations()))
	return e, p
}

// commitTimeout is that of the tests whose COMMIT is cut, and endless what no answer within it may take: a system
// gives up a connection after a quarter of an hour.
const (
	commitTimeout = 500 * time.Millisecond
	endless       = 2 * time.Minute
)

// commitFaults are what happens to the connection while COMMIT is on its way.
var commitFaults = map[string]func(e *env, p *proxy.Proxy){
	"request lost":    func(_ *env, p *proxy.Proxy) { p.Cut() },
	"request stalled": func(_ *env, p *proxy.Proxy) { p.Blackhole(true) },
	"reply stalled":   func(_ *env, p *proxy.Proxy) { p.BlackholeReplies(true) },
	"reply lost": func(e *env, p *proxy.Proxy) {
		p.BlackholeReplies(true)
		go e.onceCommitted(p.Cut)
	},
}

// onceCommitted calls fn when the note "a" has been committed, whoever has heard of it.
func (e *env) onceCommitted(fn func()) {
	for n := 0; n == 0; <-time.After(time.Millisecond) {
		if e.admin.QueryRow("SELECT COUNT(*) FROM notes WHERE note = 'a'").Scan(&n) != nil {
			return // the test is over
		}
	}
	fn()
}

// heal ends all of them. What was held back is lost.
func heal(p *proxy.Proxy) {
	p.Cut()
	p.Blackhole(false)
}

// cutCommit commits once, so that drivers know their statements, and then with a fault and, if it cancels, a context
// that ends at that moment.
func cutCommit(t *testing.T, e *env, p *proxy.Proxy, strike func(*env, *proxy.Proxy), cancels bool) (*journal, error) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready(t, e)
	p.OnBytes(true, commitBytes(e.driver), func() {
		strike(e, p)
		if cancels {
			cancel()
		}
	})
	var j journal
	return &j, e.InTx(ctx, func(ctx context.Context, tx handle) error {
		require.NoError(t, note(ctx, tx, "a"))
		require.NoError(t, publish(ctx, e.db, "message"))
		return j.all(ctx, "")
	})
}

// Whatever happens to the connection while COMMIT is under way, InTx is back within its commit timeout
// and never says rolled back of what was committed, nor committed of what was not.
func TestTheOutcomeOfACutCommitIsNeverGuessed(t *testing.T) {
	for _, driver := range []string{"pgx", "pgx-stdlib", "pq", "mysql"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			for name, strike := range commitFaults {
				t.Run(name, func(t *testing.T) {
					e, p := proxied(t, driver, millrace.Config{CommitTimeout: commitTimeout})
					t.Cleanup(p.Cut) // ends the COMMIT that nobody waits for any more
					start := time.Now()
					var struck atomic.Bool // else the machine was so slow that COMMIT was given up before it was sent
					j, err := cutCommit(t, e, p, func(e *env, p *proxy.Proxy) {
						struck.Store(true)
						strike(e, p)
					}, strings.HasPrefix(name, "reply"))
					require.Less(t, time.Since(start), endless)
					var unknown *millrace.UnknownOutcomeError
					require.ErrorAs(t, err, &unknown)
					require.Equal(t, "before, done:unknown", j.String())
					p.Cut()
					if strings.HasPrefix(name, "reply") && struck.Load() {
						testenv.Eventually(t, 30*time.Second, "the commit whose reply was lost", func() bool { return e.notes(t) == "a first message" })
					} else {
						require.Contains(t, []string{"first", "a first message"}, e.notes(t), "all or nothing")
					}
				})
			}
		})
	}
}

// A context that ends at any moment gives a truthful answer, and the connection back.
func TestACancelAtAnyMomentIsAnsweredTruthfully(t *testing.T) {
	runs := 80
	if testenv.Full() {
		runs = 5000
	}
	seed := rand.Uint64()
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 1))
			e := newEnv(t, driver, millrace.Config{})
			var longest time.Duration = 2 * time.Millisecond
			outcomes := map[string]int{}
			for i := range runs {
				ctx, cancel := context.WithCancel(t.Context())
				timer := time.AfterFunc(time.Duration(random.Int64N(int64(longest))), cancel)
				var j journal
				start := time.Now()
				err := e.InTx(ctx, func(ctx context.Context, tx handle) error {
					if err := j.all(ctx, ""); err != nil {
						return err
					}
					for k := range 4 {
						if err := note(ctx, tx, fmt.Sprintf("n%d-%d", i, k)); err != nil {
							return err
						}
					}
					return publish(ctx, e.db, fmt.Sprintf("n%d-m", i))
				})
				if err == nil { // aim at the whole of the transaction, however long that is here
					longest = time.Since(start) * 5 / 4
				} else {
					longest = longest * 11 / 10
				}
				timer.Stop()
				cancel()
				var n int
				require.NoError(t, e.admin.QueryRow(fmt.Sprintf("SELECT COUNT(*) FROM notes WHERE note LIKE 'n%d-%%'", i)).Scan(&n))
				var unknown *millrace.UnknownOutcomeError
				switch {
				case err == nil:
					outcomes["committed"]++
					require.Equal(t, 5, n)
					require.Equal(t, "before, committed, done:committed", j.String())
				case errors.As(err, &unknown):
					t.Fatalf("a cancel is no reason not to know: %v", err)
				default:
					outcomes["rolled back"]++
					require.Zero(t, n, "rolled back: %v", err)
					require.NotContains(t, j.String(), "committed")
				}
			}
			t.Log(outcomes)
			require.NotZero(t, outcomes["committed"])
			require.NotZero(t, outcomes["rolled back"])
			testenv.Eventually(t, 30*time.Second, "connections given back", func() bool { return e.inUse() == 0 })
		})
	}
}
