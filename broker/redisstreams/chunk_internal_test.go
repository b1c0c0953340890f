package redisstreams

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
)

// Redis decides at the beginning of a script whether it has the memory, so that entries of one chunk
// fail together. Should one fail alone, its group ends there: here one with an odd number of fields.
func TestTheScriptStopsAGroupAtItsFirstFailure(t *testing.T) {
	t.Parallel()
	opts, err := redis.ParseURL(testenv.Redis(t))
	require.NoError(t, err)
	c := redis.NewClient(opts)
	defer c.Close()
	topic := testenv.RedisPrefix(t) + "s"
	add := func(group string, args ...any) []any { return append([]any{group, len(args)}, args...) }
	var args []any
	for _, entry := range [][]any{
		add("1", "n", "0"), add("1", "n", "1", "odd"), add("1", "n", "2"), add("2", "n", "3"),
		add("", "odd"), add("", "n", "5"), add("1", "n", "6"),
	} {
		args = append(args, entry...)
	}
	ch := &chunk{stream: &stream{topic: topic}, args: args}
	addAll(t.Context(), c, []*chunk{ch})
	require.NoError(t, ch.err)
	require.Len(t, ch.failed, 2)
	require.Error(t, ch.failed[1])
	require.Error(t, ch.failed[4])
	var got []string
	for _, e := range c.XRange(t.Context(), topic, "-", "+").Val() {
		got = append(got, e.Values["n"].(string))
	}
	require.Equal(t, []string{"0", "3", "5"}, got)

	// When the first fails nothing is written, and the whole call has failed.
	ch = &chunk{stream: &stream{topic: topic}, args: append(add("1", "odd"), add("2", "n", "7")...)}
	addAll(t.Context(), c, []*chunk{ch})
	require.Error(t, ch.err)
	require.EqualValues(t, 3, c.XLen(t.Context(), topic).Val())
}
