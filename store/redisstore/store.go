// Package redisstore is a store.Store in Redis or Valkey, version 6 or newer: one node, Sentinel or
// Cluster. A SQL database (sqlstore) is the better place: see what this one does not promise.
//
// # What it promises, and what not
//
// Each operation is one script on the keys of one group, which share a hash tag: it happens as a whole
// or not at all. What is stored is the only copy of a message that the broker has forgotten. So it is
// as safe as the server's disk: Check asks for appendonly yes, appendfsync always and maxmemory-policy
// noeviction. With Config.WithoutFsync a server that writes to disk each second is taken, too, and
// what it was told in its last second may be lost when its machine loses power. Whatever the settings, a
// failover to a replica loses what the replica had not received.
package redisstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/cluster"
	"github.com/millrace-go/millrace/internal/redisserver"
	"github.com/millrace-go/millrace/store"
	"github.com/millrace-go/millrace/store/internal/form"
)

// Config says where the messages are kept. Only Namespace is required.
type Config struct {
	// Namespace begins every key: usually the name of the service. No braces and no white space, at
	// most 128 bytes.
	Namespace string
	// WithoutFsync takes a server that does not write to disk before it answers: its last second may be
	// lost with the power.
	WithoutFsync bool
	// Logger receives what Check cannot find out. Default: none.
	Logger *slog.Logger
}

// Store is a store.Store in Redis. It is safe for concurrent use.
type Store struct {
	rdb redis.UniversalClient
	cfg Config
}

var _ store.Store = (*Store)(nil)

// New returns a store on the caller's client, which stays the caller's to close. It calls nobody. The error
// names all that is wrong with the configuration.
//
// Give the client ContextTimeoutEnabled, so that a call ends when its context does.
func New(rdb redis.UniversalClient, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var errs []error
	if rdb == nil {
		errs = append(errs, errors.New("redisstore: no Redis client"))
	}
	if err := redisserver.CheckNamespace(cfg.Namespace); err != nil {
		errs = append(errs, fmt.Errorf("redisstore: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Store{rdb: rdb, cfg: cfg}, nil
}

// base begins all keys of a group. The braces are a hash tag: they live on one node of a cluster.
func (s *Store) base(group string) string {
	return "{" + s.cfg.Namespace + ":store:v1:" + url.QueryEscape(group) + "}:"
}

// run runs a script on the keys of a group.
func (s *Store) run(ctx context.Context, op string, script *redis.Script, group string, args ...any) *redis.Cmd {
	if err := ctx.Err(); err != nil { // the client may not look
		cmd := redis.NewCmd(ctx)
		cmd.SetErr(fmt.Errorf("redisstore: %s: %w", op, err))
		return cmd
	}
	cmd := script.Run(ctx, s.rdb, []string{s.base(group) + "n"}, append([]any{s.base(group)}, args...)...)
	cluster.Noticed(ctx, s.rdb, cmd.Err())
	if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
		cmd.SetErr(fmt.Errorf("redisstore: %s: %w", op, err))
	}
	return cmd
}

// Check implements store.Delayed. It asks every master for its version, its eviction policy and how it
// writes to disk.
func (s *Store) Check(ctx context.Context) error {
	return redisserver.Each(ctx, s.rdb, s.checkNode)
}

const minMajor = 6

func (s *Store) checkNode(ctx context.Context, node redis.UniversalClient) error {
	if err := node.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("redisstore: check: %w", err)
	}
	version, major, err := redisserver.Version(ctx, node)
	switch {
	case err != nil:
		return fmt.Errorf("redisstore: check: %w", err)
	case version == "":
		s.cfg.Logger.WarnContext(ctx, "redisstore: the server does not tell its version", "namespace", s.cfg.Namespace)
	case major < minMajor:
		return fmt.Errorf("redisstore: %w: Redis %s is too old: version %d or newer is needed", store.ErrSetup, version, minMajor)
	}
	policy, err1 := redisserver.Setting(ctx, node, "maxmemory-policy")
	aof, err2 := redisserver.Setting(ctx, node, "appendonly")
	fsync, err3 := redisserver.Setting(ctx, node, "appendfsync")
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("redisstore: check: %w", err)
	}
	var errs []error
	bad := func(setting, have, want, remedy string) {
		if have == "" {
			have = "not told by the server"
		}
		errs = append(errs, fmt.Errorf("redisstore: %w: %s is %s, it has to be %s%s", store.ErrSetup, setting, have, want, remedy))
	}
	if policy != "noeviction" {
		bad("maxmemory-policy", policy, "noeviction", "")
	}
	if aof != "yes" {
		bad("appendonly", aof, "yes", "")
	}
	if fsync != "always" && !s.cfg.WithoutFsync {
		bad("appendfsync", fsync, "always", ": set it, or use store/sqlstore, or allow the loss of a second with Config.WithoutFsync")
	}
	return errors.Join(errs...)
}

// written are the parts of a message as arguments of a script.
func written(e store.Entry) (id, key, history, head, payload string, err error) {
	h, hd, p, err := form.Encode(e)
	return form.Key(e.MessageID), form.Key(e.OrderKey), string(h), string(hd), string(p), err
}
