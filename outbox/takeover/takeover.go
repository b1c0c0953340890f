// Package takeover moves a service from Watermill's own SQL outbox to millrace's, and back, without losing
// a message and without a moment in which nobody forwards.
//
// Watermill's outbox is a table of watermill-sql's default schema on PostgreSQL or MySQL, in which
// components/forwarder's publisher puts envelopes and from which its forwarder takes them, up to an offset
// that it stores. A Takeover does to that table what the forwarder did, but instead of publishing it moves
// the messages into a Box, in one transaction per batch: each message is either here or there. What
// publishes the old way may go on doing so as long as the Takeover runs.
//
// # The switch
//
// Stop the stock forwarder. Start millrace's forwarder and Takeover.Run. Then deploy the services that
// publish into the Box, one after the other; when none publishes the old way any more, and Run has nothing
// left to move, leave it out. While both ways are in use, a key of which messages are published both ways
// is not in order.
//
// # The way back
//
// Stop Run, and start the stock forwarder: it finds exactly what was not moved. What is in the Box goes out
// by millrace's forwarder; to have it go out by the stock one instead, stop millrace's forwarders and call
// GiveBack.
//
// # What is done to the tables
//
// Messages that are moved are deleted from the stock table. Its stored offset stays where the stock
// forwarder left it: all that is in the table beyond it is work, and nothing else is. A cursor that moves
// would jump, on MySQL, over messages whose number was drawn earlier and which can be seen later; the stock
// forwarder loses messages that way. Those are among what Passed lists.
package takeover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/txn"
	"github.com/millrace-go/millrace/outbox"
)

// Config says where the stock forwarder's messages are. The zero value is right for its defaults.
type Config struct {
	// ForwarderTopic is that of components/forwarder. Default "forwarder_topic".
	ForwarderTopic string
	// ConsumerGroup is that of the SQL subscriber that the stock forwarder reads with. Default "".
	ConsumerGroup string
	// MessagesTable and OffsetsTable are what GenerateMessagesTableName and
	// GenerateMessagesOffsetsTableName of the stock schema return, with their quotes. Default: the stock
	// names, watermill_ and watermill_offsets_ with the topic.
	MessagesTable string
	OffsetsTable  string
	// FromStart says that no stock forwarder has ever read the table with this ConsumerGroup, and all of it
	// is to be moved. Default: that there is no stored offset is an error.
	FromStart bool
	// StockPollInterval is the PollInterval of the stock forwarder's subscriber. Run holds the stored
	// offset for three times as long, to see whether a stock forwarder comes for it; if one seems to, once
	// more. Default 1 s, as watermill-sql's.
	StockPollInterval time.Duration

	// Prefix is that of the Box's configuration, for GiveBack. Default as there.
	Prefix string
	// BatchSize is how many messages a transaction moves. Default 500.
	BatchSize int
	// PollInterval is the time between two looks at a table that has nothing to move. Default 1 s.
	PollInterval time.Duration
	// Logger gets offsets, counts and errors; no content. Default: nothing.
	Logger *slog.Logger
}

// topicName is what watermill-sql accepts as one: topics are written into statements.
var topicName = regexp.MustCompile(`^[A-Za-z0-9$:._-]{1,45}$`)

var tablePrefix = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

func (c *Config) complete() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("takeover: Config."+format, args...)) }
	duration := func(name string, d *time.Duration) {
		if *d < 0 {
			bad("%s is negative", name)
		} else if *d == 0 {
			*d = time.Second
		}
	}
	if c.ForwarderTopic == "" {
		c.ForwarderTopic = "forwarder_topic"
	}
	if !topicName.MatchString(c.ForwarderTopic) && (c.MessagesTable == "" || c.OffsetsTable == "") {
		bad("ForwarderTopic %q: want letters, digits and $:._-, at most 45: beyond that PostgreSQL mixes tables up", c.ForwarderTopic)
	}
	if c.Prefix == "" {
		c.Prefix = outbox.DefaultPrefix
	}
	if !tablePrefix.MatchString(c.Prefix) {
		bad("Prefix %q is not one of an outbox", c.Prefix)
	}
	duration("StockPollInterval", &c.StockPollInterval)
	duration("PollInterval", &c.PollInterval)
	if c.BatchSize < 0 {
		bad("BatchSize is negative")
	} else if c.BatchSize == 0 {
		c.BatchSize = 500
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(errs...)
}

