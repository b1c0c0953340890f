package otel_test

import (
	"context"
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/observe/otel"
)

// traced is a Tracing, the spans that have ended, and a tracer of the application.
func traced(t *testing.T) (*otel.Tracing, func(name string) tracetest.SpanStub, trace.Tracer) {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(exporter))
	t.Cleanup(func() { require.NoError(t, provider.Shutdown(context.WithoutCancel(t.Context()))) })
	only := func(name string) tracetest.SpanStub {
		t.Helper()
		var found []tracetest.SpanStub
		for _, s := range exporter.GetSpans() {
			if s.Name == name {
				found = append(found, s)
			}
		}
		require.Len(t, found, 1, "spans named %q", name)
		return found[0]
	}
	return otel.New(otel.Config{Provider: provider}), only, provider.Tracer("app")
}

func TestATraceCrossesTheOutboxFromTheTransactionToTheHandler(t *testing.T) {
	t.Parallel()
	tracing, span, app := traced(t)
	ctx, order := app.Start(t.Context(), "order")

	metadata := message.Metadata{"a": "b"}
	tracing.Inject(ctx, metadata)
	order.End()
	require.Contains(t, metadata, "traceparent")
	created := span("create message")
	require.Equal(t, trace.SpanKindProducer, created.SpanKind)
	require.Equal(t, order.SpanContext().SpanID(), created.Parent.SpanID())

	observer := tracing.Observer()
	batch := forwarder.Batch{Destination: "rabbit", Messages: []forwarder.Message{{ID: "1", Topic: "orders", Attempt: 1, Metadata: metadata}}}
	ctx = observer.OnPublish(t.Context(), batch)
	require.True(t, trace.SpanContextFromContext(ctx).IsValid(), "the publisher's own spans belong under it")
	observer.OnPublished(ctx, batch, []forwarder.Answer{{Outcome: forwarder.Delivered}})
	forwarded := span("forward")
	require.Len(t, forwarded.Links, 1)
	require.Equal(t, created.SpanContext.SpanID(), forwarded.Links[0].SpanContext.SpanID())
	require.NotEqual(t, created.SpanContext.TraceID(), forwarded.SpanContext.TraceID(), "a batch belongs to many traces")
	require.Equal(t, codes.Unset, forwarded.Status.Code)

	msg := message.NewMessage("1", []byte("secret"))
	msg.Metadata = metadata
	before := msg.Context()
	out := message.NewMessage("2", nil)
	out.Metadata = nil
	produced, err := tracing.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		require.Equal(t, created.SpanContext.TraceID(), trace.SpanContextFromContext(msg.Context()).TraceID())
		return []*message.Message{out}, nil
	})(msg)
	require.NoError(t, err)
	require.Equal(t, before, msg.Context(), "the context is as it was")
	processed := span("process ")
	require.Equal(t, trace.SpanKindConsumer, processed.SpanKind)
	require.Equal(t, created.SpanContext.SpanID(), processed.Parent.SpanID())
	require.Contains(t, produced[0].Metadata["traceparent"], processed.SpanContext.SpanID().String())
}

func TestAMessageThatCarriesATraceKeepsIt(t *testing.T) {
	t.Parallel()
	tracing, span, app := traced(t)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	metadata := message.Metadata{"traceparent": parent}
	tracing.Inject(t.Context(), metadata)
	require.Equal(t, message.Metadata{"traceparent": parent}, metadata)
	_, only := app.Start(t.Context(), "only")
	only.End()
	span("only")
}

func TestARefusedMessageAndAParkedOneAreErrorsWithTheirReason(t *testing.T) {
	t.Parallel()
	tracing, span, _ := traced(t)
	metadata := message.Metadata{}
	tracing.Inject(t.Context(), metadata)
	observer := tracing.Observer()
	batch := forwarder.Batch{Messages: []forwarder.Message{{ID: "1"}, {ID: "2", Topic: "orders", Attempt: 3, Metadata: metadata}}}
	ctx := observer.OnPublish(t.Context(), batch)
	observer.OnPublished(ctx, batch, []forwarder.Answer{
		{Outcome: forwarder.Delivered},
		{Outcome: forwarder.Refused, Reason: "no_route", Err: errors.New("secret")},
	})
	forwarded := span("forward")
	require.Equal(t, codes.Error, forwarded.Status.Code)
	require.Equal(t, "1 of 2 messages not delivered", forwarded.Status.Description)
	require.Contains(t, forwarded.Attributes, attribute.String("millrace.reason", "no_route"))
	require.Contains(t, forwarded.Attributes, attribute.Int("messaging.batch.message_count", 2))
	require.Empty(t, forwarded.Events, "what the broker says may quote the message")

	observer.OnParked(t.Context(), batch.Messages[1], forwarder.Failure{Reason: "no_route"})
	parked := span("park")
	require.Equal(t, span("create message").SpanContext.TraceID(), parked.SpanContext.TraceID())
	require.Equal(t, codes.Error, parked.Status.Code)
	require.Contains(t, parked.Attributes, attribute.Int("millrace.attempt", 3))
}

func TestAHandlersErrorIsRecordedAndAPanicEndsTheSpan(t *testing.T) {
	t.Parallel()
	tracing, span, _ := traced(t)
	boom := errors.New("boom")
	_, err := tracing.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, boom })(message.NewMessage("1", nil))
	require.ErrorIs(t, err, boom)
	require.Equal(t, codes.Error, span("process ").Status.Code)

	tracing, span, _ = traced(t)
	require.Panics(t, func() {
		_, _ = tracing.Middleware(func(*message.Message) ([]*message.Message, error) { panic("boom") })(message.NewMessage("1", nil))
	})
	span("process ")
}

func TestABatchOfMessagesFromManyTracesHasAsManyLinksAsASpanMayHave(t *testing.T) {
	t.Parallel()
	tracing, span, app := traced(t)
	var batch forwarder.Batch
	for range 500 {
		ctx, s := app.Start(t.Context(), "order")
		metadata := message.Metadata{}
		tracing.Inject(ctx, metadata)
		s.End()
		batch.Messages = append(batch.Messages, forwarder.Message{Metadata: metadata})
	}
	observer := tracing.Observer()
	observer.OnPublished(observer.OnPublish(t.Context(), batch), batch, make([]forwarder.Answer, 500))
	require.Len(t, span("forward").Links, 128)
}
