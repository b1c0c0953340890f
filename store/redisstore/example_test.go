package redisstore_test

import (
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/store/redisstore"
)

func ExampleNew() {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
	defer rdb.Close()
	// Check, which delayed.Subscriber calls, refuses a server without appendonly and appendfsync always.
	st, err := redisstore.New(rdb, redisstore.Config{Namespace: "billing"})
	fmt.Println(st != nil, err)
	// Output: true <nil>
}
