// Package cluster has the client of a Redis Cluster notice that a server was replaced.
package cluster

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
)

// Noticed looks at what calls of a client have answered. If a server of a cluster gave no answer, the client asks
// the others, in the background, which of them has what that server had: left to itself it goes on calling a dead
// one, and asks once a minute. Other clients than that of a cluster are left alone, and so is any when ctx was
// cancelled: then it may be about to be closed.
func Noticed(ctx context.Context, client redis.UniversalClient, answers ...error) {
	c, ok := client.(*redis.ClusterClient)
	if !ok || errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	for _, err := range answers {
		if err != nil && !errors.As(err, new(redis.Error)) {
			c.ReloadState(ctx)
			return
		}
	}
}
