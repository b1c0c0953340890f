package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// pace calls do for 0, 1, 2 ... n-1, so many times a second in all, from so many goroutines. A call
// that is late makes the next ones no later.
func pace(ctx context.Context, n, perSecond, writers int, do func(seq int) error) error {
	var (
		next   atomic.Int64
		wg     sync.WaitGroup
		once   sync.Once
		failed error
	)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := time.Now()
	for range writers {
		wg.Go(func() {
			for ctx.Err() == nil {
				seq := int(next.Add(1)) - 1
				if seq >= n {
					return
				}
				time.Sleep(time.Until(begun.Add(time.Duration(seq) * time.Second / time.Duration(perSecond))))
				if err := do(seq); err != nil && ctx.Err() == nil {
					once.Do(func() { failed = err })
					cancel()
				}
			}
		})
	}
	wg.Wait()
	return failed
}
