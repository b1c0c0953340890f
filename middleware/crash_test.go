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

const crashLease = 2 * time.Second

func crashConfig() middleware.IdempotentConfig {
	return middleware.IdempotentConfig{Consumer: "c", Lease: crashLease, StoreTimeout: crashLease / 3, DoneTTL: time.Hour, MaxClaims: 3}
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
	for {
		_, err = handle(delivery(context.Background(), "m", "p"))
		if err != nil && middleware.IsPermanent(err) {
			fmt.Println("given up")
			select {}
		}
	}
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
			h := must(t)(middleware.Idempotent(redisdedup.New(redisClient(t, url), redisdedup.Config{Namespace: namespace}),
				middleware.IdempotentConfig{Consumer: "c", Lease: crashLease, StoreTimeout: crashLease / 3, DoneTTL: time.Hour, BusyWait: 3 * crashLease}))(succeed)
			_, err := h(delivery(t.Context(), "m", "p"))
			require.ErrorIs(t, err, middleware.ErrInProgress)
		}
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
}
