package millrace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/internal/txn"
)

// Phase is when a listener hears of an event, in the life of the transaction that emitted it.
type Phase int

const (
	// PhaseAfterCommit is once the transaction has committed.
	PhaseAfterCommit = Phase(txn.AfterCommit)
	// PhaseBeforeCommit is inside the transaction, before COMMIT. An error rolls it back.
	PhaseBeforeCommit = Phase(txn.BeforeCommit)
	// PhaseAfterRollback is once the transaction, or the Nested part, has been rolled back.
	PhaseAfterRollback = Phase(txn.AfterRollback)
	// PhaseAfterCompletion is when the transaction has ended in any way; OutcomeOf tells.
	PhaseAfterCompletion = Phase(txn.AfterCompletion)
)

// NoTransaction is what Emit does where there is no transaction.
type NoTransaction int

const (
	// Refuse returns ErrNoTransaction.
	Refuse NoTransaction = iota
	// RunNow calls the listeners at once, the asynchronous ones too, and returns their errors; not those of
	// PhaseAfterRollback.
	RunNow
	// Drop calls nobody, warns and counts.
	Drop
)

// BusConfig configures a Bus. The zero value is right.
type BusConfig struct {
	// NoTransaction is what Emit does where there is no transaction. Default: Refuse.
	NoTransaction NoTransaction
	// Logger is warned of what was dropped. Default: nothing.
	Logger *slog.Logger
}

// Bus carries events from transactions to listeners in the same process. Safe for concurrent use.
type Bus struct {
	cfg     BusConfig
	dropped atomic.Int64

	mu        sync.RWMutex
	listeners []*listener
}

type listener struct {
	phase Phase
	event reflect.Type
	named any
	hook  txn.Hook // name and order
	// match binds the listener to an event, or returns nil for one of another type.
	match   func(event any) func(ctx context.Context) error
	consume func(msg *message.Message) error

	publisher message.Publisher // of a durable one
	topic     string
}

// NewBus returns a Bus without listeners.
func NewBus(cfg BusConfig) *Bus {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Bus{cfg: cfg}
}

// EventOption changes one registration with On.
type EventOption func(*listener)

// ListenerName names the listener in reports; that of a durable one is also its handler's. Default: the
// name of the function.
func ListenerName(name string) EventOption { return func(l *listener) { l.hook.Name = name } }

// ListenerOrder sorts the listeners of one phase, lowest first.
func ListenerOrder(n int) EventOption { return func(l *listener) { l.hook.Order = n } }

// ListenerAsync has the listener run in a goroutine, so that InTx does not wait for it: see Async. A listener of
// PhaseBeforeCommit cannot be asynchronous, and a durable one is not called by Emit at all.
func ListenerAsync() EventOption { return func(l *listener) { l.hook.Async = true } }

// Durable lets a PhaseAfterCommit listener survive a crash: Emit publishes the event, as JSON, to topic
// through pub (the outbox's Publisher writes it with the transaction), and the listener runs as a
// consumer, which AddHandlers adds to a router. It is called at least once. It needs a ListenerName.
func Durable(pub message.Publisher, topic string) EventOption {
	return func(l *listener) { l.publisher, l.topic = pub, topic }
}

// On has fn called for each event of type E (or, for an interface, that implements E) emitted on bus. It
// is wiring: a nil fn, a durable listener without a name or of another phase, and an asynchronous one of
// PhaseBeforeCommit or that is durable, panic.
func On[E any](bus *Bus, phase Phase, fn func(ctx context.Context, event E) error, opts ...EventOption) {
	l := &listener{phase: phase, event: reflect.TypeFor[E](), named: fn}
	l.match = func(event any) func(context.Context) error {
		e, ok := event.(E)
		if !ok {
			return nil
		}
		return func(ctx context.Context) error { return fn(ctx, e) }
	}
	l.consume = func(msg *message.Message) error {
		var e E
		if err := json.Unmarshal(msg.Payload, &e); err != nil {
			return fmt.Errorf("millrace: event %v: not the JSON of one", l.event) // no content in errors
		}
		return fn(msg.Context(), e)
	}
	for _, opt := range opts {
		opt(l)
	}
	switch {
	case fn == nil:
		panic("millrace: On: no function")
	case l.publisher != nil && (phase != PhaseAfterCommit || l.hook.Name == ""):
		panic("millrace: On: a durable listener wants PhaseAfterCommit and a name")
	case l.hook.Async && (phase == PhaseBeforeCommit || l.publisher != nil):
		panic("millrace: On: an asynchronous listener is not durable, nor of PhaseBeforeCommit")
	}
	bus.mu.Lock()
	defer bus.mu.Unlock()
	bus.listeners = append(bus.listeners, l)
}

