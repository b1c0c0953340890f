package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// check asks each master whether it is fit to keep messages.
func check(ctx context.Context, client redis.UniversalClient, log *slog.Logger) error {
	many, ok := client.(interface {
		ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
	})
	if !ok {
		return checkNode(ctx, client, log)
	}
	return many.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		return checkNode(ctx, node, log)
	})
}

func checkNode(ctx context.Context, node redis.Cmdable, log *slog.Logger) error {
	if err := node.Ping(ctx).Err(); err != nil {
		if err = classify(err); isSetup(err) {
			return err
		}
		return fmt.Errorf("redisstreams: check: %w", err)
	}
	return errors.Join(checkVersion(ctx, node, log), checkMemory(ctx, node, log))
}

func checkVersion(ctx context.Context, node redis.Cmdable, log *slog.Logger) error {
	info, err := node.Info(ctx, "server").Result()
	version := ""
	for line := range strings.Lines(info) {
		if v, ok := strings.CutPrefix(line, "redis_version:"); ok {
			version = strings.TrimSpace(v)
		}
	}
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil || n != 2 {
		log.WarnContext(ctx, "redisstreams: the server does not tell its version; 6.2 or newer is needed")
		return nil
	}
	if major < 6 || major == 6 && minor < 2 {
		return &setupError{remedy: "use 6.2 or newer", err: fmt.Errorf("the server is Redis %s", version)}
	}
	return nil
}

func checkMemory(ctx context.Context, node redis.Cmdable, log *slog.Logger) error {
	settings := make(map[string]string)
	for _, name := range []string{"maxmemory-policy", "maxmemory", "appendonly"} {
		answer, err := node.ConfigGet(ctx, name).Result()
		if err != nil || answer[name] == "" {
			log.WarnContext(ctx, "redisstreams: the server does not tell its configuration; maxmemory-policy noeviction and appendonly yes are advised")
			return nil
		}
		settings[name] = answer[name]
	}
	if settings["appendonly"] != "yes" {
		log.WarnContext(ctx, "redisstreams: appendonly is off: messages that were acknowledged are lost if Redis crashes")
	}
	// The volatile policies spare keys without an expiry, and streams have none.
	policy := settings["maxmemory-policy"]
	if !strings.HasPrefix(policy, "allkeys") {
		return nil
	}
	if n, err := strconv.Atoi(settings["maxmemory"]); err == nil && n == 0 {
		log.WarnContext(ctx, "redisstreams: maxmemory-policy would evict whole streams if maxmemory were set", "policy", policy)
		return nil
	}
	return &setupError{remedy: "set it to noeviction", err: fmt.Errorf("maxmemory-policy is %s, which drops whole streams when memory is full", policy)}
}
