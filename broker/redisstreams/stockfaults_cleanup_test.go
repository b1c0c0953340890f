package redisstreams_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// afterCommand calls then once, after the first answer to a command.
type afterCommand struct {
	name string
	then func()
	once sync.Once
}

func (h *afterCommand) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *afterCommand) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == h.name && err == nil {
			h.once.Do(h.then)
		}
		return err
	}
}

func (h *afterCommand) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// sleeperTakes publishes a message and has the consumer "sleeper" read it in the same moment, who never
// acknowledges it.
func sleeperTakes(t *testing.T, c *redis.Client, msg *message.Message) {
	values, err := wmredis.DefaultMarshallerUnmarshaller{}.Marshal("orders", msg)
	require.NoError(t, err)
	_, err = c.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
		p.XAdd(t.Context(), &redis.XAddArgs{Stream: "orders", Values: values})
		p.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "sleeper", Streams: []string{"orders", ">"}, Block: -1})
		return nil
	})
	require.NoError(t, err)
}

// The stock subscriber asks which consumers are idle, and then deletes them: with what one of them has got in
// between. Ours deletes none.
func TestAMessageThatAnIdleConsumerHasGotIsNotLostOtherThanByTheStockCleanUp(t *testing.T) {
	t.Parallel()
	prepare := func(t *testing.T) (url string, admin *redis.Client) {
		url = testenv.OwnRedis(t).URL
		admin = client(t, url)
		require.NoError(t, admin.XGroupCreateMkStream(t.Context(), "orders", "g", "0").Err())
		require.NoError(t, admin.XGroupCreateConsumer(t.Context(), "orders", "g", "sleeper").Err())
		return url, admin
	}
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		url, admin := prepare(t)
		var got tally
		handlers(func(msg *message.Message) bool { got.add(msg.UUID); return true }, listen(t, ourMember(t, url, 0, time.Second), "orders"))
		sleeperTakes(t, admin, message.NewMessage("m", nil))
		testenv.Eventually(t, stall, "the message comes to the other", func() bool { return got.distinct() == 1 })
	})
	if !testenv.Full() {
		return
	}
	t.Run("stock", func(t *testing.T) {
		t.Parallel()
		url, admin := prepare(t)
		opts, err := redis.ParseURL(url)
		require.NoError(t, err)
		rdb := redis.NewClient(opts)
		taken := make(chan struct{})
		rdb.AddHook(&afterCommand{name: "xinfo", then: func() {
			sleeperTakes(t, admin, message.NewMessage("m", nil))
			close(taken)
		}})
		s, err := wmredis.NewSubscriber(wmredis.SubscriberConfig{
			Client: rdb, ConsumerGroup: "g", Consumer: "member", MaxIdleTime: time.Second, ClaimInterval: 250 * time.Millisecond,
			BlockTime: 50 * time.Millisecond, DisableIndefiniteInitialBlock: true,
			CheckConsumersInterval: 300 * time.Millisecond, ConsumerTimeout: 100 * time.Millisecond,
			ShouldStopOnReadErrors: func(err error) bool { return errors.Is(err, redis.ErrClosed) || errors.Is(err, context.Canceled) },
		}, watermill.NopLogger{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.Close() })
		var got tally
		handlers(func(msg *message.Message) bool { got.add(msg.UUID); return true }, listen(t, s, "orders"))
		<-taken
		require.False(t, comesBy(10*time.Second, func() bool { return got.distinct() > 0 }), "watermill-redisstream keeps this promise now")
	})
}
