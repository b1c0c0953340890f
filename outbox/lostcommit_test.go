package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// TestASettleDeletesNothingUnsentAfterTheServerLostCommits kills a server that does not wait for the
// disk while messages are on their way. It forgets them, and draws their positions again for others.
func TestASettleDeletesNothingUnsentAfterTheServerLostCommits(t *testing.T) {
	t.Parallel()
	server, b := ownServer(t)
	grants := b.holder() // durable, and so is the epoch
	store := b.box.Store()
	rounds := 3
	if testenv.Full() {
		rounds = 20
	}
	reused := 0
	for round := 0; round < rounds || reused == 0 && round < 10*rounds; round++ { // a slow machine may have written before it is killed
		b.publishAs("off", fmt.Sprint("lost", round), 40)
		var sent []outbox.Ref
		for _, r := range b.read("t") {
			sent = append(sent, r.Ref)
		}
		require.NotEmpty(t, sent)
		server.Kill()
		server.Start()
		testenv.Eventually(t, 30*time.Second, "an answer", func() bool { return b.raw.PingContext(t.Context()) == nil })

		before := b.ids()
		b.publishAs("on", fmt.Sprint("new", round), 40)
		at := map[int64]string{}
		for id, pos := range b.ids() {
			at[pos] = id
		}
		for _, r := range sent {
			if at[r.Pos] != "" && at[r.Pos] != r.ID {
				reused++
			}
		}
		var settled outbox.Settled
		testenv.Eventually(t, 30*time.Second, "the settle answers", func() bool {
			var err error
			settled, err = store.Settle(t.Context(), grants, sent)
			return err == nil
		})
		require.Empty(t, settled.Lost)
		left := b.ids()
		for i := range 40 {
			require.Contains(t, left, fmt.Sprintf("new%d-%d", round, i+1), "never sent, and deleted")
		}
		for _, r := range sent {
			require.NotContains(t, left, r.ID, "sent, and kept")
		}
		require.Len(t, settled.Done, len(before), "what the server did not lose")
		testenv.Eventually(t, 30*time.Second, "all the new ones are read", func() bool { return len(b.read("t")) == 40 })
		b.exec(`DELETE FROM millrace_outbox`)
	}
	t.Log("positions drawn twice:", reused)
	require.Positive(t, reused, "else this test shows nothing")
}

// publishAs inserts n messages with a setting of synchronous_commit.
func (b *bench) publishAs(synchronousCommit, name string, n int) {
	b.Helper()
	conn, err := b.raw.Conn(b.Context())
	require.NoError(b, err)
	defer conn.Close()
	for _, query := range []string{
		`SET synchronous_commit = ` + synchronousCommit,
		fmt.Sprintf(`INSERT INTO millrace_outbox (id, lane, topic, payload)
			SELECT '%s-' || n, n %% 64, 't', 'x' FROM generate_series(1, %d) n`, name, n),
		`RESET synchronous_commit`,
	} {
		_, err := conn.ExecContext(b.Context(), query)
		require.NoError(b, err)
	}
}

// ids are the positions of what waits, by id.
func (b *bench) ids() map[string]int64 {
	b.Helper()
	all := map[string]int64{}
	for _, r := range b.waiting() {
		all[r.ID] = r.Pos
	}
	return all
}
