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

var add = redis.NewScript(addScript)

// Redis takes bulks of at least the first size, whatever its configuration, and by default of the second.
const (
	smallestBulk = 1 << 20
	defaultBulk  = 512 << 20
)

// chunk is what goes to one stream in one round trip, in two ways.
//
// Of several entries of one group none may go in behind a failed one: they go through the script, which sees to
// that. An entry that is alone in its group, or has none, is an XADD of its own, which costs Redis less: nothing
// of the batch stands behind it, and what follows of its key is given only after the batch.
type chunk struct {
	stream  *stream
	lone    []entry
	grouped []entry

	adds   []*redis.StringCmd // of lone
	script *redis.Cmd         // of grouped; nil if there are none

	// What became of each: nil = it is in the stream.
	loneErrs    []error
	groupedErrs []error
}

func (c *chunk) take(e entry) {
	if c.stream.lone(e) {
		if c.lone == nil {
			c.lone = make([]entry, 0, min(1+len(c.stream.left), maxChunkEntries))
		}
		c.lone = append(c.lone, e)
	} else {
		c.grouped = append(c.grouped, e)
	}
}

func (c *chunk) len() int { return len(c.lone) + len(c.grouped) }

// each tells what became of each entry.
func (c *chunk) each(tell func(entry, error)) {
	for i, e := range c.lone {
		tell(e, c.loneErrs[i])
	}
	for i, e := range c.grouped {
		tell(e, c.groupedErrs[i])
	}
}

// addAll adds the chunks of several streams in one round trip. A script call that the server did not run,
// because it did not know the script, is made again with the script's text.
func addAll(ctx context.Context, client redis.UniversalClient, chunks []*chunk) {
	pipe := client.Pipeline()
	for _, c := range chunks { // script or XADD first makes no difference: they share no key
		if len(c.grouped) > 0 {
			c.callScript(ctx, pipe, add.EvalSha)
		}
		c.addLone(ctx, pipe)
	}
	silence := exec(ctx, client, pipe)

	var again []*chunk
	pipe = client.Pipeline()
	for _, c := range chunks {
		c.readLone(silence)
		c.readScript(silence)
		if c.script != nil && hasPrefix(c.script.Err(), "NOSCRIPT") {
			c.callScript(ctx, pipe, add.Eval)
			again = append(again, c)
		}
	}
	silence = exec(ctx, client, pipe)
	for _, c := range again {
		c.readScript(silence)
	}
}

func (c *chunk) addLone(ctx context.Context, pipe redis.Pipeliner) {
	c.adds = make([]*redis.StringCmd, len(c.lone))
	for i, e := range c.lone {
		c.adds[i] = redis.NewStringCmd(ctx, e.args...)
		_ = pipe.Process(ctx, c.adds[i]) // it only queues
	}
}

type scriptCall func(ctx context.Context, on redis.Scripter, keys []string, args ...any) *redis.Cmd

func (c *chunk) callScript(ctx context.Context, pipe redis.Pipeliner, call scriptCall) {
	args := make([]any, 0, len(c.grouped)*(2+len(c.grouped[0].args)-head)) // as if all were alike
	for _, e := range c.grouped {
		fields := e.args[head:]
		args = append(args, e.group, len(fields))
		args = append(args, fields...)
	}
	c.script = call(ctx, pipe, []string{c.stream.topic}, args...)
}

var errNoReply = errors.New("redisstreams: no reply")

// exec makes the round trip and returns what is to be said of a command that got no reply: the error of the
// whole, unless it is the refusal of another entry. It is only that of the first command that failed, so that
// each command's own has to be looked at.
func exec(ctx context.Context, client redis.UniversalClient, pipe redis.Pipeliner) error {
	cmds, err := pipe.Exec(ctx)
	if err == nil {
		return errNoReply
	}
	errs := []error{err}
	for _, cmd := range cmds {
		errs = append(errs, cmd.Err())
	}
	cluster.Noticed(ctx, client, errs...)
	if isRefusal(classify(err)) {
		return errNoReply
	}
	return err
}

func (c *chunk) readLone(silence error) {
	c.loneErrs = make([]error, len(c.adds))
	for i, cmd := range c.adds {
		if c.loneErrs[i] = cmd.Err(); cmd.Err() == nil && cmd.Val() == "" {
			c.loneErrs[i] = silence
		}
	}
}

// readScript reads the script's answer, which has number and error of each entry that failed.
func (c *chunk) readScript(silence error) {
	c.groupedErrs = make([]error, len(c.grouped))
	if c.script == nil {
		return
	}
	failed, err := parse(c.script, silence)
	behind := make(map[int]bool) // groups; those of the stream also know of failures behind this chunk
	for i, e := range c.grouped {
		switch {
		case err != nil:
			c.groupedErrs[i] = err
		case behind[e.group]:
			c.groupedErrs[i] = errBehind
		case failed[i] != nil:
			c.groupedErrs[i] = failed[i]
			behind[e.group] = true
		}
	}
}

func parse(cmd *redis.Cmd, silence error) (failed map[int]error, err error) {
	if err := cmd.Err(); err != nil {
		return nil, err
	}
	if cmd.Val() == nil {
		return nil, silence
	}
	reply, err := cmd.Slice()
	if err != nil || len(reply)%2 != 0 {
		return nil, fmt.Errorf("redisstreams: odd answer of type %T", cmd.Val())
	}
	failed = make(map[int]error, len(reply)/2)
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
