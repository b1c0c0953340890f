package redisstreams

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed hold.lua
var holdScript string

//go:embed sweep.lua
var sweepScript string

// group is one member's view of a consumer group on one stream.
type group struct {
	client   redis.UniversalClient
	topic    string
	name     string
	consumer string
}

// create makes the group, and the stream if there is none, unless it exists.
func (g group) create(ctx context.Context, start string) error {
	err := g.client.XGroupCreateMkStream(ctx, g.topic, g.name, start).Err()
	if err == nil || hasPrefix(err, "BUSYGROUP") {
		return nil
	}
	return subscribeError(err)
}

// subscribeError is classify for a reader, to whom a topic that is not a stream is a mistake of set-up.
func subscribeError(err error) error {
	if hasPrefix(err, "WRONGTYPE") {
		return &setupError{remedy: "use another topic or remove the key", err: errors.New("the topic's key exists and is not a stream")}
	}
	return classify(err)
}

// isNoGroup reports that the group or the stream is not there (any more). Inside a script the
// code is not at the beginning of the text on every version.
func isNoGroup(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && strings.Contains(reply.Error(), "NOGROUP")
}

// hold sets the idle time of the entries that this member holds and returns those that others hold.
func (g group) hold(ctx context.Context, ids []string, idle time.Duration) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	args := make([]any, 0, len(ids)+3)
	args = append(args, g.name, g.consumer, idle.Milliseconds())
	for _, id := range ids {
		args = append(args, id)
	}
	others, err := redis.NewScript(holdScript).Run(ctx, g.client, []string{g.topic}, args...).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("redisstreams: hold entries: %w", err)
	}
	return others, nil
}

// sweep removes the members that have nothing pending and were silent for so long.
func (g group) sweep(ctx context.Context, idle time.Duration) (int, error) {
	return g.remove(ctx, "", idle.Milliseconds())
}

// leave removes this member, if it has nothing pending.
func (g group) leave(ctx context.Context) error {
	_, err := g.remove(ctx, g.consumer, -1)
	return err
}

func (g group) remove(ctx context.Context, consumer string, idle int64) (int, error) {
	n, err := redis.NewScript(sweepScript).Run(ctx, g.client, []string{g.topic}, g.name, consumer, idle).Int()
	if err != nil {
		return 0, fmt.Errorf("redisstreams: remove members: %w", err)
	}
	return n, nil
}

// floor returns an id up to which every entry has been acknowledged.
func (g group) floor(ctx context.Context) (string, error) {
	// What was delivered is read before what is pending: an entry that is delivered in between
	// only makes the answer lower.
	groups, err := g.client.XInfoGroups(ctx, g.topic).Result()
	if err != nil {
		return "", fmt.Errorf("redisstreams: read groups: %w", err)
	}
	delivered := ""
	for _, info := range groups {
		if info.Name == g.name {
			delivered = info.LastDeliveredID
		}
	}
	if delivered == "" {
		return "", errors.New("redisstreams: read groups: the group is not there")
	}
	pending, err := g.client.XPending(ctx, g.topic, g.name).Result()
	if err != nil {
		return "", fmt.Errorf("redisstreams: read pending: %w", err)
	}
	if pending.Count > 0 && !less(delivered, pending.Lower) {
		return before(pending.Lower), nil
	}
	return delivered, nil
}

// recreate makes a group that was lost (a flush, a failover, an operator) so that nothing is missed:
// after floor, below which all was acknowledged, or from the beginning of a stream that is younger.
func (g group) recreate(ctx context.Context, floor string) error {
	last, err := lastID(ctx, g.client, g.topic)
	if err != nil {
		return err
	}
	if less(last, floor) {
		floor = "0"
	}
	return g.create(ctx, floor)
}

// lastID is the id of the last entry of a stream, 0-0 if there is none.
func lastID(ctx context.Context, client redis.UniversalClient, topic string) (string, error) {
	entries, err := client.XRevRangeN(ctx, topic, "+", "-", 1).Result()
	switch {
	case err != nil:
		return "", subscribeError(err)
	case len(entries) == 0:
		return "0-0", nil
	}
	return entries[0].ID, nil
}

func parseID(id string) (ms, seq uint64) {
	a, b, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseUint(a, 10, 64)
	seq, _ = strconv.ParseUint(b, 10, 64)
	return ms, seq
}

func less(a, b string) bool {
	ams, aseq := parseID(a)
	bms, bseq := parseID(b)
	return ams < bms || ams == bms && aseq < bseq
}

// before is the id just below id.
func before(id string) string {
	switch ms, seq := parseID(id); {
	case seq > 0:
		return fmt.Sprintf("%d-%d", ms, seq-1)
	case ms > 0:
		return fmt.Sprintf("%d-%d", ms-1, uint64(math.MaxUint64))
	default:
		return "0-0"
	}
}
