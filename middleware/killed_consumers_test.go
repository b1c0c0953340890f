package middleware_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

// inHand is how many deliveries a consumer has at a time.
const inHand = 10

// inboxConsumer is a process that handles the ids on its standard input, several at a time, one in five of
// them in vain, and answers "ack id" or "nack id".
func inboxConsumer() {
	raw, err := sql.Open(os.Getenv("DRIVER"), os.Getenv("DSN"))
	check(err)
	d := &database{raw: raw, db: millrace.SQL(raw), mark: os.Getenv("MARK")}
	d.inbox, err = dedup.NewInbox(d.db, dedup.InboxConfig{})
	check(err)
	m, err := middleware.Transactional(d.db, d.inbox, middleware.TransactionalConfig{Consumer: "c"})
	check(err)
	handle := m(func(msg *message.Message) ([]*message.Message, error) {
		if err := d.effect(msg.Context(), msg.UUID); err != nil {
			return nil, err
		}
		if rand.IntN(5) == 0 {
			return nil, errHandler
		}
		return nil, nil
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	for ids := bufio.NewScanner(os.Stdin); ids.Scan(); {
		id := ids.Text()
		wg.Go(func() {
			answer := "ack"
			if _, err := handle(delivery(context.Background(), id, "p")); err != nil {
				answer = "nack"
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Println(answer, id)
		})
	}
}

// pipeBroker hands deliveries to processes and delivers again what was not acknowledged.
type pipeBroker struct {
	role  string
	env   []string
	queue chan string
	left  atomic.Int64 // deliveries not acknowledged
	kills atomic.Int64 // still to come
	dies  bool         // consumers also die by themselves
	died  atomic.Int64 // how many did
	done  chan struct{}
	end   sync.Once // closes done
}

// run has so many consumers at a time, and returns when all have ended.
func (b *pipeBroker) run(t testing.TB, processes int) error {
	ended := make(chan error, processes)
	for range processes {
		go func() {
			err := b.serve(t)
			if err != nil {
				b.finish()
			}
			ended <- err
		}()
	}
	var errs []error
	for range processes {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

func (b *pipeBroker) finish() { b.end.Do(func() { close(b.done) }) }

// serve feeds one consumer after the other until all is acknowledged. Each is killed at some moment, with
// work in hand, as long as there are kills to come.
func (b *pipeBroker) serve(t testing.TB) error {
	for {
		cmd := testenv.Child(t, b.role, b.env...)
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		killed, err := b.live(in, bufio.NewScanner(out), 5+rand.IntN(20))
		if err != nil {
			return err
		}
		if !killed {
			_ = in.Close()
			return cmd.Wait()
		}
		_ = cmd.Process.Kill() // if it did not do that itself
		_ = cmd.Wait()
	}
}

// live feeds one consumer until it is to be killed, after some answers, or all is done.
func (b *pipeBroker) live(in io.Writer, answers *bufio.Scanner, answersToLive int) (kill bool, err error) {
	held := map[string]int{}
	n := 0
	give := func(id string) {
		held[id]++
		n++
		_, _ = fmt.Fprintln(in, id) // a consumer that is gone shows by its answers
	}
	for {
		if n == 0 {
			select {
			case id := <-b.queue:
				give(id)
			case <-b.done:
				return false, nil
			}
		}
		for more := true; more && n < inHand; {
			select {
			case id := <-b.queue:
				give(id)
			default:
				more = false
			}
		}
		if !answers.Scan() {
			if b.dies {
				b.died.Add(1)
				b.again(held)
				return true, nil
			}
			return false, fmt.Errorf("a consumer ended: %w", answers.Err())
		}
		answer, id, _ := strings.Cut(answers.Text(), " ")
		held[id]--
		n--
		if answer == "ack" {
			if b.left.Add(-1) == 0 {
				b.finish()
			}
		} else {
			b.queue <- id
		}
		if answersToLive--; answersToLive == 0 && b.kills.Add(-1) >= 0 {
			b.again(held)
			return true, nil
		}
	}
}

// again delivers what a consumer had in hand to another.
func (b *pipeBroker) again(held map[string]int) {
	for id, copies := range held {
		for range copies {
			b.queue <- id
		}
	}
}

// Copies of a message are handled by several processes at once, handlers fail and roll back, processes are
// killed with SIGKILL at any moment: each message has one effect.
func TestEffectsHappenExactlyOnceThoughConsumersAreKilled(t *testing.T) {
	t.Parallel()
	messages, kills := 100, 6
	if testenv.Full() {
		messages, kills = 2000, 60
	}
	const copies, processes = 4, 4
	for name, driver := range map[string]string{"postgres": "pgx", "mariadb": "mysql"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := map[string]func(testing.TB) string{"pgx": testenv.Postgres, "mysql": testenv.MariaDB}[driver](t)
			d := openDatabase(t, driver, dsn)
			b := &pipeBroker{
				role:  "inbox consumer",
				env:   []string{"DRIVER=" + driver, "DSN=" + dsn, "MARK=" + d.mark},
				queue: make(chan string, messages*copies), done: make(chan struct{}),
			}
			b.left.Store(int64(messages * copies))
			b.kills.Store(int64(kills))
			for m := range messages {
				for range copies { // side by side, so that they are handled at the same time
					b.queue <- fmt.Sprint("m", m)
				}
			}
			require.NoError(t, b.run(t, processes))
			require.LessOrEqual(t, b.kills.Load(), int64(0), "all kills happened")
			require.Equal(t, messages, d.count(t, `SELECT count(*) FROM effects`))
			require.Equal(t, messages, d.count(t, `SELECT count(DISTINCT message_id) FROM effects`))
			require.Equal(t, messages, d.count(t, `SELECT count(*) FROM millrace_inbox`))
		})
	}
}
