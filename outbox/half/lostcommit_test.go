package half_test

import (
	"context"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/outbox/half"
)

// The business's COMMIT goes out, and nobody hears the answer, or it does not even go out. The caller is
// told that the outcome is unknown; the witness knows it.
func TestACommitWithoutAnAnswerIsCheckedBack(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(p *proxy.Proxy){
		"reply lost":   func(p *proxy.Proxy) { p.BlackholeReplies(true) },
		"request lost": func(p *proxy.Proxy) { p.Cut() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, [2]database{sqlite, pq})
			u, err := url.Parse(s.bizURL)
			require.NoError(t, err)
			p := proxy.New(t, u.Host)
			u.Host = p.Addr
			_, throughProxy := s.open("pgx", u.String())
			m := s.messages(half.Config{Witnesses: map[string]millrace.DB{"orders": throughProxy}})

			var sent atomic.Bool
			p.OnBytes(true, []byte("commit"), func() {
				sent.Store(name == "reply lost")
				lose(p)
			})
			err = half.InTx(s.Context(), m, throughProxy, "orders", msg("m"), func(ctx context.Context, tx *millrace.Tx) error {
				return order(ctx, tx, "m")
			}, millrace.CommitTimeout(500*time.Millisecond))
			require.ErrorAs(t, err, new(*millrace.UnknownOutcomeError))
			s.wants(m, "m", half.Prepared)

			p.Cut()
			p.BlackholeReplies(false)
			s.run(m)
			if sent.Load() { // else it was lost, or given up before it was sent
				s.awaits(m, "m", half.Committed)
				require.True(t, s.ordered("m"))
				require.Equal(t, 1, s.sent("m"))
				return
			}
			s.awaits(m, "m", half.Ended)
			require.False(t, s.ordered("m"))
			require.Zero(t, s.sent("m"))
		})
	}
}
