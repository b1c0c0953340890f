package redisdedup_test

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/redisdedup"
)

func noError(err error) {
	if err != nil {
		panic(err)
	}
}

func ExampleNew() {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
	defer rdb.Close()
	store := redisdedup.New(rdb, redisdedup.Config{Namespace: "billing"})
	fmt.Println(store.Validate())
	// Output: <nil>
}

// What middleware.Idempotent does with a store for each message.
func ExampleStore() {
	rdb := redis.NewClient(&redis.Options{Addr: exampleServer(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	store := redisdedup.New(rdb, redisdedup.Config{Namespace: "billing"})

	ctx := context.Background()
	noError(store.Check(ctx))
	key := dedup.Key{Consumer: "invoices", MessageID: "order-1"}
	for _, delivery := range []string{"first", "second"} {
		answer, err := store.Claim(ctx, key, dedup.Request{Owner: delivery, Lease: 30 * time.Second, TTL: 24 * time.Hour})
		noError(err)
		switch answer.Verdict {
		case dedup.Claimed:
			fmt.Println(delivery, "delivery: handle it, fence", answer.Fence)
			_, err = store.Done(ctx, key, delivery, []byte("invoice 7"), 24*time.Hour)
			noError(err)
		case dedup.Handled:
			fmt.Println(delivery, "delivery: done before,", string(answer.Result))
		}
	}
	// Output:
	// first delivery: handle it, fence 1
	// second delivery: done before, invoice 7
}
