package otel

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace-go/millrace/forwarder"
)

// maxLinks bounds the links of one span; OpenTelemetry's SDK keeps no more unless told to.
const maxLinks = 128

// Observer makes a span of each call of the publisher, linked with the spans in which its messages were
// published, and one of each message that is parked, in the message's own trace. Give it to
// forwarder.Config.Observers.
func (t *Tracing) Observer() forwarder.Observer {
	return forwarder.Observer{OnPublish: t.onPublish, OnPublished: t.onPublished, OnParked: t.onParked}
}

// called is the span of a call of the publisher, in its context.
type called struct{}

func (t *Tracing) onPublish(ctx context.Context, b forwarder.Batch) context.Context {
	var links []trace.Link
	for _, m := range b.Messages {
		if sc := t.span(m.Metadata); sc.IsValid() && len(links) < maxLinks {
			links = append(links, trace.Link{SpanContext: sc})
		}
	}
	ctx, span := t.tracer.Start(ctx, "forward", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(links...),
		trace.WithAttributes(attrSystem.String(system), attrOperation.String("send"), attrRemote.String(b.Destination),
			attrBatch.Int(len(b.Messages))))
	if len(b.Messages) == 1 {
		m := b.Messages[0]
		span.SetAttributes(attrDestination.String(m.Topic), attrID.String(m.ID), attrAttempt.Int(m.Attempt))
	}
	return context.WithValue(ctx, called{}, span)
}

func (t *Tracing) onPublished(ctx context.Context, _ forwarder.Batch, answers []forwarder.Answer) {
	span, ok := ctx.Value(called{}).(trace.Span)
	if !ok {
		return
	}
	failed := 0
	reason := ""
	for _, a := range answers {
		if a.Outcome == forwarder.Delivered {
			continue
		}
		failed++
		if reason == "" {
			reason = a.Reason
		}
	}
	if failed > 0 {
		span.SetStatus(codes.Error, fmt.Sprintf("%d of %d messages not delivered", failed, len(answers)))
		span.SetAttributes(attrReason.String(reason))
	}
	span.End()
}

func (t *Tracing) onParked(ctx context.Context, m forwarder.Message, f forwarder.Failure) {
	_, span := t.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, t.span(m.Metadata)), "park", trace.WithSpanKind(trace.SpanKindInternal),
		trace.WithAttributes(attrSystem.String(system), attrDestination.String(m.Topic), attrID.String(m.ID),
			attrRemote.String(m.Destination), attrAttempt.Int(m.Attempt), attrReason.String(f.Reason)))
	span.SetStatus(codes.Error, "set aside as dead")
	span.End()
}
