package redisdedup_test

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/testenv"
)

// exampleServer is the address of a Redis without the records of the examples.
func exampleServer() string {
	opts, err := redis.ParseURL(testenv.Redis(noTest{}))
	noError(err)
	rdb := redis.NewClient(opts)
	defer rdb.Close()
	ctx := context.Background()
	keys, err := rdb.Keys(ctx, "billing:idem:v1:invoices:*").Result()
	noError(err)
	for _, key := range keys {
		noError(rdb.Del(ctx, key).Err())
	}
	return opts.Addr
}

// noTest stands in for the test that an example has not.
type noTest struct{ testing.TB }

func (noTest) Helper() {}
