package redisdedup_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/dedup/redisdedup"
	"github.com/millrace-go/millrace/internal/fault/proxy"
	"github.com/millrace-go/millrace/internal/testenv"
)

// BenchmarkClaimAndDone: a claim and a mark for each message, with a server that is 2 ms away, by one
// message at a time and by a hundred. The last one also reports how often it beats the first.
func BenchmarkClaimAndDone(b *testing.B) {
	opts, err := redis.ParseURL(testenv.Redis(b))
	require.NoError(b, err)
	opts.Addr = proxy.Delayed(b, opts.Addr, 2*time.Millisecond)
	rdb := redis.NewClient(opts)
	b.Cleanup(func() { _ = rdb.Close() })
	s := redisdedup.New(rdb, redisdedup.Config{Namespace: testenv.RedisPrefix(b) + "bench"})
	handle := func(b *testing.B, i int) {
		key := dedup.Key{Consumer: b.Name(), MessageID: fmt.Sprint(b.N, " ", i)}
		a, err := s.Claim(b.Context(), key, request("me"))
		if err != nil || a.Verdict != dedup.Claimed {
			b.Errorf("claim: %+v, %v", a, err)
		}
		if _, err := s.Done(b.Context(), key, "me", nil, time.Minute); err != nil {
			b.Errorf("done: %v", err)
		}
	}
	var serial float64
	for _, handlers := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(handlers, " handlers"), func(b *testing.B) {
			work := make(chan int)
			var wg sync.WaitGroup
			for range handlers {
				wg.Go(func() {
					for i := range work {
						handle(b, i)
					}
				})
			}
			begin := time.Now()
			for i := range b.N {
				work <- i
			}
			close(work)
			wg.Wait()
			rate := float64(b.N) / time.Since(begin).Seconds()
			if handlers == 1 {
				serial = rate
			}
			b.ReportMetric(rate, "msg/s")
			b.ReportMetric(rate/serial, "x-serial")
		})
	}
}
