package redisstreams

import (
	"context"
	"io"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// chunkOf makes a chunk of entries, each given as its group, fields and values.
func chunkOf(topic string, entries ...[]any) *chunk {
	s := newStream(topic, 0)
	for i, e := range entries {
		s.add(entry{index: i, args: append([]any{"xadd", topic, "*"}, e[1:]...)}, e[0].(string))
	}
	c := &chunk{stream: s}
	for _, e := range s.left {
		c.take(e)
	}
	return c
}

// outcome is what became of each entry, in the order of the batch.
func outcome(c *chunk) []error {
	errs := make([]error, c.len())
	c.each(func(e entry, err error) { errs[e.index] = err })
	return errs
}

func testClient(t *testing.T) *redis.Client {
	opts, err := redis.ParseURL(testenv.Redis(t))
	require.NoError(t, err)
	c := redis.NewClient(opts)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func numbersIn(t *testing.T, c *redis.Client, topic string) (got []string) {
	for _, e := range c.XRange(t.Context(), topic, "-", "+").Val() {
		got = append(got, e.Values["n"].(string))
	}
	return got
}

// Redis decides at the beginning of a script whether it has the memory, so that entries of one script call
// fail together. Should one fail alone, its group ends there: here one with an odd number of fields.
func TestAGroupStopsAtItsFirstFailureWhileLoneEntriesGoOn(t *testing.T) {
	t.Parallel()
	c, topic := testClient(t), testenv.RedisPrefix(t)+"s"
	ch := chunkOf(topic,
		[]any{"several", "n", "0"}, []any{"several", "n", "1", "odd"}, []any{"several", "n", "2"},
		[]any{"pair", "n", "3"}, []any{"", "odd"}, []any{"", "n", "5"}, []any{"alone", "odd"}, []any{"alone too", "n", "7"},
		[]any{"pair", "n", "8"}, []any{"several", "n", "9"},
	)
	addAll(t.Context(), c, []*chunk{ch})
	for i, err := range outcome(ch) {
		switch i {
		case 1, 4, 6:
			require.ErrorContains(t, err, "wrong number of arguments", i)
		case 2, 9:
			require.ErrorIs(t, err, errBehind, i)
		default:
			require.NoError(t, err, i)
		}
	}
	require.ElementsMatch(t, []string{"0", "3", "5", "7", "8"}, numbersIn(t, c, topic))
}

func TestAScriptWhoseFirstEntryFailsHasFailedAndWritesNothing(t *testing.T) {
	t.Parallel()
	c, topic := testClient(t), testenv.RedisPrefix(t)+"s"
	ch := chunkOf(topic, []any{"pair", "n", "0", "odd"}, []any{"other", "n", "1"}, []any{"alone", "n", "2"}, []any{"other", "n", "3"}, []any{"pair", "n", "4"})
	addAll(t.Context(), c, []*chunk{ch})
	for i, err := range outcome(ch) {
		if i == 2 {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, "wrong number of arguments", i)
	}
	require.Equal(t, []string{"2"}, numbersIn(t, c, topic))
}

// instead answers for the server, which is not asked.
type instead struct {
	err   error
	asked atomic.Int64
}

func (*instead) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*instead) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h *instead) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { h.asked.Add(1); return h.err }
}

// A client may say nothing of a command: that of a ring says of one server's commands what went wrong with
// another's.
func TestWhatHasNoReplyIsNeitherAddedNorRefused(t *testing.T) {
	t.Parallel()
	for _, said := range []error{nil, io.EOF, serverError("WRONGTYPE a string"), serverError("WRONGPASS no")} {
		c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
		defer c.Close()
		c.AddHook(&instead{err: said})
		ch := chunkOf("s", []any{"", "n", "0"}, []any{"alone", "n", "1"}, []any{"pair", "n", "2"}, []any{"pair", "n", "3"})
		addAll(t.Context(), c, []*chunk{ch})
		for i, err := range outcome(ch) {
			require.Error(t, err, i)
			require.False(t, isRefusal(classify(err)), err)
		}
	}
}

func TestWhatEndsOneRoundTripOfABatchEndsTheBatch(t *testing.T) {
	t.Parallel()
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer c.Close()
	down := &instead{err: io.EOF}
	c.AddHook(down)
	p, err := NewPublisher(Config{Client: c})
	require.NoError(t, err)
	topics, msgs := make([]string, 3*maxChunkEntries), make([]*message.Message, 3*maxChunkEntries)
	for i := range msgs {
		topics[i], msgs[i] = "s", message.NewMessage(strconv.Itoa(i), nil)
	}
	for _, err := range p.PublishBatch(t.Context(), topics, msgs) {
		require.ErrorIs(t, err, io.EOF)
	}
	require.EqualValues(t, 1, down.asked.Load())
}
