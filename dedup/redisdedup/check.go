package redisdedup

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/redisserver"
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
	return redisserver.Each(ctx, s.rdb, s.checkNode)
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

	version, major, err := redisserver.Version(ctx, node)
	switch {
	case err != nil:
		return fmt.Errorf("redisdedup: check: %w", err)
	case version == "":
		log.WarnContext(ctx, "redisdedup: the server does not tell its version")
	case major < minMajor:
		return fmt.Errorf("redisdedup: check: Redis %s is too old: version %d or newer is needed", version, minMajor)
	}

	policy, err := redisserver.Setting(ctx, node, "maxmemory-policy")
	switch {
	case err != nil:
		return fmt.Errorf("redisdedup: check: %w", err)
	case policy == "":
		log.WarnContext(ctx, "redisdedup: the server does not tell its eviction policy; it has to be noeviction")
	case policy != "noeviction":
		return fmt.Errorf("redisdedup: check: the server evicts (maxmemory-policy %s) and would forget which messages "+
			"were handled: set maxmemory-policy to noeviction, or use a server of its own for this", policy)
	}
	return nil
}
