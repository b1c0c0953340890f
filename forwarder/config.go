package forwarder

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Policy says what becomes of the other messages of a key when one of them is refused. The zero Policy
// stands for the default.
type Policy int

const (
	// StopKey keeps the messages behind a refused one back until it is delivered or parked. The default.
	StopKey Policy = iota + 1
	// SkipKey lets them overtake it.
	SkipKey
)

func (p Policy) known() bool { return p >= 0 && p <= SkipKey }

// Config of a Forwarder. The zero value is right for production.
type Config struct {
	// ID names this replica in logs and in the table of replicas; a random part is added, so that two
	// replicas may have the same. Default: "forwarder".
	ID string
	// Destination names the broker that the publisher given to New leads to. The stops of keys are stored
	// under it: change it, and they are forgotten. Default: "".
	Destination string
	// Routes send topics to other destinations; the first one that matches has a topic. What no route
	// matches goes to the publisher given to New. If that is nil, the routes are the list of what is
	// allowed: messages of other topics are refused with the reason no_route, and parked after MaxAttempts.
	Routes []Route
	// Exclude are patterns, as in Route.Topics, of topics that another reader has: a Watermill subscriber
	// on the same table. They are never read. A topic has one kind of reader.
	Exclude []string

	// Lease is how long the lanes of a process that died stay without a holder. It is renewed four
	// times in that time. Default 8 s, at least 100 ms.
	Lease time.Duration
	// PollInterval is the time between two looks at a quiet outbox; it doubles up to MaxPollInterval
	// as long as nothing comes. Messages of the same process do not wait for it. Default 250 ms and 1 s.
	PollInterval    time.Duration
	MaxPollInterval time.Duration

	// BatchRows and BatchBytes bound one read and one call of the publisher. Default 500 and 4 MiB. One
	// message larger than BatchBytes goes alone.
	BatchRows  int
	BatchBytes int
	// Batches is how many calls of the publisher of one destination run at once. Default 4.
	Batches int
	// ReadAheadRows and ReadAheadBytes bound what is held in memory for each destination: read, in flight,
	// or confirmed and not yet settled. Default (Batches + 2) × BatchRows and × BatchBytes.
	ReadAheadRows  int
	ReadAheadBytes int

	// PublishTimeout bounds one call of the publisher. What has no answer by then is sent again.
	// Default 10 s.
	PublishTimeout time.Duration
	// MaxAttempts is how often a message is tried that the broker refuses, the first time included,
	// before it is parked. Default 10.
	MaxAttempts int
	// RetryBase and RetryMax are the back-off of a refused message: before retry n a random time up to
	// RetryBase·2^(n-1), at most RetryMax. Default 1 s and 5 min.
	RetryBase time.Duration
	RetryMax  time.Duration
	// OnFailure is what happens to the rest of a refused message's key. Default StopKey. Routes give
	// topics a policy of their own.
	OnFailure Policy

	// DrainTimeout is how long Run, after its context has ended, waits for the broker's answers to
	// what is in flight. Default and maximum: half the lease.
	DrainTimeout time.Duration
	// Observers hear of every event of a message's life, each in turn.
	Observers []Observer
	// Logger gets positions, ids, lanes and errors; never payloads or metadata. Nil discards.
	Logger *slog.Logger
}

const (
	defaultID              = "forwarder"
	defaultLease           = 8 * time.Second
	minLease               = 100 * time.Millisecond
	defaultPollInterval    = 250 * time.Millisecond
	defaultMaxPollInterval = time.Second
	defaultBatchRows       = 500
	defaultBatchBytes      = 4 << 20
	defaultBatches         = 4
	defaultPublishTimeout  = 10 * time.Second
	defaultMaxAttempts     = 10
	defaultRetryBase       = time.Second
	defaultRetryMax        = 5 * time.Minute

	// coolDown is the pause after a read that a wake-up caused: it lets a burst of commits share the
	// next read, and a lone commit does not wait for it.
	coolDown = 2 * time.Millisecond
)

// complete fills in the defaults and says everything that is wrong.
func (c Config) complete() (Config, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("forwarder: "+format, args...)) }

	duration := func(name string, d *time.Duration, otherwise time.Duration) {
		if *d < 0 {
			bad("Config.%s is %v: a duration must be positive, or 0 for the default %v", name, *d, otherwise)
		} else if *d == 0 {
			*d = otherwise
		}
	}
	count := func(name string, n *int, otherwise int) {
		if *n < 0 {
			bad("Config.%s is %d: it must be positive, or 0 for the default %d", name, *n, otherwise)
		} else if *n == 0 {
			*n = otherwise
		}
	}

	if c.ID == "" {
		c.ID = defaultID
	}
	duration("Lease", &c.Lease, defaultLease)
	duration("PollInterval", &c.PollInterval, defaultPollInterval)
	duration("MaxPollInterval", &c.MaxPollInterval, max(defaultMaxPollInterval, c.PollInterval))
	count("BatchRows", &c.BatchRows, defaultBatchRows)
	count("BatchBytes", &c.BatchBytes, defaultBatchBytes)
	count("Batches", &c.Batches, defaultBatches)
	count("ReadAheadRows", &c.ReadAheadRows, (c.Batches+2)*c.BatchRows)
	count("ReadAheadBytes", &c.ReadAheadBytes, (c.Batches+2)*c.BatchBytes)
	duration("PublishTimeout", &c.PublishTimeout, defaultPublishTimeout)
	count("MaxAttempts", &c.MaxAttempts, defaultMaxAttempts)
	duration("RetryBase", &c.RetryBase, defaultRetryBase)
	duration("RetryMax", &c.RetryMax, max(defaultRetryMax, c.RetryBase))
	if c.OnFailure == 0 {
		c.OnFailure = StopKey
	}
	duration("DrainTimeout", &c.DrainTimeout, c.Lease/2)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.limits(bad)
	return c, errors.Join(errs...)
}

// limits says what is out of bounds, or contradicts something else, in a configuration that is filled in.
func (c Config) limits(bad func(format string, args ...any)) {
	if len(c.ID) > 64 {
		bad("Config.ID has %d characters, at most 64 are allowed", len(c.ID))
	}
	if c.Lease > 0 && c.Lease < minLease {
		bad("Config.Lease is %v, at least %v is needed", c.Lease, minLease)
	}
	if c.MaxPollInterval < c.PollInterval && c.MaxPollInterval > 0 {
		bad("Config.MaxPollInterval is %v, less than PollInterval %v", c.MaxPollInterval, c.PollInterval)
	}
	if c.RetryMax < c.RetryBase && c.RetryMax > 0 {
		bad("Config.RetryMax is %v, less than RetryBase %v", c.RetryMax, c.RetryBase)
	}
	if !c.OnFailure.known() {
		bad("Config.OnFailure is %d: StopKey or SkipKey are known", c.OnFailure)
	}
	if c.DrainTimeout > c.Lease/2 && c.Lease > 0 {
		bad("Config.DrainTimeout is %v: more than half the lease of %v would hand lanes over unresolved", c.DrainTimeout, c.Lease)
	}
	if c.Destination == away || len(c.Destination) > maxName {
		bad("Config.Destination cannot be %q: it has at most %d bytes, and %q is reserved", c.Destination, maxName, away)
	}
}
