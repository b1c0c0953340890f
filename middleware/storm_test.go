package middleware_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

const stormClaims = 6

// listPublisher appends messages to a list in Redis.
type listPublisher struct{ rdb *redis.Client }

func (p listPublisher) Publish(topic string, msgs ...*message.Message) error {
	for _, m := range msgs {
		text, err := json.Marshal(deadEntry{m.UUID, m.Payload, m.Metadata[middleware.MetaReason]})
		if err != nil {
			return err
		}
		if err := p.rdb.RPush(m.Context(), topic, text).Err(); err != nil {
			return err
		}
	}
	return nil
}

func (p listPublisher) Close() error { return nil }

type deadEntry struct {
	ID      string
	Payload []byte
	Reason  string
}

func payloadOf(id string) string { return "\x00\xff payload of " + id }

// stormConsumer handles good messages, fails at bad ones, and is killed by those that kill.
func stormConsumer() {
	opts, err := redis.ParseURL(os.Getenv("REDIS"))
	check(err)
	rdb := redis.NewClient(opts)
	prefix := os.Getenv("PREFIX")
	idempotent, err := middleware.Idempotent(redisdedup.New(rdb, redisdedup.Config{Namespace: prefix + "idem"}),
		middleware.IdempotentConfig{Consumer: "c", Lease: 3 * time.Second, StoreTimeout: time.Second, BusyWait: 10 * time.Second,
			DoneTTL: time.Hour, MaxClaims: stormClaims})
	check(err)
	poison, err := middleware.PoisonQueue(middleware.PoisonConfig{Publisher: listPublisher{rdb}, Topic: prefix + "dead"})
	check(err)
	retry, err := middleware.Retry(middleware.RetryConfig{MaxAttempts: 3, InitialDelay: time.Millisecond})
	check(err)
	handle := chain(func(msg *message.Message) ([]*message.Message, error) {
		switch {
		case strings.HasPrefix(msg.UUID, "kill"):
			self, err := os.FindProcess(os.Getpid())
			check(err)
			check(self.Kill())
			select {}
		case strings.HasPrefix(msg.UUID, "bad"):
			return nil, errHandler
		}
		return nil, rdb.RPush(msg.Context(), prefix+"effects", msg.UUID).Err()
	}, poison, idempotent, retry)
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	for ids := bufio.NewScanner(os.Stdin); ids.Scan(); {
		id := ids.Text()
		wg.Go(func() {
			_, err := handle(delivery(context.Background(), id, payloadOf(id)))
			answer := "ack"
			if err != nil {
				answer = "nack"
				backoff.Sleep(context.Background(), middleware.Delay(err)) // as a broker does that keeps to what the error asks for
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Println(answer, id)
		})
	}
}

// One message in ten always fails, one in fifty kills its process: the good ones take effect, and the others
// are set aside as they came, those that kill after MaxClaims deaths. A good one that is in hand at each of
// these deaths cannot be told from the one that kills, and is set aside with it.
func TestAStormOfPoisonLeavesTheGoodMessagesAlone(t *testing.T) {
	t.Parallel()
	messages := 100
	if testenv.Full() {
		messages = 1000
	}
	const processes = 3
	url, prefix := testenv.Redis(t), testenv.RedisPrefix(t)
	b := &pipeBroker{
		role: "storm consumer", env: []string{"REDIS=" + url, "PREFIX=" + prefix}, dies: true,
		queue: make(chan string, messages), done: make(chan struct{}),
	}
	b.left.Store(int64(messages))
	good, poison, killers := map[string]int{}, map[string]int{}, 0
	for m := range messages {
		id := fmt.Sprint("good", m)
		switch {
		case m%50 == 17:
			id = fmt.Sprint("kill", m)
			killers++
			poison[id] = 0
		case m%10 == 3:
			id = fmt.Sprint("bad", m)
			poison[id] = 0
		default:
			good[id] = 0
		}
		b.queue <- id
	}
	require.NoError(t, b.run(t, processes))
	deaths := int(b.died.Load())
	require.LessOrEqual(t, deaths, killers*stormClaims, "a message that kills is given up after %d deaths", stormClaims)
	require.GreaterOrEqual(t, deaths, killers, "each of them kills")

	rdb := redisClient(t, url)
	effects, err := rdb.LRange(t.Context(), prefix+"effects", 0, -1).Result()
	require.NoError(t, err)
	for _, id := range effects {
		good[id]++
	}
	require.LessOrEqual(t, len(effects), len(good)+deaths*inHand, "twice only what was in hand at a death")
	dead, err := rdb.LRange(t.Context(), prefix+"dead", 0, -1).Result()
	require.NoError(t, err)
	mates := map[string]bool{}
	for _, text := range dead {
		var entry deadEntry
		require.NoError(t, json.Unmarshal([]byte(text), &entry))
		require.Equal(t, payloadOf(entry.ID), string(entry.Payload))
		if strings.HasPrefix(entry.ID, "good") {
			// It was in hand at each death of one that kills, and nobody could know which of them it was.
			require.Equal(t, "too_many_claims", entry.Reason)
			mates[entry.ID] = true
			continue
		}
		poison[entry.ID]++
		if strings.HasPrefix(entry.ID, "kill") {
			require.Equal(t, "too_many_claims", entry.Reason)
		}
	}
	require.LessOrEqual(t, len(mates), killers*(inHand-1))
	for id, n := range good {
		require.True(t, n > 0 || mates[id], "%s had no effect and was not set aside", id)
	}
	for id, n := range poison {
		require.Positive(t, n, id)
	}
	require.LessOrEqual(t, len(dead), len(poison)+deaths*inHand)
}
