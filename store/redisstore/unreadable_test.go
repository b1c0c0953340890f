package redisstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
	"github.com/millrace-go/millrace/store/redisstore"
	"github.com/millrace-go/millrace/store/storetest"
)

func TestOneMessageThatCannotBeReadStopsNoOther(t *testing.T) {
	t.Parallel()
	rdb := client(t, testenv.OwnRedis(t).URL)
	s := newStore(t, rdb, redisstore.Config{Namespace: "x"})
	storetest.TestUnreadable(t, func(testing.TB) store.Store { return s }, func(t testing.TB, group, id string, mend bool) {
		t.Helper()
		base := "{x:store:v1:" + group + "}:"
		at := base + "e:" + form.Key(id)
		head, err := rdb.HGet(t.Context(), at, "h").Result()
		if errors.Is(err, redis.Nil) {
			letter, err := rdb.HGet(t.Context(), base+"dead", form.Key(id)).Result()
			require.NoError(t, err)
			at = base + "d:" + letter
			head = rdb.HGet(t.Context(), at, "h").Val()
		}
		if mend {
			head = head[1:]
		} else {
			head = "x" + head
		}
		require.NoError(t, rdb.HSet(t.Context(), at, "h", head).Err())
	})
}

// What an eviction has taken away cannot be read either.
func TestAMessageWhoseRecordIsGoneStopsNoOther(t *testing.T) {
	t.Parallel()
	rdb := client(t, testenv.OwnRedis(t).URL)
	s := newStore(t, rdb, redisstore.Config{Namespace: "x"})
	ctx := t.Context()
	for _, id := range []string{"gone", "there"} {
		require.NoError(t, s.Defer(ctx, store.Entry{Group: "g", MessageID: id}, 0))
	}
	require.NoError(t, rdb.Del(ctx, "{x:store:v1:g}:e:"+form.Key("gone")).Err())
	taken, _, err := s.Take(ctx, store.Take{Group: "g", Owner: "a", Limit: 10, Lease: time.Minute})
	require.NoError(t, err)
	require.Len(t, taken, 1)
	require.Equal(t, "there", taken[0].MessageID)
	letters, err := s.List(ctx, store.Filter{Group: "g", Reason: store.ReasonUnreadable}, 0, 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Error(t, letters[0].Unreadable)
	got, err := s.Stats(ctx, "g")
	require.NoError(t, err)
	require.Equal(t, store.Stats{Stored: 1, Held: 1, Dead: 1}, got)
}
