package redisstreams

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	wmredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// Config configures a Publisher or a Subscriber. Client or URL is required; every other zero value is
// fit for production. Fields that concern only the other one are ignored.
type Config struct {
	// Client reaches Redis: a single node, Sentinel, Cluster or Ring. It stays the caller's: it is
	// never closed here. Each subscription keeps one of its connections busy.
	Client redis.UniversalClient
	// URL is used if Client is nil: redis://, rediss:// or unix://, as redis.ParseURL reads it. The
	// client that is made of it is closed by Close.
	URL string

	// Marshaler turns messages into entries and back, and changes nothing in a message. Default: the one of
	// watermill-redisstream.
	Marshaler wmredis.MarshallerUnmarshaller
	// Logger gets outages and what is recovered from. It never gets payloads, metadata or passwords.
	// Default: nothing is logged.
	Logger *slog.Logger

	// Timeout bounds one call of Publish or PublishBatch. Default 10 s.
	Timeout time.Duration
	// MaxMessageBytes is the size of an entry, all fields together, from which it is refused. Default:
	// what the server takes (proto-max-bulk-len), or 512 MiB if it does not say.
	MaxMessageBytes int

	// ConsumerGroup is the group to read as. Empty: no group, every subscription gets every message
	// added after it began, nothing is remembered of what was handled.
	ConsumerGroup string
	// Consumer begins the name of this member in the group; each subscription adds a number. It must
	// be unique among the living members. Default: host name, process id and a random part.
	Consumer string
	// StartID is the id after which a group that does not exist yet, or a subscription without a group,
	// begins. Default: "0" (all that is in the stream) for a group, "$" (what comes) without.
	StartID string
	// Concurrency is how many messages of a subscription are with handlers at a time. Up to ten times as
	// many are held while they wait for their key or for another try. With 1 messages are handed
	// out strictly one after the other, also when one fails. Default 10.
	Concurrency int
	// Block is how long one read waits for messages. It bounds how late Close is noticed, not how
	// late a message is. Default 250 ms, at most 1 s; it must be below the client's ReadTimeout.
	Block time.Duration
	// NackDelay is how long a message that was nacked waits before it is handed out again; it doubles
	// with each nack of the message, up to 32 times. A handler's error may ask for more, up to a
	// minute (middleware.RetryAfter). Default 500 ms.
	NackDelay time.Duration
	// MaxIdle is how long a member must have been silent about an entry before another takes it over.
	// A living one speaks three times as often. Default 30 s, at least 100 ms.
	MaxIdle time.Duration
	// ConsumerTimeout is how long a member that has nothing pending may be silent before it is removed
	// from the group. Default 24 h.
	ConsumerTimeout time.Duration
	// CloseTimeout is how long handlers may go on after Close or the end of Subscribe's context;
	// after that their messages' contexts are cancelled and their messages given up. Default 10 s.
	CloseTimeout time.Duration
}

const (
	defaultBlock = 250 * time.Millisecond
	maxBlock     = time.Second
	minMaxIdle   = 100 * time.Millisecond
)

// withDefaults returns the configuration with its zero values filled in, or all that is wrong with it.
func (c Config) withDefaults() (Config, error) {
	err := c.problems()
	if c.Marshaler == nil {
		c.Marshaler = wmredis.DefaultMarshallerUnmarshaller{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Consumer == "" {
		c.Consumer = consumerName()
	}
	if c.StartID == "" {
		c.StartID = "0"
		if c.ConsumerGroup == "" {
			c.StartID = "$"
		}
	}
	if c.Concurrency == 0 {
		c.Concurrency = 10
	}
	if limit := readTimeout(c.Client); c.Block == 0 && limit > 0 {
		c.Block = min(defaultBlock, limit/2)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Timeout, 10 * time.Second},
		{&c.Block, defaultBlock},
		{&c.NackDelay, 500 * time.Millisecond},
		{&c.MaxIdle, 30 * time.Second},
		{&c.ConsumerTimeout, 24 * time.Hour},
		{&c.CloseTimeout, 10 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return c, err
}

func (c Config) problems() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("redisstreams: "+format, args...))
	}
	switch {
	case c.Client == nil && c.URL == "":
		bad("set Client or URL")
	case c.Client != nil && c.URL != "":
		bad("set either Client or URL, not both")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"Timeout", c.Timeout}, {"Block", c.Block}, {"NackDelay", c.NackDelay}, {"MaxIdle", c.MaxIdle},
		{"ConsumerTimeout", c.ConsumerTimeout}, {"CloseTimeout", c.CloseTimeout},
	} {
		if d.value < 0 {
			bad("%s is negative", d.name)
		}
	}
	if c.Block > 0 && c.Block < time.Millisecond || c.Block > maxBlock {
		bad("Block is %s, want 1ms to %s", c.Block, maxBlock)
	}
	if limit := readTimeout(c.Client); limit > 0 && c.Block >= limit {
		bad("Block is %s, not below the client's ReadTimeout of %s", c.Block, limit)
	}
	if c.MaxIdle > 0 && c.MaxIdle < minMaxIdle {
		bad("MaxIdle is %s, want at least %s", c.MaxIdle, minMaxIdle)
	}
	if c.MaxMessageBytes < 0 {
		bad("MaxMessageBytes is negative")
	}
	if c.Concurrency < 0 {
		bad("Concurrency is negative")
	}
	return errors.Join(errs...)
}

// readTimeout is the client's, 0 if it has none or does not tell.
func readTimeout(client redis.UniversalClient) time.Duration {
	switch c := client.(type) {
	case *redis.Client:
		return c.Options().ReadTimeout
	case *redis.ClusterClient:
		return c.Options().ReadTimeout
	case *redis.Ring:
		return c.Options().ReadTimeout
	}
	return 0
}

// connection is the client and who closes it.
type connection struct {
	redis.UniversalClient
	own bool
}

func (c Config) connect() (connection, error) {
	if c.Client != nil {
		return connection{UniversalClient: c.Client}, nil
	}
	opts, err := redis.ParseURL(c.URL)
	if err != nil {
		// The parser's error quotes the URL, and with it the password.
		return connection{}, errors.New("redisstreams: URL is not one that redis.ParseURL reads, such as redis://user:password@host:6379/0 (special characters percent-encoded)")
	}
	opts.ContextTimeoutEnabled = true
	if opts.PoolSize == 0 {
		opts.PoolSize = 100 // each subscription keeps one busy; they are opened when needed
	}
	opts.DialerRetries = 1 // whoever calls tries again, and says so in the log
	return connection{UniversalClient: redis.NewClient(opts), own: true}, nil
}

func (c connection) close() error {
	if !c.own {
		return nil
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("redisstreams: close client: %w", err)
	}
	return nil
}

func consumerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), strings.ReplaceAll(uuid.NewString(), "-", "")[:8])
}
