package redisdedup

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

const minMajor = 6

// Check implements dedup.Store. It asks every master for its version and its eviction policy: a
// server that evicts forgets which messages were handled, and is refused. What a server does not tell
// (some providers and in-process servers do not) is a warning in the log.
func (s *Store) Check(ctx context.Context) error {
	if s.err != nil {
		return s.err
	}
	s.warnOfClient(ctx)
	cluster, ok := s.rdb.(interface {
		ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
	})
	if !ok {
		return s.checkNode(ctx, s.rdb)
	}
	var mu sync.Mutex // the nodes are asked concurrently; the log is easier to read one by one
	return cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		return s.checkNode(ctx, node)
	})
}

// warnOfClient says when a call may outlast its context by the client's own timeouts and retries.
func (s *Store) warnOfClient(ctx context.Context) {
	var enabled bool
	switch c := s.rdb.(type) {
	case interface{ Options() *redis.Options }:
		enabled = c.Options().ContextTimeoutEnabled
	case interface{ Options() *redis.ClusterOptions }:
		enabled = c.Options().ContextTimeoutEnabled
	default:
		return
	}
	if !enabled {
		s.cfg.Logger.WarnContext(ctx, "redisdedup: the client ignores deadlines; set ContextTimeoutEnabled in its options")
	}
}

func (s *Store) checkNode(ctx context.Context, node redis.UniversalClient) error {
	if err := node.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("redisdedup: check: %w", err)
	}
	log := s.cfg.Logger.With(slog.String("namespace", s.cfg.Namespace))

	version := s.info(ctx, node, "server", "redis_version")
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil {
		log.WarnContext(ctx, "redisdedup: the server does not tell its version")
	} else if n < minMajor {
		return fmt.Errorf("redisdedup: check: Redis %s is too old: version %d or newer is needed", version, minMajor)
	}

	policy := s.info(ctx, node, "memory", "maxmemory_policy")
	if policy == "" {
		if m, err := node.ConfigGet(ctx, "maxmemory-policy").Result(); err == nil {
			policy = m["maxmemory-policy"]
		}
	}
	switch policy {
	case "noeviction":
	case "":
		log.WarnContext(ctx, "redisdedup: the server does not tell its eviction policy; it has to be noeviction")
	default:
		return fmt.Errorf("redisdedup: check: the server evicts (maxmemory-policy %s) and would forget which messages "+
			"were handled: set maxmemory-policy to noeviction, or use a server of its own for this", policy)
	}
	return ctx.Err()
}

// info reads one field of a section of INFO, or "" if the server does not tell it.
func (s *Store) info(ctx context.Context, node redis.UniversalClient, section, field string) string {
	text, err := node.Info(ctx, section).Result()
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
