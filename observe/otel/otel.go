// Package otel follows messages across the outbox with OpenTelemetry: from the transaction that published
// one, through the forwarder, to the handler that consumed it.
//
//	tracing := otel.New(otel.Config{})
//	box, err := outbox.New(db, outbox.Config{Propagators: []outbox.Propagator{tracing}})
//	fwd, err := forwarder.New(box, pub, forwarder.Config{Observers: []forwarder.Observer{tracing.Observer()}})
//	router.AddMiddleware(tracing.Middleware) // on the consumer's side, outermost
//
// What travels is W3C trace context in the message's metadata: any consumer that knows it can continue the
// trace. Spans carry ids, topics and counts; neither payloads nor metadata.
package otel

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	api "go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace-go/millrace/outbox"
)

// Config is the configuration of Tracing. The zero value is right.
type Config struct {
	// Provider makes the spans. Default: OpenTelemetry's global one, as it is when New is called.
	Provider trace.TracerProvider
	// Format is how a trace travels in metadata. Default propagation.TraceContext, which is W3C's; add
	// propagation.Baggage to have the producer's baggage seen by the consumer.
	Format propagation.TextMapPropagator
}

// Tracing makes the spans of one service. Safe for concurrent use.
type Tracing struct {
	tracer trace.Tracer
	format propagation.TextMapPropagator
}

var _ outbox.Propagator = (*Tracing)(nil)

// New makes a Tracing. It starts nothing.
func New(cfg Config) *Tracing {
	if cfg.Provider == nil {
		cfg.Provider = api.GetTracerProvider()
	}
	if cfg.Format == nil {
		cfg.Format = propagation.TraceContext{}
	}
	return &Tracing{tracer: cfg.Provider.Tracer("github.com/millrace-go/millrace"), format: cfg.Format}
}

// Attributes, in the words of OpenTelemetry's conventions for messaging.
const (
	attrSystem      = attribute.Key("messaging.system")
	attrOperation   = attribute.Key("messaging.operation.type")
	attrDestination = attribute.Key("messaging.destination.name")
	attrBatch       = attribute.Key("messaging.batch.message_count")
	attrID          = attribute.Key("messaging.message.id")
	attrGroup       = attribute.Key("messaging.consumer.group.name")
	attrReason      = attribute.Key("millrace.reason")
	attrAttempt     = attribute.Key("millrace.attempt")
	attrRemote      = attribute.Key("millrace.destination")

	system = "millrace"
)

// Inject implements outbox.Propagator: a producer span, child of the one in ctx, marks where the message was
// published, and travels with it. Metadata that holds a trace already keeps it, and there is no span.
func (t *Tracing) Inject(ctx context.Context, metadata message.Metadata) {
	carrier := propagation.MapCarrier(metadata)
	if t.span(metadata).IsValid() {
		return
	}
	ctx, span := t.tracer.Start(ctx, "create message", trace.WithSpanKind(trace.SpanKindProducer),
		trace.WithAttributes(attrSystem.String(system), attrOperation.String("create")))
	defer span.End()
	t.format.Inject(ctx, carrier)
}

// span returns the span that travels in metadata, which may be none.
func (t *Tracing) span(metadata message.Metadata) trace.SpanContext {
	// A bare context, so that what comes out is what the metadata had.
	ctx := t.format.Extract(context.Background(), propagation.MapCarrier(metadata))
	return trace.SpanContextFromContext(ctx)
}

// Middleware continues the trace of a message in a span around its handler, whose error it records. What
// the handler returns carries the trace on.
func (t *Tracing) Middleware(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		before := msg.Context()
		topic := message.SubscribeTopicFromCtx(before)
		ctx := t.format.Extract(before, propagation.MapCarrier(msg.Metadata))
		ctx, span := t.tracer.Start(ctx, "process "+topic, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
			attrSystem.String(system), attrOperation.String("process"), attrDestination.String(topic),
			attrID.String(msg.UUID), attrGroup.String(message.HandlerNameFromCtx(before))))
		defer span.End() // also when the handler panics
		msg.SetContext(ctx)
		defer msg.SetContext(before)
		produced, err := h(msg)
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, "the handler failed")
		}
		for _, p := range produced {
			if p.Metadata == nil {
				p.Metadata = message.Metadata{}
			}
			if !t.span(p.Metadata).IsValid() {
				t.format.Inject(ctx, propagation.MapCarrier(p.Metadata))
			}
		}
		return produced, err
	}
}
