// Package redisserver asks Redis servers what they are and how they are set, for the stores that keep
// something in them.
package redisserver

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// CheckNamespace reports what is wrong with what is to begin every key: braces would choose the slot of a
// cluster.
func CheckNamespace(name string) error {
	switch {
	case name == "":
		return errors.New("Config.Namespace is empty: give the name of the service")
	case len(name) > 128 || strings.ContainsAny(name, "{} \t\r\n\x00"):
		return errors.New("Config.Namespace: at most 128 bytes, no braces, no white space")
	}
	return nil
}

// Each calls f for every master behind the client, one at a time.
func Each(ctx context.Context, rdb redis.UniversalClient, f func(ctx context.Context, node redis.UniversalClient) error) error {
	many, ok := rdb.(interface {
		ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
	})
	if !ok {
		return f(ctx, rdb)
	}
	var mu sync.Mutex // they are asked concurrently; the log is easier to read one by one
	return many.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		return f(ctx, node)
	})
}

// Version is the server's version, and its first number; "" if the server does not tell it. An error is that of
// a server that does not answer.
func Version(ctx context.Context, node redis.UniversalClient) (version string, major int, err error) {
	version, err = info(ctx, node, "server", "redis_version")
	first, _, _ := strings.Cut(version, ".")
	major, bad := strconv.Atoi(first)
	if bad != nil {
		return "", 0, err
	}
	return version, major, nil
}

// Setting is a setting by its name in redis.conf, "" if the server does not tell it. What some providers
// refuse to CONFIG GET is looked for in INFO. An error is that of a server that does not answer.
func Setting(ctx context.Context, node redis.UniversalClient, name string) (string, error) {
	m, err := node.ConfigGet(ctx, name).Result()
	if err = outage(err); err != nil || m[name] != "" {
		return m[name], err
	}
	switch name {
	case "maxmemory-policy":
		return info(ctx, node, "memory", "maxmemory_policy")
	case "appendonly":
		enabled, err := info(ctx, node, "persistence", "aof_enabled")
		return map[string]string{"0": "no", "1": "yes"}[enabled], err
	}
	return "", nil
}

// info reads one field of a section of INFO.
func info(ctx context.Context, node redis.UniversalClient, section, field string) (string, error) {
	text, err := node.Info(ctx, section).Result()
	if err != nil {
		return "", outage(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", nil
}

// outage is err, or nil if it is the answer of a server that does not know the command or does not allow it.
func outage(err error) error {
	if !errors.As(err, new(redis.Error)) {
		return err
	}
	for _, soon := range []string{"LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY", "max number of clients"} {
		if redis.HasErrorPrefix(err, soon) {
			return err
		}
	}
	return nil
}
