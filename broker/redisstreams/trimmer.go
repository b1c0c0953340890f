package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// TrimmerConfig configures a Trimmer. Client or URL, and Streams, are required.
type TrimmerConfig struct {
	Client redis.UniversalClient // as in Config
	URL    string                // as in Config
	Logger *slog.Logger          // as in Config

	// Streams are the topics to trim, each with the groups that read it. As long as one of them is not
	// there, because it has not been made yet or was lost, nothing of the topic is removed. Other
	// groups that are found are waited for too.
	Streams map[string][]string
	// Keep is how long entries stay though every group is through with them, for readers without a
	// group, which Redis does not know of, and for groups that are to be made again. Default 1 h.
	Keep time.Duration
	// Every is how often Run trims. Default 1 min.
	Every time.Duration
}

// Trimmer removes from streams what every group has acknowledged. An entry that a group has not read,
// or has not acknowledged, stays. Several may run at a time.
type Trimmer struct {
	cfg    TrimmerConfig
	client connection
}

// NewTrimmer checks the configuration. It does not connect.
func NewTrimmer(cfg TrimmerConfig) (*Trimmer, error) {
	shared, err := Config{Client: cfg.Client, URL: cfg.URL, Logger: cfg.Logger}.withDefaults()
	errs := []error{err}
	if len(cfg.Streams) == 0 {
		errs = append(errs, errors.New("redisstreams: set Streams"))
	}
	for topic, groups := range cfg.Streams {
		if topic == "" || len(groups) == 0 || slices.Contains(groups, "") {
			errs = append(errs, fmt.Errorf("redisstreams: Streams: topic %q: name the topic and at least one group", topic))
		}
	}
	if cfg.Keep < 0 || cfg.Every < 0 {
		errs = append(errs, errors.New("redisstreams: Keep and Every must not be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Keep == 0 {
		cfg.Keep = time.Hour
	}
	if cfg.Every == 0 {
		cfg.Every = time.Minute
	}
	cfg.Logger = shared.Logger
	client, err := shared.connect()
	return &Trimmer{cfg: cfg, client: client}, err
}

// Run trims all streams now and after each Every, until ctx ends; then it returns nil. What fails is
// logged and tried again the next time. A client made from a URL is closed at the end.
func (t *Trimmer) Run(ctx context.Context) error {
	tick := time.NewTicker(t.cfg.Every)
	defer tick.Stop()
	for {
		for topic := range maps.Keys(t.cfg.Streams) {
			switch n, err := t.Trim(ctx, topic); {
			case ctx.Err() != nil:
			case err != nil:
				t.cfg.Logger.WarnContext(ctx, "redisstreams: trim", "topic", topic, "error", err)
			case n > 0:
				t.cfg.Logger.DebugContext(ctx, "redisstreams: trim", "topic", topic, "removed", n)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return t.client.close()
		}
	}
}

// Trim removes from one of the configured streams what all its groups are through with, and returns how
// much. Redis removes whole blocks of entries, so up to one block (100 entries by default) stays.
func (t *Trimmer) Trim(ctx context.Context, topic string) (int64, error) {
	groups, err := t.client.XInfoGroups(ctx, topic).Result()
	if err != nil {
		return 0, fmt.Errorf("redisstreams: read groups: %w", err)
	}
	names := slices.Clone(t.cfg.Streams[topic])
	if len(names) == 0 {
		return 0, fmt.Errorf("redisstreams: topic %q is not in Streams", topic)
	}
	for _, info := range groups {
		names = append(names, info.Name)
	}
	now, err := t.client.Time(ctx).Result()
	if err != nil {
		return 0, fmt.Errorf("redisstreams: read time: %w", err)
	}
	floor := fmt.Sprintf("%d-0", now.Add(-t.cfg.Keep).UnixMilli())
	for _, name := range names {
		done, err := group{client: t.client, topic: topic, name: name}.floor(ctx)
		if err != nil {
			return 0, fmt.Errorf("group %q: %w", name, err)
		}
		if less(done, floor) {
			floor = done
		}
	}
	// A little at a time: a long trim would stop the server for all.
	var total int64
	for {
		n, err := t.client.XTrimMinIDApprox(ctx, topic, after(floor), 0).Result()
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
}

// after is the id just above id.
func after(id string) string {
	ms, seq := parseID(id)
	if seq == math.MaxUint64 {
		return fmt.Sprintf("%d-0", ms+1)
	}
	return fmt.Sprintf("%d-%d", ms, seq+1)
}
