package redisstreams

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-go/millrace/internal/cluster"
)

//go:embed add.lua
var addScript string

// Redis takes bulks of at least the first size, whatever its configuration, and by default of the second.
const (
	smallestBulk = 1 << 20
	defaultBulk  = 512 << 20
)

// chunk is what one script call adds to one stream.
type chunk struct {
	stream  *stream
	entries []entry
	args    []any

	err    error         // of the call: nothing is known of any entry
	failed map[int]error // of single entries
}

// addAll makes the script calls of several streams in one round trip. A call that the server did not run,
// because it did not know the script, is made again with the script's text.
func addAll(ctx context.Context, client redis.UniversalClient, chunks []*chunk) {
	sha := redis.NewScript(addScript).Hash()
	unknown := run(ctx, client, chunks, func(p redis.Pipeliner, c *chunk) *redis.Cmd {
		return p.EvalSha(ctx, sha, []string{c.stream.topic}, c.args...)
	})
	if len(unknown) > 0 {
		run(ctx, client, unknown, func(p redis.Pipeliner, c *chunk) *redis.Cmd {
			return p.Eval(ctx, addScript, []string{c.stream.topic}, c.args...)
		})
	}
}

// run makes the calls and returns the chunks whose script the server does not know. Each call's own
// answer is looked at: the error of Exec is only that of the first one that failed.
func run(ctx context.Context, client redis.UniversalClient, chunks []*chunk, call func(redis.Pipeliner, *chunk) *redis.Cmd) []*chunk {
	pipe := client.Pipeline()
	cmds := make([]*redis.Cmd, len(chunks))
	for i, c := range chunks {
		cmds[i] = call(pipe, c)
	}
	_, execErr := pipe.Exec(ctx)
	cluster.Noticed(ctx, client, execErr)
	var unknown []*chunk
	for i, c := range chunks {
		c.failed, c.err = parse(cmds[i])
		if errors.Is(c.err, errNoReply) && execErr != nil {
			c.err = execErr
		}
		if hasPrefix(c.err, "NOSCRIPT") {
			unknown = append(unknown, c)
		}
	}
	return unknown
}

var errNoReply = errors.New("redisstreams: no reply")

// parse reads the script's answer: number and error of each entry that failed.
func parse(cmd *redis.Cmd) (map[int]error, error) {
	if err := cmd.Err(); err != nil {
		return nil, err
	}
	if cmd.Val() == nil {
		return nil, errNoReply
	}
	reply, err := cmd.Slice()
	if err != nil || len(reply)%2 != 0 {
		return nil, fmt.Errorf("redisstreams: odd answer of type %T", cmd.Val())
	}
	failed := make(map[int]error, len(reply)/2)
	for i := 0; i < len(reply); i += 2 {
		number, ok := reply[i].(int64)
		if !ok {
			return nil, fmt.Errorf("redisstreams: odd answer: %T for a number", reply[i])
		}
		failed[int(number)-1] = serverError(fmt.Sprint(reply[i+1]))
	}
	return failed, nil
}

// bulkLimit asks for the largest value that the server takes. A larger one would break the
// connection again and again, and look like an outage. 0 = the server does not say.
func bulkLimit(ctx context.Context, client redis.UniversalClient) int {
	answer, err := client.ConfigGet(ctx, "proto-max-bulk-len").Result()
	if err != nil {
		return 0
	}
	limit, err := strconv.Atoi(answer["proto-max-bulk-len"])
	if err != nil {
		return 0
	}
	return limit
}
