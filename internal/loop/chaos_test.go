package loop_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/outbox"
)

// chaos is a publisher of confirmations that says that it has sent them. 30 % it drops, 30 % it sends twice,
// and some it sends so late that others overtake them and the message is sent again.
type chaos struct {
	message.Publisher
	late time.Duration

	mu   sync.Mutex
	rand *rand.Rand
	work sync.WaitGroup
}

func (c *chaos) roll() (n int, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = c.rand.IntN(100)
	if c.rand.IntN(10) == 0 {
		wait = time.Duration(c.rand.Int64N(int64(c.late)))
	}
	return n, wait
}

func (c *chaos) Publish(topic string, msgs ...*message.Message) error {
	for _, m := range msgs {
		n, wait := c.roll()
		if n < 30 {
			continue
		}
		copies := 1
		if n < 60 {
			copies = 2
		}
		c.work.Go(func() {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			<-timer.C
			for range copies {
				// What fails is lost, as so much else here.
				_ = c.Publisher.Publish(topic, message.NewMessage(m.UUID, m.Payload))
			}
		})
	}
	return nil
}

func TestConfirmationsThatAreLostDoubledAndLate(t *testing.T) {
	messages := 60
	if testenv.Full() {
		messages = 20_000
	}
	const attempts = 40
	eachBroker(t, func(t *testing.T, b *broker) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		deadline := time.Second
		l := newLoop(t, b, outbox.Policy{Deadline: deadline, MaxAttempts: attempts})
		c := &chaos{Publisher: b.pub, late: 2 * deadline, rand: rand.New(rand.NewPCG(seed, 0))}
		t.Cleanup(c.work.Wait)
		l.start(c)
		l.publish(0, messages)
		l.finished(messages)

		require.Equal(t, messages, l.one(l.consumer, `SELECT count(*) FROM effects`), "one effect each, however often it came")
		require.Equal(t, messages, l.one(l.consumer, `SELECT count(DISTINCT id) FROM effects`))
		require.Zero(t, l.one(l.producer, `SELECT count(*) FROM millrace_dead WHERE reason = ''`))
		require.Zero(t, l.one(l.producer, `SELECT count(*) FROM millrace_dead`), "30 %% lost, 40 times: it does not happen")
		sends := l.one(l.producer, `SELECT sum(coalesce((plan::json->>'sends')::int, 0) + 1) FROM millrace_sent`)
		t.Logf("%d messages were sent %d times", messages, sends)
		require.Less(t, sends, messages*attempts/2) // on a machine so slow that most are overdue
		require.Greater(t, sends, messages, "something was sent again")
	})
}

// What an operator throws away comes again.
func TestAQueueThatIsPurgedByHand(t *testing.T) {
	messages := 100
	if testenv.Full() {
		messages = 2_000
	}
	eachBroker(t, func(t *testing.T, b *broker) {
		l := newLoop(t, b, outbox.Policy{Deadline: 2 * time.Second, MaxAttempts: 20})
		l.gate = make(chan struct{})
		l.start(b.pub)
		l.publish(0, messages)
		testenv.Eventually(t, 3*time.Minute, "the broker has all of them", func() bool {
			return l.one(l.producer, `SELECT count(*) FROM millrace_outbox`) == 0
		})
		b.purge(l.topic)
		close(l.gate)
		l.finished(messages)
		require.Greater(t, l.one(l.producer, `SELECT sum(coalesce((plan::json->>'sends')::int, 0)) FROM millrace_sent`), 0)
		require.Zero(t, l.one(l.producer, `SELECT count(*) FROM millrace_dead`))
		require.Equal(t, messages, l.one(l.consumer, `SELECT count(*) FROM effects`))
	})
}
