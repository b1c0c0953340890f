package otel_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/millrace-go/millrace"
	"github.com/millrace-go/millrace/forwarder"
	"github.com/millrace-go/millrace/internal/testenv"
	"github.com/millrace-go/millrace/observe/otel"
	"github.com/millrace-go/millrace/outbox"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// inbox is a publisher that keeps what it gets.
type inbox chan *message.Message

func (b inbox) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		b <- msg
	}
	return nil
}

func (inbox) Close() error { return nil }

func TestTheForwardersSpanIsLinkedToTheTransactionThatPublished(t *testing.T) {
	t.Parallel()
	raw, err := sql.Open("pgx", testenv.Postgres(t))
	require.NoError(t, err)
	defer raw.Close()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(exporter))
	tracing := otel.New(otel.Config{Provider: provider})
	db := millrace.SQL(raw)
	box, err := outbox.New(db, outbox.Config{Propagators: []outbox.Propagator{tracing}})
	require.NoError(t, err)
	require.NoError(t, box.Migrate(t.Context()))
	broker := make(inbox, 1)
	fwd, err := forwarder.New(box, broker, forwarder.Config{Lease: time.Minute, Observers: []forwarder.Observer{tracing.Observer()}})
	require.NoError(t, err)
	running, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- fwd.Run(running) }()

	ctx, order := provider.Tracer("app").Start(t.Context(), "order")
	published := message.NewMessage("1", nil)
	require.NoError(t, millrace.InTx(ctx, db, func(ctx context.Context, _ *millrace.Tx) error {
		return box.Publish(ctx, "orders", published)
	}))
	order.End()
	require.Empty(t, published.Metadata, "the caller's message is left alone")

	var msg *message.Message
	select {
	case msg = <-broker:
	case <-time.After(2 * time.Minute):
		t.Fatal("the message did not arrive")
	}
	cancel()
	require.NoError(t, <-ended)
	spans := map[string]tracetest.SpanStub{}
	for _, s := range exporter.GetSpans() {
		spans[s.Name] = s
	}
	require.Contains(t, msg.Metadata["traceparent"], order.SpanContext().TraceID().String())
	require.Len(t, spans["forward"].Links, 1)
	require.Equal(t, spans["create message"].SpanContext.SpanID(), spans["forward"].Links[0].SpanContext.SpanID())
	require.Equal(t, order.SpanContext().TraceID(), spans["forward"].Links[0].SpanContext.TraceID())
	require.NoError(t, provider.Shutdown(t.Context()))
}
