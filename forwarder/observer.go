package forwarder

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Observer hears of every event in the life of the messages of one forwarder: for metrics, traces, audits.
// Any function may be nil.
//
// The functions are called on the forwarder's own goroutines, several at a time, without a lock held. They
// must not block: what waits in one of them delays messages, and in the end costs the lease. They keep
// nothing of what they are given (the slices and maps are used again), and change nothing but what
// OnPublish allows. A panic is not recovered.
//
// Each event is told by the process that saw it. After a crash some are told again by the successor, and
// some, such as a settle whose answer was lost, by nobody.
type Observer struct {
	// OnPublish is called before a batch is handed to the publisher. The context that it returns is that of
	// the call and of its messages: it must be ctx or derived from it. What it sets in Message.Metadata
	// travels with the message. Nil keeps ctx.
	OnPublish func(ctx context.Context, b Batch) context.Context
	// OnPublished is called when the publisher has answered, with the context that OnPublish returned.
	// Answers[i] is the answer to b.Messages[i].
	OnPublished func(ctx context.Context, b Batch, answers []Answer)
	// OnSettled is called when the rows of messages that the broker has are gone from the outbox.
	OnSettled func(ctx context.Context, b Batch)
	// OnRefused is called when a refused attempt was recorded: the message is tried again after RetryIn.
	OnRefused func(ctx context.Context, m Message, f Failure)
	// OnParked is called when a message was set aside as dead.
	OnParked func(ctx context.Context, m Message, f Failure)
	// OnDropped is called when messages that had been read are not published, because their topic or
	// destination was paused, or they were or may be being cancelled. What is still there is read again
	// when it may go.
	OnDropped func(ctx context.Context, b Batch, why DropReason)
	// OnLanes is called when lanes came or went.
	OnLanes func(ctx context.Context, c LaneChange)
	// OnDestination is called when a destination has ceased to answer, or answers again. Err is nil if it does.
	OnDestination func(ctx context.Context, destination string, err error)
}

// Batch is messages of one destination.
type Batch struct {
	Destination string
	Messages    []Message
}

// Message describes a message to an Observer.
type Message struct {
	ID          string
	Topic       string
	Destination string
	Position    int64
	Lane        int
	HasKey      bool
	// Attempt is the number of the attempt under way, from 1; 0 if none was made.
	Attempt int
	// Size is in bytes, of payload and metadata.
	Size int
	// CreatedAt is when the message was written, by the database's clock.
	CreatedAt time.Time
	// Metadata is the message's, with the trace context of its producer if the outbox captures it.
	Metadata message.Metadata
}

// Answer is the publisher's answer to one message.
type Answer struct {
	Outcome Outcome
	// Reason is the code of a refusal.
	Reason string
	// Err is what the publisher answered. It may hold more than belongs in a log.
	Err error
}

// Outcome of a publish.
type Outcome int8

const (
	// Delivered: the broker has the message.
	Delivered Outcome = iota
	// Refused by the broker for what the message is: counts as an attempt.
	Refused
	// Unsure: the destination was not reached, or its answer was lost. The message is sent again.
	Unsure
	// Deferred: refused, but so is everything else at this destination. Counts nothing, and is tried again.
	Deferred
)

// String returns the outcome as a word for labels.
func (o Outcome) String() string {
	switch o {
	case Delivered:
		return "delivered"
	case Refused:
		return "refused"
	case Deferred:
		return "deferred"
	}
	return "unsure"
}

// Failure is why an attempt failed.
type Failure struct {
	// Reason is a short code: no_route, too_large, encoding ...
	Reason string
	// Error is the text of the error, bounded, without payload.
	Error string
	// Counted is false if the refusal counts no attempt, because everything is refused at this destination.
	Counted bool
	// RetryIn is the time until the next attempt; 0 if there is none.
	RetryIn time.Duration
}

// DropReason says why messages that had been read are not published now.
type DropReason string

const (
	// DropPaused: their topic or destination is paused, or nothing of the topic is ready any more.
	DropPaused DropReason = "paused"
	// DropCancelled: they were cancelled or replaced, or somebody is about to.
	DropCancelled DropReason = "cancelled"
)

// LaneChange tells how many lanes a replica took, handed over, or lost to others, and how many it holds now.
type LaneChange struct {
	Replica                 string
	Taken, HandedOver, Lost int
	Held                    int
}

// observers are told one after the other.
type observers []Observer

func (os observers) publish(ctx context.Context, b Batch) context.Context {
	for _, o := range os {
		if o.OnPublish != nil {
			if derived := o.OnPublish(ctx, b); derived != nil {
				ctx = derived
			}
		}
	}
	return ctx
}

func (os observers) published(ctx context.Context, b Batch, answers []Answer) {
	for _, o := range os {
		if o.OnPublished != nil {
			o.OnPublished(ctx, b, answers)
		}
	}
}

func (os observers) settled(ctx context.Context, b Batch) {
	for _, o := range os {
		if o.OnSettled != nil {
			o.OnSettled(ctx, b)
		}
	}
}

func (os observers) refused(ctx context.Context, m Message, f Failure) {
	for _, o := range os {
		if o.OnRefused != nil {
			o.OnRefused(ctx, m, f)
		}
	}
}

func (os observers) parked(ctx context.Context, m Message, f Failure) {
	for _, o := range os {
		if o.OnParked != nil {
			o.OnParked(ctx, m, f)
		}
	}
}

func (os observers) dropped(ctx context.Context, b Batch, why DropReason) {
	for _, o := range os {
		if o.OnDropped != nil && len(b.Messages) > 0 {
			o.OnDropped(ctx, b, why)
		}
	}
}

func (os observers) lanes(ctx context.Context, c LaneChange) {
	for _, o := range os {
		if o.OnLanes != nil {
			o.OnLanes(ctx, c)
		}
	}
}

func (os observers) destination(ctx context.Context, name string, err error) {
	for _, o := range os {
		if o.OnDestination != nil {
			o.OnDestination(ctx, name, err)
		}
	}
}
