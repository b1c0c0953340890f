package redisdedup

import (
	"context"
	"sync"

	"github.com/redis/go-redis/v9"
)

// shards has one batcher for each server of a Cluster, and one in all for any other client. Calls of
// different servers share no round trip: a server that does not answer would take the answers of the
// others along.
type shards struct {
	rdb redis.UniversalClient

	mu       sync.Mutex
	batchers map[string]*batcher // by address; a Cluster has few
}

// of is the batcher for a key. Where the server that holds the key has moved meanwhile the client finds
// it: the address only decides who travels together.
func (s *shards) of(ctx context.Context, key string) *batcher {
	addr := ""
	if cluster, ok := s.rdb.(*redis.ClusterClient); ok {
		if node, err := cluster.MasterForKey(ctx, key); err == nil {
			addr = node.Options().Addr
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.batchers[addr]
	if b == nil {
		if s.batchers == nil {
			s.batchers = make(map[string]*batcher)
		}
		b = &batcher{rdb: s.rdb}
		s.batchers[addr] = b
	}
	return b
}
