package middleware_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/middleware"
)

// crashLease leaves a process and its store time to be slow: a process that loses its claim spoils the count.
const crashLease = 6 * time.Second

func crashConfig() middleware.IdempotentConfig {
	return middleware.IdempotentConfig{Consumer: "c", Lease: crashLease, StoreTimeout: crashLease / 3, BusyWait: 2 * time.Minute,
		DoneTTL: time.Hour, MaxClaims: 3}
}

// dyingConsumer is a process that begins to handle one message and never ends.
func dyingConsumer() {
	opts, err := redis.ParseURL(os.Getenv("REDIS"))
	check(err)
	rdb := redis.NewClient(opts)
	idempotent, err := middleware.Idempotent(redisdedup.New(rdb, redisdedup.Config{Namespace: os.Getenv("NAMESPACE")}), crashConfig())
	check(err)
	handle := idempotent(func(msg *message.Message) ([]*message.Message, error) {
		claim, _ := middleware.Fence(msg.Context())
		fmt.Println("begun", claim.Fence, claim.Attempts)
		<-msg.Context().Done()
		return nil, msg.Context().Err()
	})
	_, err = handle(delivery(context.Background(), "m", "p"))
	if middleware.IsPermanent(err) {
		fmt.Println("given up")
	} else {
		fmt.Println(err)
	}
	select {} // until it is killed
}

// A message that kills every process that handles it is given up, by the count in the store; until
// then the message runs again each time, when the lease of the dead has ended, with a higher fence.
func TestAMessageThatKillsItsProcessIsGivenUp(t *testing.T) {
	t.Parallel()
	url, namespace := testenv.Redis(t), testenv.RedisPrefix(t)+"crash"
	for life := 1; life <= 4; life++ {
		cmd := testenv.Child(t, "consumer that dies", "REDIS="+url, "NAMESPACE="+namespace)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		want := fmt.Sprintf("begun %d %d\n", life, life)
		if life == 4 {
			want = "given up\n"
		}
		require.Equal(t, want, line)
		if life == 2 { // while it lives, its heartbeat holds the message
			cfg := crashConfig()
			cfg.BusyWait = 2 * crashLease
			h := must(t)(middleware.Idempotent(redisdedup.New(redisClient(t, url), redisdedup.Config{Namespace: namespace}), cfg))(succeed)
			_, err := h(delivery(t.Context(), "m", "p"))
			require.ErrorIs(t, err, middleware.ErrInProgress)
		}
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
}
