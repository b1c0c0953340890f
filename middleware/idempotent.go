package middleware

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/dedup"
	"github.com/millrace-go/millrace/internal/delivery"
)

// IdempotentConfig is the configuration of Idempotent. The zero value is right for most consumers.
type IdempotentConfig struct {
	// Consumer is the name under which messages are remembered; consumers of different names each
	// handle every message. Default: the name of the router's handler. Changing it, or renaming the
	// handler, makes all messages new.
	Consumer string
	// Lease is how long a claim outlives the process that holds it. While the handler runs it is
	// renewed three times per lease. Default 30 s, at least 50 ms.
	Lease time.Duration
	// BusyWait is how long a delivery waits for another one of the same message, or for a store that
	// does not answer, before it is nacked. Default 2 s.
	BusyWait time.Duration
	// DoneTTL is how long a handled message is remembered. Longer than the longest time in which a copy
	// can come. Default 24 h, at least Lease.
	DoneTTL time.Duration
	// MaxClaims is how often handling may be begun, in all processes together, before the message is
	// given up as ErrTooManyClaims. One that was deferred or given up counts anew. Default 10.
	MaxClaims int
	// StoreTimeout bounds each call of the store. Default: 2 s, at most a sixth of the lease.
	StoreTimeout time.Duration
	// IgnorePayload turns off the check that two messages with one id have one payload.
	IgnorePayload bool
	// FailOpen runs the handler without a claim while the store cannot be asked. Only for handlers that
	// may run twice.
	FailOpen bool
	// Logger receives what is unusual, never payloads or metadata. Default: none.
	Logger *slog.Logger
	// OnEvent is called, if set, once for each thing that happened to a delivery, in its goroutine.
	OnEvent func(Event, *message.Message)
}

// Event is what Idempotent has to tell about a delivery.
type Event string

const (
	EventHandled       Event = "handled"          // the handler succeeded, and the record says so
	EventDuplicate     Event = "duplicate"        // was handled before; acknowledged
	EventInProgress    Event = "in_progress"      // is being handled elsewhere; nacked
	EventReleased      Event = "released"         // not handled; the claim was given back
	EventLeaseLost     Event = "lease_lost"       // another may have taken over; nacked
	EventRecreated     Event = "recreated"        // handled, though the store had forgotten the claim
	EventDoneFailed    Event = "done_mark_failed" // handled, but the store could not be told; acknowledged
	EventTooManyClaims Event = "too_many_claims"  // given up
	EventKeyReused     Event = "key_reused"       // another payload under a known id; given up
	EventStoreDown     Event = "store_down"       // the store did not answer; nacked
	EventUnguarded     Event = "unguarded"        // run without a claim, as FailOpen allows
)

// Idempotent lets a message take effect once per consumer.
//
// It claims the message in the store, runs the handler while it keeps the claim alive, and records it
// as done. A copy that arrives meanwhile waits a little and is nacked, never acknowledged. A copy of a
// message that is done is acknowledged without running the handler, and the messages that the
// handler returned are sent again with the same ids. After an error the claim is given back.
//
// When the store cannot be asked, nothing runs: the message is nacked, slowly. If the claim is lost,
// the handler's context ends with ErrLeaseLost as its cause. If the handler succeeded but that cannot
// be recorded for a whole lease, the message is acknowledged: the effect has happened.
//
// The ids of the messages that the handler returns are replaced by dedup.DerivedID, so that those of a
// second run are duplicates of the first. Together they may take dedup.MaxResult bytes.
//
// Idempotent starts nothing; a goroutine per running handler renews its claim.
func Idempotent(store dedup.Store, cfg IdempotentConfig) (message.HandlerMiddleware, error) {
	cfg = cfg.withDefaults()
	if err := errors.Join(checkStore(store), cfg.check()); err != nil {
		return nil, err
	}
	g := &guard{store: store, cfg: cfg, consumer: consumer{name: cfg.Consumer}}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			return delivery.Run(msg, func(rec *delivery.Record) ([]*message.Message, error) {
				return g.handle(msg, rec, next)
			})
		}
	}, nil
}

func (c IdempotentConfig) withDefaults() IdempotentConfig {
	orDefault(&c.Lease, 30*time.Second)
	orDefault(&c.BusyWait, 2*time.Second)
	orDefault(&c.DoneTTL, 24*time.Hour)
	orDefault(&c.StoreTimeout, min(2*time.Second, c.Lease/6))
	if c.MaxClaims == 0 {
		c.MaxClaims = 10
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnEvent == nil {
		c.OnEvent = func(Event, *message.Message) {}
	}
	return c
}

func (c IdempotentConfig) check() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("middleware: Idempotent: "+format, args...))
	}
	if c.Lease < 50*time.Millisecond {
		bad("Lease %s: at least 50ms", c.Lease)
	}
	if c.BusyWait < 0 {
		bad("BusyWait %s is negative", c.BusyWait)
	}
	if c.DoneTTL < c.Lease {
		bad("DoneTTL %s is shorter than Lease %s", c.DoneTTL, c.Lease)
	}
	if c.MaxClaims < 0 {
		bad("MaxClaims %d is negative", c.MaxClaims)
	}
	if c.StoreTimeout < 0 || c.StoreTimeout > c.Lease/3 {
		bad("StoreTimeout %s: between 0 and a third of Lease %s", c.StoreTimeout, c.Lease)
	}
	return errors.Join(errs...)
}

// checkStore lets a store whose constructor returns no error report its configuration.
func checkStore(store dedup.Store) error {
	if store == nil {
		return errors.New("middleware: Idempotent: no dedup store")
	}
	if v, ok := store.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

func orDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

func (g *guard) handle(msg *message.Message, rec *delivery.Record, next message.HandlerFunc) ([]*message.Message, error) {
	key, err := g.consumer.key(msg)
	if err != nil {
		return nil, err
	}
	c := &claim{guard: g, msg: msg, key: key, owner: rec.Owner()}
	answer, sentAt, err := c.acquire(msg.Context())
	switch {
	case errors.Is(err, errUnguarded):
		g.tell(EventUnguarded, c)
		out, err := next(msg)
		return deriveOutputs(msg, key, out), rec.Judge(err)
	case err != nil:
		return nil, err
	case answer.Verdict == dedup.Reused:
		g.tell(EventKeyReused, c)
		return nil, hopeless(ErrKeyReused, "idempotency_key_reused")
	case answer.Verdict == dedup.Handled:
		g.tell(EventDuplicate, c)
		out, err := decodeOutputs(msg.Context(), answer.Result)
		if err == nil {
			rec.Set(delivery.Done)
		}
		return out, err
	}
	return c.run(rec, answer, sentAt, next)
}

// digest is the fingerprint by which another message under a known id is told. Two runs of a handler
// may derive one id for different content: they are duplicates.
func (g *guard) digest(msg *message.Message) string {
	if g.cfg.IgnorePayload || dedup.IsDerived(msg.UUID) {
		return ""
	}
	sum := sha256.Sum256(msg.Payload)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

func (g *guard) tell(e Event, c *claim) {
	level := slog.LevelWarn
	switch e {
	case EventHandled, EventDuplicate, EventReleased, EventInProgress:
		level = slog.LevelDebug
	}
	g.cfg.Logger.Log(context.WithoutCancel(c.msg.Context()), level, "idempotent: "+string(e),
		"consumer", c.key.Consumer, "message_id", c.key.MessageID)
	g.cfg.OnEvent(e, c.msg)
}