var (
	// ErrStockForwarder means that a stock forwarder works on the table. Nothing is lost and nothing sent
	// twice by that, but the order of keys would be: stop it.
	ErrStockForwarder = errors.New("takeover: a stock forwarder is running; stop it")
	// ErrForwarder means that a forwarder of millrace holds lanes of the Box; stop it, or if it died, wait
	// until its lease has ended.
	ErrForwarder = errors.New("takeover: a forwarder of millrace is running; stop it")
)

// setupError is a state of the tables that no waiting mends.
type setupError struct{ text string }

func (e *setupError) Error() string { return "takeover: " + e.text }

func setupf(format string, args ...any) error { return &setupError{fmt.Sprintf(format, args...)} }

// Takeover moves messages between a stock table and a Box of the same database. Safe for concurrent use;
// several processes may run one, and take turns.
type Takeover struct {
	cfg  Config
	pool txn.Beginner
	box  *outbox.Box
	log  *slog.Logger
}

// New checks its arguments and joins all their errors. db is the database that box was made with. It asks
// the database nothing.
func New(db millrace.DB, box *outbox.Box, cfg Config) (*Takeover, error) {
	err := cfg.complete()
	if db == nil || box == nil {
		return nil, errors.Join(err, errors.New("takeover: New needs the database and its outbox"))
	}
	pool, ok := db.TxnPool().(txn.Beginner)
	if !ok {
		err = errors.Join(err, errors.New("takeover: this database handle begins no transactions"))
	}
	if err != nil {
		return nil, err
	}
	return &Takeover{cfg: cfg, pool: pool, box: box, log: cfg.Logger}, nil
}

// retry is the pause after an error that may pass.
var retry = backoff.Policy{Base: 250 * time.Millisecond, Max: 5 * time.Second}

// Run moves what there is beyond the stored offset, and what comes, until ctx ends; then it returns nil.
//
// It first looks for a stock forwarder, and returns ErrStockForwarder if there is one, now or later; tables
// that are not as they must be end it with an error that says what to do. A database that cannot be reached
// is logged and tried again.
//
// Messages that the Box does not take (no envelope, a destination topic or metadata beyond its limits) stay
// in the table and are logged once, with offset and reason; they hold up nobody. A message whose id waits in
// the Box already stays until that one has gone.
func (t *Takeover) Run(ctx context.Context) error {
	r := &run{Takeover: t, stuck: make(map[int64]bool)}
	steps := []func(context.Context) error{t.Check, t.watch, r.pass} // the last one again and again
	for tries := 0; ; {
		err := steps[0](ctx)
		pause := t.cfg.PollInterval
		if err == nil && len(steps) > 1 {
			steps, pause = steps[1:], 0
		}
		var setup *setupError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrStockForwarder), errors.As(err, &setup), outbox.IsSetup(err):
			return err
		case err != nil:
			if tries++; tries == 1 {
				t.log.WarnContext(ctx, "stock outbox not moved, trying on", "error", err)
			}
			pause = retry.Delay(tries)
		default:
			tries = 0
		}
		if !backoff.Sleep(ctx, pause) {
			return nil
		}
	}
}

// Check asks whether the tables are there and can be taken over from, and says what to do if not. It
// changes nothing.
func (t *Takeover) Check(ctx context.Context) error {
	if err := t.box.Store().Check(ctx); err != nil {
		return err
	}
	s, err := t.stock(ctx)
	if err != nil {
		return err
	}
	var others []string
	found := false
	err = t.pool.Query(ctx, s.groups, nil, func(row txn.Scanner) error {
		var group string
		err := row.Scan(&group)
		if found = found || group == t.cfg.ConsumerGroup; group != t.cfg.ConsumerGroup {
			others = append(others, group)
		}
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("takeover: read the offsets: %w", err)
	case len(others) > 0:
		return setupf("consumer groups %q read the table too, and would miss what is moved: if they are gone, delete their rows from %s; "+
			"else let them read from the broker first", others, s.offsets)
	case !found && !t.cfg.FromStart:
		return setupf("%s has no offset of consumer group %q: give the one of the stock forwarder's subscriber as Config.ConsumerGroup, "+
			"or set Config.FromStart if none ever ran", s.offsets, t.cfg.ConsumerGroup)
	}
	return nil
}