// Emit announces event to the listeners of its type, each in its phase of the transaction in ctx (with
// several databases, name one with For). What a rolled-back Nested part emitted is only heard by
// PhaseAfterRollback and PhaseAfterCompletion. A listener may emit again: before the commit its event
// is one of the same transaction, after it the listeners that fit the outcome run next.
//
// An error means that not every listener will hear of the event (in an after phase, those of an earlier
// phase cannot); the others do. Inside fn, return it. Name, Order and Async are the listeners' own
// business: an Emit with one of them is refused with ErrUnsupported and reaches nobody.
func (b *Bus) Emit(ctx context.Context, event any, opts ...HookOption) error {
	t, err := current(ctx, opts)
	var add func(txn.Hook) error
	switch {
	case err == nil:
		add = t.Register
	case !errors.Is(err, ErrNoTransaction):
		return err
	default:
		if _, ended := txn.Ended(ctx); ended {
			add = func(h txn.Hook) error { return txn.Requeue(ctx, h) }
			break
		}
		return b.without(ctx, event)
	}
	var errs []error
	for _, l := range b.heard(event) {
		if l.publisher != nil {
			errs = append(errs, l.publish(ctx, event))
			continue
		}
		run := l.match(event)
		h := l.hook
		h.Phase, h.Named = txn.Phase(l.phase), l.named
		h.Fn = func(ctx context.Context, _ txn.Outcome) error { return run(ctx) }
		errs = append(errs, add(h))
	}
	return errors.Join(errs...)
}

// without is Emit where there is no transaction.
func (b *Bus) without(ctx context.Context, event any) error {
	switch b.cfg.NoTransaction {
	case Drop:
		b.dropped.Add(1)
		b.cfg.Logger.WarnContext(ctx, "event dropped: no transaction", "event", reflect.TypeOf(event).String())
		return nil
	case RunNow:
		var errs []error
		for _, l := range b.heard(event) {
			switch {
			case l.publisher != nil:
				errs = append(errs, l.publish(ctx, event))
			case l.phase != PhaseAfterRollback:
				errs = append(errs, l.match(event)(ctx))
			}
		}
		return errors.Join(errs...)
	}
	return ErrNoTransaction
}

// Dropped counts the events that Drop dropped.
func (b *Bus) Dropped() int64 { return b.dropped.Load() }

func (b *Bus) heard(event any) []*listener {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var all []*listener
	for _, l := range b.listeners {
		if l.match(event) != nil {
			all = append(all, l)
		}
	}
	return all
}

func (l *listener) publish(ctx context.Context, event any) error {
	payload, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("millrace: event %T: %w", event, err)
	}
	msg := message.NewMessage(watermill.NewUUID(), payload)
	msg.SetContext(ctx)
	return l.publisher.Publish(l.topic, msg)
}

// AddHandlers adds a consumer handler to router for each durable listener registered so far, under its
// name. subscriber is called for each, so that every listener can be a consumer group of its own.
func (b *Bus) AddHandlers(router *message.Router, subscriber func(listener string) (message.Subscriber, error)) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, l := range b.listeners {
		if l.publisher == nil {
			continue
		}
		sub, err := subscriber(l.hook.Name)
		if err != nil {
			return fmt.Errorf("millrace: listener %s: %w", l.hook.Name, err)
		}
		router.AddConsumerHandler(l.hook.Name, l.topic, sub, l.consume)
	}
	return nil
}

// OutcomeOf returns the outcome of the transaction whose hook or listener was given ctx.
func OutcomeOf(ctx context.Context) (Outcome, bool) {
	o, ok := txn.Ended(ctx)
	return Outcome(o), ok
}
